"""A plain GPT-Neo: a global and a local layer, more tokens than the window. Every site of the padded batches too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.gpt_neo(num_layers=2, attention_types=[[["global", "local"], 1]])
common.case(__file__, config, seed=1, tokens=15, full_padding=True, decoders=True, eos=True)

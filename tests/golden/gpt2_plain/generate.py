"""A plain GPT-2: gelu_new, tied head, three heads of four. Every site of the padded batches too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.case(__file__, common.gpt2(), seed=21, full_padding=True, decoders=True, eos=True)

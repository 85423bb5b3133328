"""GPT-Neo with one global and two local layers, and silu. Every site of the padded batches too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.gpt_neo(num_layers=3, attention_types=[[["global"], 1], [["local"], 2]], activation_function="silu")
common.case(__file__, config, seed=21, tokens=9, full_padding=True)

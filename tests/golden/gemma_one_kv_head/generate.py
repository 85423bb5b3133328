"""A Gemma with one key head and heads wider than d/heads."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("gemma", num_key_value_heads=1, head_dim=6)
common.case(__file__, config, seed=1, tokens=10, full_padding=True, decoders=True, eos=True)

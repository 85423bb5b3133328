"""A Phi with half of each head rotated."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("phi", num_attention_heads=2)
common.case(__file__, config, seed=1, tokens=10, full_padding=True, decoders=True, eos=True)

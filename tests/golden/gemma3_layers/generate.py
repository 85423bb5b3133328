"""A Gemma 3 with the usual settings, but a global layer before a local one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("gemma3_text", num_key_value_heads=1, head_dim=4, sliding_window=5,
                     layer_types=["full_attention", "sliding_attention"])
common.case(__file__, config, seed=3, tokens=10, full_padding=True, decoders=True, eos=True)

"""A GPT-J as on the hub: part of each head rotated, and old buffers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("gptj", num_attention_heads=2, rotary_dim=4)
common.case(__file__, config, seed=4, tokens=10, full_padding=True, decoders=True, eos=True,
            change=lambda weights: common.with_rotary_buffers(weights, config))

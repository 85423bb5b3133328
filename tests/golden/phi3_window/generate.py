"""A Phi-3 with a window shorter than the prompt, two key heads for four, and part of each head rotated."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("phi3", vocab_size=50, hidden_size=24, intermediate_size=13, num_key_value_heads=2,
                     sliding_window=4,
                     rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.75))
common.case(__file__, config, seed=2, tokens=8, full_padding=True, decoders=True, eos=True)

"""A tied Qwen3 with wide heads, two key heads for four, and a long base."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("qwen3", num_key_value_heads=2, head_dim=6, tie_word_embeddings=True,
                     rope_parameters=dict(rope_type="default", rope_theta=1e6))
common.case(__file__, config, seed=4, tokens=9, full_padding=True, decoders=True, eos=True)

"""A Qwen3 with a head of its own, biases, and a window shorter than the prompt in its first and last layer."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("qwen3", num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
                     attention_bias=True, use_sliding_window=True, sliding_window=4, rms_norm_eps=1e-3,
                     layer_types=["sliding_attention", "full_attention", "sliding_attention"])
common.case(__file__, config, seed=3, tokens=10)

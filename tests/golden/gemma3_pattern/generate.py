"""A Gemma 3 with two local layers to a global one, whose rotation is interpolated, two key heads for four and heads
wider than d/heads. The config as transformers 4 wrote it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

rope = dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=50000.0),
            sliding_attention=dict(rope_type="default", rope_theta=300.0))
config = common.tiny("gemma3_text", num_hidden_layers=3, num_key_value_heads=2, head_dim=10, sliding_window=4,
                     query_pre_attn_scalar=9, rope_parameters=rope,
                     layer_types=["sliding_attention", "sliding_attention", "full_attention"])
common.case(__file__, config, seed=1, tokens=10,
            older=dict(layer_types=None, sliding_window_pattern=3, _sliding_window_pattern=None))

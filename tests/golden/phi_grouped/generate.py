"""A Phi with two key heads for four, four of six channels rotated, and another activation and epsilon. The config as
transformers 4 wrote it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("phi", hidden_size=24, num_hidden_layers=3, num_key_value_heads=2, hidden_act="gelu",
                     layer_norm_eps=1e-3,
                     rope_parameters=dict(rope_type="default", rope_theta=900.0, partial_rotary_factor=0.7))
common.case(__file__, config, seed=1, tokens=9, older={})

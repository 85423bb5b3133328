"""A Phi whose queries and keys have layer norms with weights and biases; two key heads for four, four of six channels
rotated. The config as transformers 4 wrote it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("phi", hidden_size=24, num_key_value_heads=2, qk_layernorm=True, layer_norm_eps=1e-3,
                     rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.7))
common.case(__file__, config, seed=1, tokens=9, full_padding=True, older={})

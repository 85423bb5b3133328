"""A Gemma with as many key heads as heads and another epsilon. The config as the first of the hub: `gelu`, which
means its tanh approximation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("gemma", num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
                     rms_norm_eps=1e-2, rope_parameters=dict(rope_type="default", rope_theta=700.0))
common.case(__file__, config, seed=1, tokens=9, older=dict(hidden_act="gelu"))

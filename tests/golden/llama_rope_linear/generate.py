"""A Llama with as many key heads as heads, positions interpolated linearly, a tanh GELU and another epsilon. The
config as transformers 4 wrote it, with the rotation's `type`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("llama", num_attention_heads=2, hidden_act="gelu_pytorch_tanh", rms_norm_eps=1e-2,
                     rope_parameters=dict(rope_type="linear", rope_theta=1000.0, factor=2.5))
common.case(__file__, config, seed=1, tokens=9,
            older=dict(rope_scaling=dict(type="linear", factor=2.5), head_dim=None, mlp_bias=None))

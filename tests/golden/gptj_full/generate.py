"""A GPT-J whose heads are rotated whole, with a ReLU, three layers and the usual inner width."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("gptj", hidden_size=12, num_hidden_layers=3, num_attention_heads=3, rotary_dim=4, n_inner=None,
                     activation_function="relu", layer_norm_epsilon=1e-3)
common.case(__file__, config, seed=1, tokens=9, older={})

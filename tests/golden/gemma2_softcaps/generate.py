"""A Gemma 2 whose softcaps bite, with a window shorter than the prompt in every second layer and an odd query scale.
The config as on the hub: without `layer_types`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("gemma2", num_hidden_layers=3, num_key_value_heads=2, head_dim=6, attn_logit_softcapping=2.0,
                     final_logit_softcapping=3.0, query_pre_attn_scalar=7, sliding_window=4)
common.case(__file__, config, seed=2, tokens=10, older=dict(layer_types=None, hidden_act="gelu_pytorch_tanh"))

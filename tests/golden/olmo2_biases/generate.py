"""A tied OLMo 2 with biases, as many key heads as heads, and another activation. The config as transformers 4 wrote
it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("olmo2", hidden_size=12, num_hidden_layers=3, num_attention_heads=2, attention_bias=True,
                     tie_word_embeddings=True, hidden_act="relu", rms_norm_eps=1e-2,
                     rope_parameters=dict(rope_type="default", rope_theta=500000.0))
common.case(__file__, config, seed=1, tokens=9, older={})

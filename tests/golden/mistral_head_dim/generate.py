"""A tied Mistral without a window, with narrow heads and one key head. The config as transformers 4 wrote it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("mistral", num_hidden_layers=3, num_key_value_heads=1, sliding_window=None, head_dim=6,
                     tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6))
common.case(__file__, config, seed=1, tokens=9, older={})

"""A Phi-3 with short and long factors: the prompt is longer than the first context, the padded batches are not. The
config as transformers 4 wrote it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

factors = dict(short_factor=[1.0, 1.3], long_factor=[1.5, 6.0])
config = common.tiny("phi3", num_hidden_layers=3, num_key_value_heads=4, original_max_position_embeddings=8,
                     tie_word_embeddings=True,
                     rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, **factors))
common.case(__file__, config, seed=1, tokens=13,
            older=dict(rope_scaling=dict(type="longrope", **factors), partial_rotary_factor=None))

"""A tied Llama with one key head for all and a long base, its config as transformers 4 wrote it, and rotary buffers
that nobody needs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("llama", hidden_size=12, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1,
                     tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=500000.0))
common.case(__file__, config, seed=1, tokens=11, older=dict(head_dim=None),
            change=lambda weights: common.with_rotary_buffers(weights, config))

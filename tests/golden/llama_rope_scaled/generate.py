"""A Llama with every option: two key heads for four, heads wider than d/heads, biases, and Llama 3's scaled rotation
with a frequency in each of its bands."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

rope = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=28)
config = common.tiny("llama", num_key_value_heads=2, head_dim=6, attention_bias=True, mlp_bias=True,
                     rope_parameters=rope)
common.case(__file__, config, seed=1, tokens=10, full_padding=True, decoders=True, eos=True)

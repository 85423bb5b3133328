"""A tied GPT-NeoX with one half after the other, half of each head rotated, and attention without biases."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("gpt_neox", use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True,
                     hidden_act="gelu_new", num_attention_heads=2, layer_norm_eps=1e-3,
                     rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5))
common.case(__file__, config, seed=1, tokens=9, full_padding=True, decoders=True, eos=True)

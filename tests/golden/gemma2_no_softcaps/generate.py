"""A Gemma 2 without softcaps, with biases, as many key heads as heads, and its window in the second layer."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("gemma2", num_attention_heads=2, num_key_value_heads=2, head_dim=8, attn_logit_softcapping=None,
                     final_logit_softcapping=None, query_pre_attn_scalar=16, sliding_window=5, rms_norm_eps=1e-3,
                     attention_bias=True, hidden_activation="silu", layer_types=["full_attention", "sliding_attention"],
                     rope_parameters=dict(rope_type="default", rope_theta=3000.0))
common.case(__file__, config, seed=2, tokens=9, full_padding=True, decoders=True, eos=True)

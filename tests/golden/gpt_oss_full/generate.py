"""A GPT-OSS with experts in f32, two key heads for four, its swiglu clamped often and with a gain of its own, and Yarn's
rotation with bounds that are not whole numbers; its first layer has a window shorter than the prompt."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

rope = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, beta_fast=4.0, beta_slow=1.0, truncate=False,
            original_max_position_embeddings=64)
config = common.tiny("gpt_oss", hidden_size=12, intermediate_size=10, num_key_value_heads=2,
                     head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=4, swiglu_limit=1.0,
                     swiglu_alpha=1.3, rope_parameters=rope)
common.case(__file__, config, seed=6, tokens=8, full_padding=True, decoders=True, eos=True)

"""A GPT-OSS as on the hub: experts in MXFP4, the rest in bf16."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

rope = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, beta_fast=4.0, beta_slow=1.0, truncate=False,
            original_max_position_embeddings=64)
config = common.tiny("gpt_oss", hidden_size=32, intermediate_size=64, num_key_value_heads=2, head_dim=8,
                     num_local_experts=4, num_experts_per_tok=2, sliding_window=4, rope_parameters=rope)
packed = dict(quant_method="mxfp4", modules_to_not_convert=[
    "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"])
seed = 3
common.case(__file__, config, seed, std=0.25, tokens=8, dtype="bf16",
            older=dict(quantization_config=packed, experts_per_token=2, swiglu_alpha=None),
            change=lambda weights: common.with_mxfp4(weights, seed))

"""A Qwen3-MoE whose first layer is dense, with weights that sum to 1, wide heads and two key heads for four; its config
as on the hub."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("qwen3_moe", hidden_size=12, moe_intermediate_size=10, num_key_value_heads=2,
                     head_dim=6, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, mlp_only_layers=[0],
                     rope_parameters=dict(rope_type="default", rope_theta=1e6))
common.case(__file__, config, seed=3, tokens=8, older=dict(num_experts=4, num_local_experts=None, max_window_layers=2),
            write=lambda folder, weights: common.write_model(folder, weights, config),
            full_padding=True, decoders=True, eos=True)

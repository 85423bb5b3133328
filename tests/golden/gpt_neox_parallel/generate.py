"""A GPT-NeoX as on the hub: parallel halves, a quarter of each head rotated, `embed_out`, old buffers, and the config
as transformers 4 wrote it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("gpt_neox", num_attention_heads=2, num_hidden_layers=3, hidden_act="gelu",
                     rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.25))
common.case(__file__, config, seed=1, tokens=10, older={},
            change=lambda weights: common.with_rotary_buffers(weights, config))

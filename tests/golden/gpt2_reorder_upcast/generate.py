"""GPT-2 with reorder_and_upcast_attn and both scalings, as Mistral-GPT2 has them; gelu_pytorch_tanh."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.gpt2(n_layer=2, reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True,
                     activation_function="gelu_pytorch_tanh")
common.case(__file__, config, seed=4, full_padding=True)

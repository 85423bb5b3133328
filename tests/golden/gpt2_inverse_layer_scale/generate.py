"""GPT-2 with scale_attn_by_inverse_layer_idx, four layers, and relu."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.gpt2(n_layer=4, scale_attn_by_inverse_layer_idx=True, activation_function="relu")
common.case(__file__, config, seed=3)

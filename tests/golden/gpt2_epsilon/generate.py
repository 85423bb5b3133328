"""GPT-2 with layer_norm_epsilon 1e-3, wider (24) and with 48 positions."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.gpt2(n_embd=24, n_layer=2, n_head=4, n_positions=48, layer_norm_epsilon=1e-3)
common.case(__file__, config, seed=13, std=0.2)

"""An OPT without biases, its norms without weights, with a GELU and a head of its own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("opt", num_attention_heads=2, num_hidden_layers=3, enable_bias=False, activation_function="gelu",
                     layer_norm_elementwise_affine=False, tie_word_embeddings=False)
common.case(__file__, config, seed=1, tokens=12)

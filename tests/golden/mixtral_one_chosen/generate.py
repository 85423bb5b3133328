"""A tied Mixtral with one of five experts chosen, whose weight is then 1, and a window shorter than the prompt."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("mixtral", num_key_value_heads=4, num_local_experts=5, num_experts_per_tok=1, sliding_window=4,
                     tie_word_embeddings=True, hidden_act="gelu", rms_norm_eps=1e-3)
common.case(__file__, config, seed=2, tokens=10,
            write=lambda folder, weights: common.write_model(folder, weights, config))

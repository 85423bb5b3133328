"""A tied Qwen2 with a window shorter than the prompt from its second layer on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("qwen2", num_hidden_layers=3, num_key_value_heads=2, tie_word_embeddings=True,
                     use_sliding_window=True, sliding_window=4, max_window_layers=1)
common.case(__file__, config, seed=1, tokens=10)

"""GPT-Neo with a head of its own (tie_word_embeddings=false), local before global, and quick_gelu."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.gpt_neo(num_layers=2, attention_types=[[["local", "global"], 1]], tie_word_embeddings=False,
                        activation_function="quick_gelu")
common.case(__file__, config, seed=6, tokens=9, decoders=True)

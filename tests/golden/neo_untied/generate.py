"""GPT-Neo with a head of its own (tie_word_embeddings=false), and quick_gelu."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.gpt_neo(tie_word_embeddings=False, activation_function="quick_gelu")
common.case(__file__, config, seed=6, tokens=9, decoders=True)

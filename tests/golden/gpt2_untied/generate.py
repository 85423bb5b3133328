"""GPT-2 with a head of its own (tie_word_embeddings=false), silu, and a vocabulary of 97."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.gpt2(vocab_size=97, tie_word_embeddings=False, activation_function="silu")
common.case(__file__, config, seed=22, decoders=True)

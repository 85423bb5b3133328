"""A Mistral with a window shorter than the prompt and two key heads for four."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("mistral", num_key_value_heads=2, sliding_window=4)
common.case(__file__, config, seed=3, tokens=11, full_padding=True, decoders=True, eos=True)

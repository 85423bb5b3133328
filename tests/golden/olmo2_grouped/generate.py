"""An OLMo 2 with two key heads for four, norms on what the halves say, and norms of all queries and keys."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("olmo2", num_key_value_heads=2)
common.case(__file__, config, seed=1, tokens=10, full_padding=True, decoders=True, eos=True)

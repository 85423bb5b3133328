"""GPT-Neo with local layers only, two heads, a window of 3 and the exact gelu."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.gpt_neo(num_heads=2, num_layers=3, attention_types=[[["local"], 3]], window_size=3,
                        activation_function="gelu")
common.case(__file__, config, seed=2, tokens=10)

"""GPT-Neo with global layers only, and relu."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.gpt_neo(num_layers=2, attention_types=[[["global"], 2]], activation_function="relu")
common.case(__file__, config, seed=3, tokens=9)

"""GPT-2 with large weights, so that attention and the activations saturate."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.case(__file__, common.gpt2(), seed=14, std=1.0)

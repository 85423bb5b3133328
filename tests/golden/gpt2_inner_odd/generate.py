"""GPT-2 with an MLP of odd width (n_inner) and the exact gelu."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.case(__file__, common.gpt2(n_inner=37, activation_function="gelu"), seed=2)

"""GPT-2 with scale_attn_weights=false, and tanh."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.case(__file__, common.gpt2(scale_attn_weights=False, activation_function="tanh"), seed=5)

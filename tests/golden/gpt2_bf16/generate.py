"""GPT-2 with bf16 on disk; what is expected comes from the rounded weights in float64. gelu_fast."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.case(__file__, common.gpt2(activation_function="gelu_fast"), seed=8, dtype="bf16")

"""GPT-Neo with an MLP of odd width (intermediate_size), and tanh."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.case(__file__, common.gpt_neo(intermediate_size=29, activation_function="tanh"), seed=5, tokens=9)

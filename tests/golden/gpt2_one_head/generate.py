"""GPT-2 with a single head, two layers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.case(__file__, common.gpt2(n_head=1, n_layer=2), seed=21)

"""GPT-2 whose heads are one wide: as many heads as channels."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.case(__file__, common.gpt2(n_head=12, n_layer=2), seed=21)

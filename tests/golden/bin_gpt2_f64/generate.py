"""gpt2_plain widened to float64 without loss."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.copy_of(__file__, "gpt2_plain", common.write_bin, common.as_float64)

"""gpt2_plain saved by torch.save as it does now (a zip)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.copy_of(__file__, "gpt2_plain", common.write_bin)

"""neo_both_differ saved by torch.save."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.copy_of(__file__, "neo_both_differ", common.write_bin)

"""neo_bf16 as a legacy .bin."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.copy_of(__file__, "neo_bf16", common.write_legacy_bin)

"""gpt2_f16 as a .bin."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.copy_of(__file__, "gpt2_f16", common.write_bin)

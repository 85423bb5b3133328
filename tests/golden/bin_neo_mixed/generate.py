"""neo_bf16 with tensors in f64, f32, f16 and bf16 by turns (no value changes), and integer and boolean buffers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.copy_of(__file__, "neo_bf16", common.write_bin, common.as_mixed)

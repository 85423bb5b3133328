"""gpt2_plain with shared storages, transposed tensors, offsets, a tied lm_head, buffers and a Parameter."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.copy_of(__file__, "gpt2_plain", common.write_bin, common.as_views)

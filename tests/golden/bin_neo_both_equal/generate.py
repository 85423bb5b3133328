"""neo_plain with both of its tied matrices saved by torch.save as two storages: Hugging Face compares them and ties them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.copy_of(__file__, "neo_plain", common.write_bin, change=common.with_same_head)

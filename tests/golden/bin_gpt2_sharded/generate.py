"""gpt2_plain in three .bin shards with an index."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.copy_of(__file__, "gpt2_plain", common.write_sharded_bin)

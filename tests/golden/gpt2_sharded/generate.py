"""GPT-2 in three safetensors shards with an index, and swish."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.gpt2(activation_function="swish")
common.case(__file__, config, seed=21, write=common.write_sharded)

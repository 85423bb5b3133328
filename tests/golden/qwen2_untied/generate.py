"""A Qwen2 with a head of its own, one key head, and a window that is not used. The config as transformers 4 wrote
it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("qwen2", num_key_value_heads=1, max_window_layers=1,
                     rope_parameters=dict(rope_type="default", rope_theta=1e6))
common.case(__file__, config, seed=1, tokens=10, full_padding=True, decoders=True, eos=True,
            older=dict(sliding_window=4, layer_types=None))

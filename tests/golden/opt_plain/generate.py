"""An OPT as most are: norms before, relu, keys under `model.decoder.`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("opt")
common.case(__file__, config, seed=1, tokens=9, full_padding=True, decoders=True, eos=True)

"""gpt2_plain like bin_gpt2_views, in the legacy format."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.copy_of(__file__, "gpt2_plain", common.write_legacy_bin, common.as_views)

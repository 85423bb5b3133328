"""GPT-Neo with a tied config and a file that holds both matrices, which differ: Hugging Face unties them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

common.case(__file__, common.gpt_neo(), seed=51, change=common.with_other_head)

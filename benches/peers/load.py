"""How long transformers' from_pretrained takes.

usage: load.py FOLDER [DTYPE]      (DTYPE: float32, bfloat16; float32 by default)
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

folder = sys.argv[1]
dtype = getattr(torch, sys.argv[2] if len(sys.argv) > 2 else "float32")
start = time.perf_counter()
AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
print(json.dumps({"seconds": [time.perf_counter() - start]}))

"""How long a whole forward of transformers takes, attention by sdpa, or eager for families that have no other.

usage: forward.py FOLDER DTYPE LENGTHS REPEATS      (DTYPE: float32, bfloat16; LENGTHS: 1,45,512)
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

folder, dtype, lengths, repeats = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3], int(sys.argv[4])
# Its default: sdpa, and eager for families that have none (GPT-Neo).
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
forward = {}
with torch.no_grad():
    for length in map(int, lengths.split(",")):
        ids = torch.arange(1000, 1000 + 23 * length, 23)[None]
        seconds = []
        for run in range(repeats + 1):
            start = time.perf_counter()
            model(ids, use_cache=False)
            if run > 0:
                seconds.append(time.perf_counter() - start)
        forward[str(length)] = seconds
print(json.dumps({"forward": forward}))

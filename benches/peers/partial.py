"""How long three activations take when the run stops at the deepest of them.

usage: partial.py FOLDER TOOL TOKENS REPEATS      (TOOL: nnsight, transformer-utils)
"""

import importlib
import importlib.util
import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

folder, tool, tokens, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
ids = torch.arange(1000, 1000 + 23 * tokens, 23)[None]

if tool == "nnsight":
    from nnsight import NNsight

    watched = NNsight(model)

    def run():
        with watched.trace(ids) as tracer:
            first = watched.transformer.h[0].output[0].save()
            second = watched.transformer.h[2].attn.c_attn.output.save()
            third = watched.transformer.h[5].mlp.c_proj.output.save()
            tracer.stop()
        return first, second, third

else:
    # Its __init__ fails on today's transformers; the package is made known without running it.
    spec = importlib.util.find_spec("transformer_utils")
    sys.modules["transformer_utils"] = importlib.util.module_from_spec(spec)
    partial_forward = importlib.import_module("transformer_utils.partial_forward").partial_forward
    names = ["transformer.h.0", "transformer.h.2.attn.c_attn", "transformer.h.5.mlp.c_proj"]

    def run():
        return partial_forward(model, names, ids)


seconds = []
with torch.no_grad():
    run()
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
print(json.dumps({"seconds": seconds}))

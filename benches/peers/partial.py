"""How long three activations take when the run stops at the deepest of them.

usage: partial.py FOLDER TOOL TOKENS REPEATS [DTYPE]      (TOOL: nnsight, transformer-utils, hooks)

hooks is transformers alone: hooks on the three modules, the last of which stops the run by raising. DTYPE is float32 by default.
"""

import importlib
import importlib.util
import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

folder, tool, tokens, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
dtype = getattr(torch, sys.argv[5] if len(sys.argv) > 5 else "float32")
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
ids = torch.arange(1000, 1000 + 23 * tokens, 23)[None]

if model.config.model_type == "llama":
    names = ["model.layers.0", "model.layers.2.self_attn.q_proj", "model.layers.5.mlp.down_proj"]
else:
    names = ["transformer.h.0", "transformer.h.2.attn.c_attn", "transformer.h.5.mlp.c_proj"]

if tool == "nnsight":
    from nnsight import NNsight

    watched = NNsight(model)

    def run():
        with watched.trace(ids) as tracer:
            first = watched.get(names[0]).output.save()
            second = watched.get(names[1]).output.save()
            third = watched.get(names[2]).output.save()
            tracer.stop()
        return first, second, third

elif tool == "hooks":

    class Stop(Exception):
        pass

    saved = {}

    def keep(name):
        def hook(_, __, output):
            saved[name] = output
            if name == names[-1]:
                raise Stop

        return hook

    for name in names:
        model.get_submodule(name).register_forward_hook(keep(name))

    def run():
        try:
            model(ids, use_cache=False)
        except Stop:
            return saved
        raise AssertionError("the run was not stopped")

else:
    # Its __init__ fails on today's transformers; the package is made known without running it.
    spec = importlib.util.find_spec("transformer_utils")
    sys.modules["transformer_utils"] = importlib.util.module_from_spec(spec)
    partial_forward = importlib.import_module("transformer_utils.partial_forward").partial_forward

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

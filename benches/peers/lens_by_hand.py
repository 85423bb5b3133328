"""The logit lens as people write it on transformers: KL(final || row) of every hidden state.

usage: lens_by_hand.py FOLDER DTYPE TOKENS REPEATS      (DTYPE: float32, bfloat16)

The forward is included. Logits are of the model's dtype, their logarithms of f32.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

folder, dtype, tokens, repeats = sys.argv[1], getattr(torch, sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
ids = torch.arange(1000, 1000 + 23 * tokens, 23)[None]
norm = model.transformer.ln_f if model.config.model_type == "gpt2" else model.model.norm


def run():
    output = model(ids, output_hidden_states=True, use_cache=False)
    final = output.logits.float().log_softmax(-1)
    rows = []
    for stream in output.hidden_states[:-1]:
        row = model.lm_head(norm(stream)).float().log_softmax(-1)
        rows.append((final.exp() * (final - row)).sum(-1))
    return torch.stack(rows)


seconds = []
with torch.no_grad():
    for turn in range(repeats + 1):
        start = time.perf_counter()
        run()
        if turn > 0:
            seconds.append(time.perf_counter() - start)
print(json.dumps({"seconds": seconds}))

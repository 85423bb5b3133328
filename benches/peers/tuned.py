"""How long the tuned-lens package takes for the KL divergence of every layer from the model's output.

usage: tuned.py FOLDER TOKENS REPEATS

The forward is included. The translators are fresh ones, which cost what trained ones do.
"""

import json
import sys
import time

import torch
import transformer_lens
from transformers import AutoModelForCausalLM

# tuned-lens asks whether the model is one of these, which TransformerLens 4 no longer has.
try:
    transformer_lens.HookedTransformer
except (AttributeError, ImportError):
    transformer_lens.HookedTransformer = type("HookedTransformer", (), {})

from tuned_lens import TunedLens

folder, tokens, repeats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
lens = TunedLens.from_model(model).eval()
ids = torch.arange(1000, 1000 + 23 * tokens, 23)[None]


def run():
    output = model(ids, output_hidden_states=True, use_cache=False)
    final = output.logits.log_softmax(-1)
    rows = []
    for layer, stream in enumerate(output.hidden_states[:-1]):
        row = lens(stream, layer).log_softmax(-1)
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

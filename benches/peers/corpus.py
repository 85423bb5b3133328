"""Activations of a corpus as people write it on transformers: batches of eight, hooks, a file.

usage: corpus.py FOLDER

Three modules' outputs of every token of 96 texts, in bf16, into a safetensors file. The program `inside` makes the same texts.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="sdpa").eval()
vocabulary, last = model.config.vocab_size, model.config.num_hidden_layers - 1
texts = [[(1000 + 23 * at + 7 * n) % vocabulary for at in range(16 + n * n * 37 % 385)] for n in range(96)]
names = [f"transformer.h.{last // 4}", f"transformer.h.{last // 2}", f"transformer.h.{last}.mlp"]
seen = {}


def keep(name):
    def hook(_, __, output):
        seen[name] = output[0] if isinstance(output, tuple) else output

    return hook


for name in names:
    model.get_submodule(name).register_forward_hook(keep(name))


def run(folder):
    kept = {name: [] for name in names}
    for first in range(0, len(texts), 8):
        rows = texts[first : first + 8]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        # The base model: nobody wants logits.
        model.transformer(ids, attention_mask=mask, use_cache=False)
        for name in names:
            kept[name].append(seen[name][mask.bool()].bfloat16())
    save_file({name: torch.cat(values) for name, values in kept.items()}, Path(folder) / "activations.safetensors")


seconds = []
with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
    for turn in range(2):
        start = time.perf_counter()
        run(folder)
        if turn > 0:
            seconds.append(time.perf_counter() - start)
print(json.dumps({"seconds": seconds}))

"""Seconds between two new tokens of transformers' greedy generation, with a cache and without.

usage: generate.py FOLDER DTYPE TOKENS CACHED UNCACHED REPEATS      (CACHED, UNCACHED: new tokens)

The first new token is not counted: it comes with the prompt.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

folder, dtype = sys.argv[1], getattr(torch, sys.argv[2])
tokens, cached, uncached, repeats = map(int, sys.argv[3:7])
# Its default: sdpa, and eager for families that have none (GPT-Neo).
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
model.generation_config.eos_token_id = None
ids = torch.arange(1000, 1000 + 23 * tokens, 23)[None]


class Times:
    """A streamer that notes when tokens come; the prompt comes first."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def generate(new, use_cache):
    streamer = Times()
    mask = torch.ones_like(ids)
    output = model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=new,
        min_new_tokens=new,
        use_cache=use_cache,
        pad_token_id=0,
        streamer=streamer,
    )
    assert output.shape[1] == tokens + new, output.shape
    times = streamer.times[1:]
    return (times[-1] - times[0]) / (len(times) - 1)


report = {"cached": [], "uncached": []}
with torch.no_grad():
    for run in range(repeats + 1):
        for name, new, use_cache in (("cached", cached, True), ("uncached", uncached, False)):
            seconds = generate(new, use_cache)
            if run > 0:
                report[name].append(seconds)
print(json.dumps(report))

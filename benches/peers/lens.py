"""The logit lens of transformer-utils: in seconds, or as a picture.

usage: lens.py FOLDER MEASURE TOKENS REPEATS      (MEASURE: probs, kl)
       lens.py FOLDER MEASURE TOKENS PICTURE.png

With a number it times the lens without drawing; with a path it does once what its users do, and draws.
"""

import importlib
import importlib.util
import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

folder, measure, tokens, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]

# Its __init__ fails on today's transformers; the package is made known without running it.
spec = importlib.util.find_spec("transformer_utils")
sys.modules["transformer_utils"] = importlib.util.module_from_spec(spec)
import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes

plotting = importlib.import_module("transformer_utils.logit_lens.plotting")

model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
ids = torch.arange(1000, 1000 + 23 * tokens, 23)[None]


class Numbers:
    """Spells a token as its number: random checkpoints have no tokenizer."""

    def decode(self, ids):
        return str(int(ids[0]))


def labelled(axes, labels, plain=Axes.set_xticklabels, **options):
    """The last token has no successor to be labelled with, which matplotlib has come to refuse."""
    labels = list(labels)
    return plain(axes, labels + [""] * (len(axes.get_xticks()) - len(labels)), **options)


def lens():
    decoder = ["final_layernorm", "lm_head"]
    names = plotting.make_layer_names(model)
    plotting.make_lens_hooks(model, layer_names=names, decoder_layer_names=decoder, verbose=False)
    logits, _ = plotting.collect_logits(model, ids, names, decoder)
    predictions, probabilities = plotting.postprocess_logits(logits)
    if measure == "kl":
        return plotting.kl_div(probabilities[-1], probabilities, clip=1 / (10 * probabilities.shape[-1]))
    return plotting.get_value_at_preds(probabilities, predictions[-1])


seconds = []
if last.endswith(".png"):
    Axes.set_xticklabels = labelled
    start = time.perf_counter()
    plotting.plot_logit_lens(model, Numbers(), ids, start_ix=0, end_ix=tokens, **{measure: True})
    plotting.plt.savefig(last)
    seconds.append(time.perf_counter() - start)
else:
    lens()
    for _ in range(int(last)):
        start = time.perf_counter()
        lens()
        seconds.append(time.perf_counter() - start)
print(json.dumps({"seconds": seconds}))

"""Tuned lenses of the tuned-lens package for cases of several families: their files, and what they give each layer, in f64.

    pip install torch==2.13.0 transformers==5.23.0 tuned-lens==0.2.0 safetensors
    python tests/golden/tuned_lens/generate.py                 # or only some: gpt2_plain llama_rope_linear

A folder for each case holds `config.json` and `params.pt` as the package writes them, and `expected.safetensors`: `logits/i`
(`[position, vocabulary]`) through translator `i`, `kl/i` (`[position]`, nats), the divergence KL(final || lens).
"""

import json
import sys
from pathlib import Path

# Optional there, and its present release lacks what the package looks for.
sys.modules["transformer_lens"] = None

import torch
from safetensors.torch import save_file
from tuned_lens.nn.lenses import TunedLens

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import common

CASES = ["gpt2_plain", "gpt_neox_parallel", "gptj_full", "llama_one_kv_head", "llama_rope_linear", "opt_plain"]


@torch.no_grad()
def write(name):
    folder = common.GOLDEN / name
    ids = torch.tensor(json.loads((folder / "case.json").read_text())["single"]["ids"])
    torch.manual_seed(7)
    model = common.load(folder, torch.float32)
    lens = TunedLens.from_model(model)
    for translator in lens:
        translator.weight.normal_(0, 0.1)
        translator.bias.normal_(0, 0.3)
    # The path of this machine means nothing to others.
    lens.config.base_model_name_or_path = name
    lens.save(here / name)

    model = common.load(folder, torch.float64)
    with common.float64():
        run = model(ids, output_hidden_states=True)
        lens = lens.double()
        logits = [lens(stream, layer)[0] for layer, stream in enumerate(run.hidden_states[:-1])]
    assert len(logits) == len(lens) and {one.dtype for one in logits} == {torch.float64} == {run.logits.dtype}
    final = run.logits[0].log_softmax(-1)
    expected = {}
    for layer, one in enumerate(logits):
        expected[f"logits/{layer}"] = one.contiguous()
        expected[f"kl/{layer}"] = (final.exp() * (final - one.log_softmax(-1))).sum(-1)
    save_file(expected, here / name / "expected.safetensors")


for name in [case for case in CASES if case in sys.argv[1:]] or CASES:
    write(name)
    print(name)

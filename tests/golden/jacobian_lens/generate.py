"""Jacobian lenses fitted by TransformerLens for cases of several families, in f64: their files, and what they give each layer.

    pip install torch==2.13.0 transformers==5.23.0 transformer-lens==4.3.0 safetensors
    python tests/golden/jacobian_lens/generate.py              # or only some: gpt2_plain llama_one_kv_head

A folder for each case holds `lens.pt`, as TransformerLens writes it (in f32), `checkpoint.pt`, the same as the sums over texts that a fit
notes down on its way, and `case.json`: `prompts`, the token ids that it was fitted on, and `skip`, the positions left out at the
beginning of each. One of them is too short. `expected.safetensors`: `logits/i` (`[position, vocabulary]`), the case's own ids through
the lens of layer `i`.
"""

import json
import random
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformer_lens.tools.analysis import JacobianLens

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import common
import transformer_lens_model

CASES = ["gpt2_plain", "llama_one_kv_head", "gemma2_softcaps", "gpt_neox_parallel"]
SKIP = 2


def write(name):
    folder = common.GOLDEN / name
    ids = torch.tensor(json.loads((folder / "case.json").read_text())["single"]["ids"])
    chance = random.Random(5)
    words = [[chance.randrange(1, 50) for _ in range(length)] for length in (9, 2, 6, 7)]
    out = here / name
    out.mkdir(exist_ok=True)
    with common.float64():
        model = transformer_lens_model.load(folder, torch.float64)
        texts = [" ".join(map(str, row)) for row in words]
        prompts = [model.to_tokens(text)[0].tolist() for text in texts]
        assert [row[-len(given):] for row, given in zip(prompts, words)] == words
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lens = JacobianLens.fit(model, texts, corpus="numbers", dim_batch=5, skip_first_positions=SKIP, show_progress=False)
        # The path of this machine means nothing to others.
        lens.metadata["model_name"] = name
        lens.save(out / "lens.pt", dtype=torch.float32)
        used = lens.n_prompts
        torch.save({
            "jacobian_sum": {layer: matrix * used for layer, matrix in lens.jacobians.items()}, "n_done": used,
            "next_idx": len(texts), "source_layers": lens.source_layers, "target_layer": model.cfg.n_layers - 1, "skip_first": SKIP,
        }, out / "checkpoint.pt")
        lens.metadata["model_name"] = model.cfg.model_name
        read = lens.readout(model, ids, return_full_logits=True)
    assert used == 3 and JacobianLens.load(out / "checkpoint.pt").n_prompts == 3
    save_file({f"logits/{layer}": read.lens_logits[layer].contiguous() for layer in lens.source_layers}, out / "expected.safetensors")
    about = dict(prompts=prompts, skip=SKIP, used=used)
    (out / "case.json").write_text(json.dumps(about) + "\n")


for name in [case for case in CASES if case in sys.argv[1:]] or CASES:
    write(name)
    print(name)

"""Writes `bf16.json` into every case of its own: how far Hugging Face's bf16 run is from its float64 run, site by site.

The weights are rounded to bf16 in both programs alike, so most of the error is the weights'; what remains is the arithmetic.
Sixty-four full contexts, because the error of a few short rows is chance. Takes the names of cases, or does all.
"""

import json
import sys

import numpy as np
import torch

import common

ROWS = 64


def rms(difference):
    return difference.double().pow(2).mean().sqrt().item()


def main(names=()):
    for path in sorted(common.GOLDEN.glob("*/case.json")):
        folder, meta = path.parent, json.loads(path.read_text())
        if "same_as" in meta or names and folder.name not in names:
            continue
        model = common.load(folder, torch.bfloat16)
        rng = np.random.default_rng(meta["seed"] + 2000)
        shape = (ROWS, model.config.max_position_embeddings)
        ids = torch.from_numpy(rng.integers(3, model.config.vocab_size, shape))
        found = common.Run(model, ids).sites
        with common.float64_attention():
            exact = common.Run(common.load(folder, torch.float64), ids).sites
        errors = {name: float(f"{rms(found[name] - exact[name]):.4e}") for name in meta["sites"]}
        common.write_json(folder / "bf16.json", {**common.versions(), "ids": ids.tolist(), "rms_error": errors})
        print(f"{folder.name:28} {max(errors.values()):.1e}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Writes `bf16.json` into every case of its own: how far Hugging Face's bf16 run is from its float64 run, site by site.

The weights are rounded to bf16 in both programs alike, so most of the error is the weights'; what remains is the arithmetic.
Many full contexts, because the error of a few short rows is chance. Takes the names of cases, or does all.
"""

import json
import sys

import torch

import common

ROWS = 256


def ids(rows, length, vocabulary):
    """The contexts, by a rule that the tests know too: steps of a linear congruential generator (Knuth's), above the ids of
    padding, beginning and end."""
    state, values = 1, []
    for _ in range(rows * length):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        values.append(3 + (state >> 33) % (vocabulary - 3))
    return torch.tensor(values).view(rows, length)


def rms(difference):
    return difference.double().pow(2).mean().sqrt().item()


def main(names=()):
    for path in sorted(common.GOLDEN.glob("*/case.json")):
        folder, meta = path.parent, json.loads(path.read_text())
        if "same_as" in meta or names and folder.name not in names:
            continue
        model = common.load(folder, torch.bfloat16)
        config = model.config.get_text_config()
        contexts = ids(ROWS, config.max_position_embeddings, config.vocab_size)
        found, model = common.Run(model, contexts).sites, common.load(folder, torch.float64)
        with common.float64():
            exact = common.Run(model, contexts).sites
        errors = {name: float(f"{rms(found[name] - exact[name]):.4e}") for name in meta["sites"]}
        common.write_json(folder / "bf16.json", {**common.versions(), "contexts": ROWS, "rms_error": errors})
        print(f"{folder.name:28} {max(errors.values()):.1e}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Writes `bf16.json` into every case of its own: how far Hugging Face's bf16 run is from its float64 run, site by site.

The weights are rounded to bf16 in both programs alike, so most of the error is the weights'; what remains is the arithmetic.
Many full contexts, because the error of a few short rows is chance. Takes the names of cases, or does all.

Where rounding makes a mixture choose another expert, all that follows is another model's. So mixtures get shorter contexts,
and of those only such whose every choice hangs on more than `MARGIN` and is the same in both programs.
"""

import json
import sys

import torch

import common

ROWS = 256
DRAWN, LENGTH, MARGIN = 2048, 8, 0.02  # for mixtures


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


def decided(folder, narrow, contexts):
    """The contexts, `ROWS` at most, in which rounding chooses no expert."""
    wide = common.load(folder, torch.float64)
    with common.float64():
        exact = common.Run(wide, contexts)
    found = common.Run(narrow, contexts)
    kept = torch.stack([border for border, _ in exact.margins]).amin((0, 2)) > MARGIN
    for i in range(len(exact.layers)):
        if mixture := exact.mixture(i):
            pair, twins = common.tied(mixture)
            sets = [run.sites[f"h.{i}.mlp.experts.chosen"] for run in [exact, found]]
            if twins:  # either
                sets = [torch.where(chosen == pair[1], pair[0], chosen) for chosen in sets]
            kept &= (sets[0].sort(-1).values == sets[1].sort(-1).values).flatten(1).all(-1)
    return kept.nonzero().flatten().tolist()[:ROWS]


def main(names=()):
    for path in sorted(common.GOLDEN.glob("*/case.json")):
        folder, meta = path.parent, json.loads(path.read_text())
        if "same_as" in meta or names and folder.name not in names:
            continue
        model = common.load(folder, torch.bfloat16)
        config = model.config.get_text_config()
        contexts, about = ids(ROWS, config.max_position_embeddings, config.vocab_size), {"contexts": ROWS}
        if any(name.endswith(".chosen") for name in meta["sites"]):
            contexts = ids(DRAWN, LENGTH, config.vocab_size)
            rows = decided(folder, model, contexts)
            contexts, about = contexts[rows], {"contexts": DRAWN, "length": LENGTH, "rows": rows}
        found, model = common.Run(model, contexts).sites, common.load(folder, torch.float64)
        with common.float64():
            exact = common.Run(model, contexts).sites
        errors = {name: float(f"{rms(found[name] - exact[name]):.4e}") for name in meta["sites"]
                  if exact[name].is_floating_point()}
        common.write_json(folder / "bf16.json", {**common.versions(), **about, "rms_error": errors})
        print(f"{folder.name:28} {max(errors.values()):.1e}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

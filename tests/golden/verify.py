"""Checks the stored fixtures against Hugging Face transformers, without writing anything.

Every checkpoint is loaded again as a user would and its sites, padded sites, greedy ids and lens are compared with
`expected.safetensors`; a copy must also hold its original's weights bit for bit.
"""

import json
import sys

import torch
from safetensors.torch import load_file

import common

TOLERANCE = 1e-5


def compare(found, expected, what, tolerance=TOLERANCE):
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)}, stored {tuple(expected.shape)}"
    assert torch.isfinite(expected).all(), f"{what} holds a value that is not finite"
    error = common.error(found.double(), expected.double())
    assert error <= tolerance, f"{what} differs by {error:.1e}"
    return error


def inputs(meta):
    batch = {key: torch.tensor(meta[key]) for key in ["ids", "attention_mask", "position_ids"]}
    return batch.pop("ids"), batch


def check(folder):
    """Gives the largest relative error of the logits."""
    own = json.loads((folder / "case.json").read_text())
    original = folder.parent / own["same_as"] if "same_as" in own else folder
    meta = json.loads((original / "case.json").read_text())
    expected = load_file(original / "expected.safetensors")
    model = common.load(folder, torch.float32)

    if original != folder:
        ours, theirs = model.state_dict(), common.load(original, torch.float32).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), "the weights are not the original's"

    wide = common.load(folder, torch.float64)
    with common.float64():
        run = common.Run(wide, torch.tensor(meta["single"]["ids"]))
    assert set(meta["sites"]) == set(run.sites)
    assert {value.dtype for value in run.sites.values()} == {torch.float64}
    worst = max(compare(value, expected[f"single/{name}"], name) for name, value in run.sites.items())
    top = expected["lens/final_top1"]
    assert torch.equal(top, run.sites["logits"][0].argmax(-1))

    for prefix in meta["lens"]:
        last = meta["lens"][prefix]["names"][-1]
        last_row = {k: expected[f"{prefix}/{k}"][-1] for k in ["ranks", "kl", "top1", "probs"]}
        assert last.startswith("h.") and torch.equal(last_row["top1"].long(), top) and (last_row["ranks"] == 1).all()
        assert last_row["kl"].abs().max() < 1e-12, "the last row is not the model's output"
    probs = run.sites["logits"][0].softmax(-1).gather(-1, top[:, None])[:, 0]
    compare(expected["lens/probs"][-1], probs, "lens/probs")

    for side in ["left", "right"]:
        ids, batch = inputs(meta[side])
        if side == "right":
            del batch["position_ids"]
        sites = common.Run(model, ids, **batch).sites
        stored = {key.removeprefix(f"{side}/"): value for key, value in expected.items() if key.startswith(side)}
        assert meta[side]["sites"] == ("all" if stored.keys() == sites.keys() else "blocks")
        for name, value in stored.items():
            compare(sites[name], value, f"{side}/{name}")
        # A real position must not feel the padding.
        for row, mask in enumerate(batch["attention_mask"].bool()):
            with torch.no_grad():
                alone = model(ids[row:row + 1, mask]).logits[0]
            compare(alone, expected[f"{side}/logits"][row, mask], f"{side}/logits, row {row} alone", 5e-5)

    new, eos = meta["generate"]["max_new_tokens"], meta["generate"].get("eos_id")
    single, (batch, masks) = torch.tensor(meta["single"]["ids"]), inputs(meta["left"])
    masks.pop("position_ids")
    for name, stop in [("greedy", None)] + [("eos", eos)] * (eos is not None):
        for suffix, ids, extra in [("", single, {}), ("_left", batch, masks)]:
            for use_cache in [True, False]:
                found = common.greedy(model, ids, new, stop, use_cache, **extra)
                assert torch.equal(found, expected[f"generate/{name}{suffix}"]), f"generate/{name}{suffix} differs"
    return worst


def main():
    failed = 0
    for path in sorted(common.GOLDEN.glob("*/case.json")):
        name = path.parent.name
        try:
            print(f"{name:28} {check(path.parent):.1e}", flush=True)
        except Exception as reason:
            failed += 1
            print(f"{name:28} FAILED: {reason}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

"""Checks the stored fixtures against Hugging Face transformers, without writing anything.

Every checkpoint is loaded again as a user would and its logits, padded logits, greedy ids and lens are compared with
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

    with common.float64_attention():
        run = common.Run(common.load(folder, torch.float64), torch.tensor(meta["single"]["ids"]))
    assert set(meta["sites"]) == set(run.sites)
    worst = max(compare(value, expected[f"single/{name}"], name) for name, value in run.sites.items())
    top = expected["lens/final_top1"]
    assert torch.equal(top, run.sites["logits"][0].argmax(-1))

    last = meta["lens"]["lens"]["names"][-1]
    last_row = {k: expected[f"lens/{k}"][-1] for k in ["ranks", "kl", "top1", "probs"]}
    assert last.startswith("h.") and torch.equal(last_row["top1"].long(), top) and (last_row["ranks"] == 1).all()
    assert last_row["kl"].abs().max() < 1e-12, "the last row is not the model's output"
    probs = run.sites["logits"][0].softmax(-1).gather(-1, top[:, None])[:, 0]
    compare(last_row["probs"], probs, "lens/probs")

    for side in ["left", "right"]:
        ids, batch = inputs(meta[side])
        with torch.no_grad():
            logits = model(ids, **batch).logits
        compare(logits, expected[f"{side}/logits"], f"{side}/logits")
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
            found = common.greedy(model, ids, new, stop, **extra)
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

"""Checks the stored fixtures against Hugging Face transformers, without writing anything.

Every checkpoint is loaded again as a user would and its sites, padded sites, greedy ids and lens are compared with
`expected.safetensors`; a copy must also hold its original's weights bit for bit. Takes the names of cases, or does all.
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


def check_mixtures(model, meta, expected):
    """What is stored about the routing, by rules of our own."""
    config, ids = model.config, torch.tensor(meta["single"]["ids"])
    for i in range(config.num_hidden_layers):
        name = f"single/h.{i}.mlp.experts"
        if f"{name}.chosen" not in expected:
            continue
        logits, weights = expected[f"single/h.{i}.mlp.gate"].double(), expected[f"{name}.weights"].double()
        chosen, k = expected[f"{name}.chosen"], config.num_experts_per_tok
        ours = logits.softmax(-1).gather(-1, chosen)
        if config.model_type != "qwen3_moe" or config.norm_topk_prob:
            ours = ours / ours.sum(-1, keepdim=True)
        compare(ours, weights, f"{name}.weights")
        best = logits.sort(-1, descending=True).values
        assert torch.equal(logits.gather(-1, chosen), best[..., :k]), f"{name}.chosen are not the best"
        left_out = meta.get("tied", {}).get(f"h.{i}.mlp", []) if f"h.{i}.mlp" in meta.get("twins", []) else []
        total = torch.zeros_like(expected[name], dtype=torch.float64)
        for e in range(config.num_local_experts):
            row, position, slot = (chosen == e).nonzero(as_tuple=True)
            stored = expected.get(f"{name}.{e}")
            assert (stored is not None) == (e not in left_out and len(row) > 0), f"{name}.{e}"
            if stored is not None:
                total[row, position] += weights[row, position, slot, None] * stored
        real = ~torch.isin(chosen, torch.tensor(left_out, dtype=torch.int64)).any(-1)
        compare(total[real], expected[name][real].double(), name)

    # Hugging Face's faster ways are the same but for rounding. (Its usual one, `grouped_mm`, cannot have all our widths.)
    model.set_experts_implementation("batched_mm")
    with torch.no_grad():
        compare(model(ids).logits, expected["single/logits"], "logits of batched_mm", 5e-5)
    model.set_experts_implementation("eager")


def check_mxfp4(folder, model):
    """The experts' matrices, unpacked one value at a time."""
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    values += [-value for value in values]
    stored = load_file(folder / "model.safetensors")
    names = [name for name in stored if name.endswith("_blocks")]
    for name in names:
        blocks, scales = stored[name], stored[name.replace("_blocks", "_scales")]
        experts, outputs, groups, _ = blocks.shape
        matrix = torch.zeros(experts, groups * 32, outputs)
        for e, o, g in torch.cartesian_prod(*map(torch.arange, blocks.shape[:-1])).tolist():
            pairs = [values[half] for byte in blocks[e, o, g].tolist() for half in [byte & 15, byte >> 4]]
            matrix[e, 32 * g:32 * g + 32, o] = torch.tensor(pairs) * 2.0 ** (scales[e, o, g].item() - 127)
        assert torch.equal(matrix, model.get_parameter(name.removesuffix("_blocks"))), f"{name} means something else"
    return len(names)


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
    assert {value.dtype for value in run.sites.values() if value.is_floating_point()} == {torch.float64}
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

    if run.margins:
        check_mixtures(model, meta, expected)
    if "quantization_config" in json.loads((folder / "config.json").read_text()):
        assert check_mxfp4(folder, model) == 2 * len(run.layers)

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
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        try:
            print(f"{name:28} {check(path.parent):.1e}", flush=True)
        except Exception as reason:
            failed += 1
            print(f"{name:28} FAILED: {reason}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

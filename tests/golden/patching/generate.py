"""Activation patching of TransformerLens for some of the cases: what each patched run gives, in f64.

    pip install torch==2.13.0 transformers==5.23.0 transformer-lens==4.3.0 safetensors
    python tests/golden/patching/generate.py                 # or only some: gpt2_plain

For each case a file `NAME.safetensors`: `clean` and `corrupted`, the ids, `[row, position]`; `right` and `wrong`, the tokens of the
metric, `[row]`; and the metric, the logit difference at the last position, averaged over the rows: `metric/clean`,
`metric/corrupted`, and of runs of the corrupted ids with a value of the clean ones put in:

| key | shape | what is put in |
|---|---|---|
| `resid_pre`, `resid_mid`, `attn_out`, `mlp_out` | `[layer, position]` | that stream, or what that half adds to it, at a position |
| `z`, `q`, `pattern` | `[layer, head]` | of a head at all positions |
| `z_by_pos` | `[layer, position, head]` | of a head at a position |
| `path/q`, `path/stream` | `[layer, head]` | of a head, as far as it arrives at the queries of the last layer's first head, or at the last stream, while what the attention and MLPs between add stays |
| `path/q_mlps` | `[layer, head]` | the same for the queries, the MLPs between free to answer |
"""

import sys
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import common

CASES = ["gpt2_plain", "llama_one_kv_head", "llama_rope_scaled"]


def numbers(vocabulary):
    """A tokenizer, which the bridge wants to have; ids are given."""
    words = tokenizers.models.WordLevel({str(id): id for id in range(vocabulary)}, unk_token="0")
    special = dict(name_or_path="numbers", add_bos_token=True, unk_token="0", bos_token="1", eos_token="2", pad_token="0")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), **special)


def path_patch(bridge, clean, corrupted, metric, end, head, through_mlps):
    """`[layer, head]`: each head's way to `end`, by three runs with hooks."""
    layers, heads = bridge.cfg.n_layers, bridge.cfg.n_heads
    (_, source), (logits, base) = bridge.run_with_cache(clean), bridge.run_with_cache(corrupted)
    last = layers - 1
    found = torch.full((layers, heads), metric(logits).item(), dtype=torch.float64)

    def put(value, only):
        def hook(present, hook):
            present = present.clone()
            if only is None:
                present[:] = value
            else:
                present[:, :, only] = value[:, :, only]
            return present

        return hook

    for layer in range(layers):
        if end.endswith("hook_q") and layer == last:
            continue  # no head speaks to the queries of its own layer
        for sender in range(heads):
            hooks = [(f"blocks.{layer}.attn.hook_z", put(source[f"blocks.{layer}.attn.hook_z"], sender))]
            for block in range(layer, layers):
                if block > layer and not (end.endswith("hook_q") and block == last):
                    hooks.append((f"blocks.{block}.hook_attn_out", put(base[f"blocks.{block}.hook_attn_out"], None)))
                if not through_mlps and not (end.endswith("hook_q") and block == last):
                    hooks.append((f"blocks.{block}.hook_mlp_out", put(base[f"blocks.{block}.hook_mlp_out"], None)))
            arrived = []
            keep = (end, lambda value, hook: arrived.append(value.detach().clone()))
            bridge.run_with_hooks(corrupted, fwd_hooks=[*hooks, keep])
            found[layer, sender] = metric(bridge.run_with_hooks(corrupted, fwd_hooks=[(end, put(arrived[-1], head))]))
    return found


@torch.no_grad()
def write(name):
    folder = common.GOLDEN / name
    model = common.load(folder, torch.float64)
    vocabulary, length = model.config.vocab_size, 11
    torch.manual_seed(5)
    clean = torch.randint(vocabulary, (2, length))
    corrupted = clean.clone()
    # The rows differ from the third position on.
    for position in (2, 5, 9):
        corrupted[:, position] = (clean[:, position] + 7 + position) % vocabulary
    right, wrong = torch.tensor([3, 5]), torch.tensor([8, 13])

    def metric(logits):
        rows = torch.arange(len(clean))
        return (logits[rows, -1, right] - logits[rows, -1, wrong]).mean()

    with common.float64():
        bridge = TransformerBridge.boot_transformers(str(folder), hf_model=model, dtype=torch.float64, tokenizer=numbers(vocabulary))
        logits, cache = bridge.run_with_cache(clean)
        expected = {"metric/clean": metric(logits), "metric/corrupted": metric(bridge(corrupted))}
        assert (logits - model(clean).logits).abs().max() < 1e-10, "TransformerLens runs another model"
        for key, patch in {
            "resid_pre": patching.get_act_patch_resid_pre,
            "resid_mid": patching.get_act_patch_resid_mid,
            "attn_out": patching.get_act_patch_attn_out,
            "mlp_out": patching.get_act_patch_mlp_out,
            "z": patching.get_act_patch_attn_head_out_all_pos,
            "q": patching.get_act_patch_attn_head_q_all_pos,
            "pattern": patching.get_act_patch_attn_head_pattern_all_pos,
            "z_by_pos": patching.get_act_patch_attn_head_out_by_pos,
        }.items():
            expected[key] = patch(bridge, corrupted, cache, metric)
        last = bridge.cfg.n_layers - 1
        for key, end, head, mlps in [
            ("path/q", f"blocks.{last}.attn.hook_q", 0, False),
            ("path/q_mlps", f"blocks.{last}.attn.hook_q", 0, True),
            ("path/stream", f"blocks.{last}.hook_resid_post", None, False),
        ]:
            expected[key] = path_patch(bridge, clean, corrupted, metric, end, head, mlps)
    expected |= {"clean": clean, "corrupted": corrupted, "right": right, "wrong": wrong}
    save_file({key: value.contiguous() for key, value in expected.items()}, here / f"{name}.safetensors")


for name in [case for case in CASES if case in sys.argv[1:]] or CASES:
    write(name)
    print(name)

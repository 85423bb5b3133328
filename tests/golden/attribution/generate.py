"""Attribution by TransformerLens for cases of several families, in f64.

    pip install torch==2.13.0 transformers==5.23.0 transformer-lens==4.3.0 safetensors
    python tests/golden/attribution/generate.py                # or only some: gpt2_plain gemma2_softcaps

A folder for each case holds `case.json`: `ids` (clean), `corrupted`, and the tokens `right` and `wrong`, whose logit difference at the
last position is the metric; and `expected.safetensors`, f64:

- `direct/layers` `[term, position]`: `logit_attrs` of `decompose_resid` (`labels` in `case.json`), and `direct/heads`
  `[layer, head, position]`, of `stack_head_results`; `direct/neurons` `[layer, neuron, position]`. TransformerLens leaves out the
  weight of a final norm that is not folded into the unembedding, so it is folded here, and nothing else: that changes neither the terms
  nor what they add, but the constant, which TransformerLens does not report. Heads and neurons not of a model with norms between what
  they say and the stream: TransformerLens takes them before those.
- `patching/<hook>/site`, `/positions`, `/heads`: attribution patching, `(clean - corrupted) * gradient at the corrupted run`, summed
  over the rest, on the model as it is (no folding, no centring). `patching/metric` `[2]`: clean and corrupted.
- `integrated/zero`, `integrated/corrupted`, `times_input` `[position]`: integrated gradients along the embedding from zeros and from
  the corrupted input, 20 steps of the midpoint rule, and gradient times input.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import common
import transformer_lens_model

CASES = ["gpt2_plain", "llama_one_kv_head", "gemma2_softcaps", "gpt_neox_parallel"]
NORMED_AFTER = ["gemma2_softcaps"]
STEPS = 20


def write(name):
    folder = common.GOLDEN / name
    ids = torch.tensor(json.loads((folder / "case.json").read_text())["single"]["ids"])
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    corrupted = ids.clone()
    corrupted[0, 1] = (ids[0, 1] + 5) % vocabulary
    corrupted[0, 3] = (ids[0, 3] + 11) % vocabulary
    right, wrong = 7, 20
    expected, about = {}, dict(ids=ids.tolist(), corrupted=corrupted.tolist(), right=right, wrong=wrong)

    with common.float64():
        model = transformer_lens_model.load(folder, torch.float64)
        metric = lambda logits: logits[0, -1, right] - logits[0, -1, wrong]

        # Attribution patching.
        blocks = range(model.cfg.n_layers)
        hooks = [f"blocks.{i}.{hook}" for i in blocks for hook in ("attn.hook_z", "hook_attn_out", "hook_mlp_out", "hook_resid_post")]
        hooks += ["blocks.1.attn.hook_pattern"]
        def run(tokens):
            values, gradients = {}, {}
            def keep(store, name):
                def hook(value, hook):
                    store[name] = value.detach()
                return hook
            fwd_hooks = [(hook, keep(values, hook)) for hook in hooks]
            bwd_hooks = [(hook, keep(gradients, hook)) for hook in hooks]
            with model.hooks(fwd_hooks=fwd_hooks, bwd_hooks=bwd_hooks):
                found = metric(model(tokens))
                found.backward()
            model.zero_grad()
            return found.detach(), values, gradients
        clean, values, _ = run(ids)
        dirty, old, gradients = run(corrupted)
        expected["patching/metric"] = torch.stack([clean, dirty])
        for hook in hooks:
            product = (values[hook] - old[hook]) * gradients[hook]
            if hook.endswith("pattern"):
                each = product.sum((0, 3)).T  # [position, head]
            else:
                groups = model.cfg.n_heads if hook.endswith("hook_z") else 1
                each = product[0].reshape(product.shape[1], groups, -1).sum(-1)
            expected[f"patching/{hook}/site"] = product.sum()[None]
            expected[f"patching/{hook}/positions"] = each.sum(1).contiguous()
            if "attn.hook" in hook:
                expected[f"patching/{hook}/heads"] = each.sum(0).contiguous()

        # Gradients at the embedding.
        hf = common.load(folder, torch.float64)
        stream = {}
        first = next(module for module in hf.modules() if isinstance(module, torch.nn.ModuleList))[0]
        def embedded(tokens, replacement=None):
            def hook(module, arguments, keywords):
                x = arguments[0] if arguments else keywords["hidden_states"]
                stream["x"] = x
                if replacement is None:
                    return None
                return ((replacement, *arguments[1:]), keywords) if arguments else (arguments, {**keywords, "hidden_states": replacement})
            handle = first.register_forward_pre_hook(hook, with_kwargs=True)
            logits = hf(tokens).logits
            handle.remove()
            return metric(logits)
        def gradient(x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(embedded(ids, x), x)[0]
        embedded(corrupted)
        start = stream["x"].detach()
        embedded(ids)
        x = stream["x"].detach()
        expected["times_input"] = (x * gradient(x)).sum(-1)[0]
        for label, baseline in [("zero", torch.zeros_like(x)), ("corrupted", start)]:
            total = sum(gradient(baseline + (step + 0.5) / STEPS * (x - baseline)) for step in range(STEPS)) / STEPS
            expected[f"integrated/{label}"] = ((x - baseline) * total).sum(-1)[0]

        # Direct logit attribution.
        model.enable_compatibility_mode(
            disable_warnings=True, fold_ln=True, center_writing_weights=False, center_unembed=False, fold_value_biases=False)
        model.cfg.use_attn_result = True
        with torch.no_grad():
            _, cache = model.run_with_cache(ids)
            tokens = torch.tensor(right), torch.tensor(wrong)
            stack, labels = cache.decompose_resid(return_labels=True)
            about["labels"] = labels
            expected["direct/layers"] = cache.logit_attrs(stack, *tokens)[:, 0]
            layers, heads = model.cfg.n_layers, model.cfg.n_heads
            if name not in NORMED_AFTER:
                result = cache.logit_attrs(cache.stack_head_results(), *tokens)[:, 0]
                expected["direct/heads"] = result.view(layers, heads, -1)
                neurons = cache.logit_attrs(cache.stack_neuron_results(layer=-1), *tokens)[:, 0]
                expected["direct/neurons"] = neurons.view(layers, -1, ids.shape[1])
    out = here / name
    out.mkdir(exist_ok=True)
    (out / "case.json").write_text(json.dumps(about) + "\n")
    save_file({key: value.detach().contiguous() for key, value in expected.items()}, out / "expected.safetensors")


for name in [case for case in CASES if case in sys.argv[1:]] or CASES:
    write(name)
    print(name)

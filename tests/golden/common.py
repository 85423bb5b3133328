"""What the golden cases share: weights, checkpoints as users have them, and what Hugging Face says they give.

A case is a folder with a small random checkpoint, `case.json` and `expected.safetensors`; README.md beside this file
describes both. The references come from Hugging Face's eager implementation. Single sequences run in float64 with
Hugging Face's casts to float32 widened, see `float64`. Padded batches and generation run in float32, because a fully
masked row depends on the dtype's smallest number.
"""

import contextlib
import inspect
import json
import shutil
import sys
import textwrap
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, Mxfp4Config
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.gpt_neo import modeling_gpt_neo

import families
from families import gpt2, gpt_neo, multimodal, tiny  # noqa: F401: cases take them from here

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)

GOLDEN = Path(__file__).resolve().parent
PAD = 0  # prompts never contain it
PADDED = (6, 4)  # lengths of the rows of a padded batch
DTYPES = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def sizes(config):
    """(layers, heads) of any family."""
    config = config.get_text_config()
    return config.num_hidden_layers, config.num_attention_heads


# ---------------------------------------------------------------------------------------------------------- weights

def random_weights(config, seed, std):
    """A state dict in f32, under Hugging Face's names, that no error survives: every bias and norm matters."""
    rng = np.random.default_rng(seed)
    neutral = 0.0 if config.model_type.startswith("gemma") else 1.0  # Gemma multiplies by 1 + w
    weights = {}
    for name, like in AutoModelForCausalLM.from_config(config).state_dict().items():
        value = rng.standard_normal(tuple(like.shape))
        if name.endswith("bias"):
            value = 0.3 * value
        elif ".ln_" in name or "norm" in name:
            value = neutral + 0.4 * value
        elif name.endswith(("wte.weight", "wpe.weight")) or ".embed_" in name:
            value = 0.5 * value
        elif not name.endswith("sinks"):
            value = std * value
        weights[name] = torch.from_numpy(value.astype(np.float32))
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    return weights


def strip_prefix(weights):
    """The keys of a checkpoint saved from the base model, as the `gpt2` checkpoint on the hub has them."""
    return {name.removeprefix("transformer."): value for name, value in weights.items()}


def with_buffers(weights, config, bias_dtype=torch.float32):
    """Adds the attention's masks, which old checkpoints carry and nobody needs."""
    neo = config.model_type == "gpt_neo"
    n = config.max_position_embeddings
    prefix = "" if "wte.weight" in weights else "transformer."
    weights = dict(weights)
    for i in range(sizes(config)[0]):
        bias = torch.ones(n, n, dtype=torch.bool).tril()
        if neo and config.attention_layers[i] == "local":
            bias = bias ^ bias.tril(-config.window_size)
        name = f"{prefix}h.{i}.attn" + (".attention" if neo else "")
        weights[f"{name}.bias"] = bias.view(1, 1, n, n).to(bias_dtype)
        weights[f"{name}.masked_bias"] = torch.tensor(-1e4 if i % 2 == 0 else -1e9)
    return weights


def with_rotary_buffers(weights, config):
    """Adds what old checkpoints of Llama, GPT-NeoX and GPT-J carry and nobody needs: `inv_freq` is wrong. GPT-NeoX's head
    gets its name on the hub."""
    family, n = families.of(config), config.max_position_embeddings
    weights = {name.replace("lm_head", "embed_out") if config.model_type == "gpt_neox" else name: value
               for name, value in weights.items()}
    for i in range(sizes(config)[0]):
        name = f"{family.base}.{family.layers}.{i}.{family.attention}"
        if config.model_type != "gptj":
            weights[f"{name}.rotary_emb.inv_freq"] = torch.full((4,), 0.5 + i)
        if config.model_type != "llama":
            weights[f"{name}.bias"] = torch.ones(n, n, dtype=torch.bool).tril().view(1, 1, n, n)
            weights[f"{name}.masked_bias"] = torch.tensor(-1e9)
    return weights


def with_other_head(weights):
    """Adds a head that is not the embedding, whatever the config says."""
    wte = weights["transformer.wte.weight"]
    return {**weights, "lm_head.weight": 0.8 * wte.roll(1, 0) + 0.1}


def with_same_head(weights, config):
    """Adds the tied head as values of its own."""
    return {**weights, "lm_head.weight": weights["transformer.wte.weight"].clone()}


def as_views(weights, config):
    """The same values behind shared storages, strides and offsets, as state dicts sometimes are."""
    flat = torch.cat([torch.full((5,), 7.0)] + [v.flatten() for k, v in weights.items() if ".h.0." in k])
    views, at = {}, 5
    for name, value in weights.items():
        if ".h.0." in name:  # one storage for the block, each tensor at its offset
            views[name] = flat[at:at + value.numel()].view(value.shape)
            at += value.numel()
        elif value.dim() == 2 and ".h.1." in name:  # the other order in memory
            views[name] = value.t().contiguous().t()
        elif value.dim() == 1 and ".h.1." in name:  # every second value of a storage
            views[name] = value.repeat_interleave(2)[::2]
        else:
            views[name] = value
    wte = torch.cat([torch.ones(2, config.hidden_size), weights["transformer.wte.weight"]])[2:]
    views["transformer.wte.weight"] = views["lm_head.weight"] = wte
    views["transformer.ln_f.weight"] = torch.nn.Parameter(weights["transformer.ln_f.weight"])
    return with_buffers(views, config, torch.bool)


def as_float64(weights, config):
    wide = {name: value.double() for name, value in weights.items()}
    return with_buffers(wide, config, torch.int64)


def as_mixed(weights, config):
    """Four dtypes by turns: eight bits of precision fit in each of them."""
    kinds = ["f64", "f32", "f16", "bf16"]
    mixed = {name: value.to(DTYPES[kinds[i % 4]]) for i, (name, value) in enumerate(weights.items())}
    assert all((mixed[name].float() == value.float()).all() for name, value in weights.items())
    mixed = with_buffers(mixed, config, torch.uint8)
    mixed["transformer.h.1.attn.attention.bias"] = mixed["transformer.h.1.attn.attention.bias"].bool()
    mixed["transformer.h.2.attn.attention.bias"] = mixed["transformer.h.2.attn.attention.bias"].short()
    return mixed


def with_ties(weights, pair, twins):
    """Two rows of a router equal, 1 and 3 of 4: in layer `pair` between rows 0 and 2 nearly alike, so that both are chosen
    or neither; in layer `twins` their experts are equal too, so that it does not matter."""
    weights = dict(weights)
    for i in [pair, twins]:
        name = f"model.layers.{i}.mlp.gate.weight"
        gate = weights[name].clone()
        gate[3] = gate[1]
        if i == pair:
            middle, half = (gate[0] + gate[2]) / 2, 0.04 * (gate[0] - gate[2])
            gate[0], gate[2] = middle + half, middle - half
        weights[name] = gate
    for part in ["gate_up_proj", "down_proj"]:
        name = f"model.layers.{twins}.mlp.experts.{part}"
        weights[name] = weights[name].clone()
        weights[name][3] = weights[name][1]
    return weights


def with_mxfp4(weights, seed):
    """The experts' matrices as random MXFP4 instead: bytes of two values, and a scale for each 32 of them."""
    rng, packed = np.random.default_rng(seed + 2000), {}
    for name, value in weights.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed[name] = value
            continue
        experts, inputs, outputs = value.shape
        blocks = rng.integers(0, 256, (experts, outputs, inputs // 32, 16), dtype=np.uint8)
        scales = rng.integers(121, 126, blocks.shape[:-1], dtype=np.uint8)
        scales[0, 0, 0] = 0  # 2**-127: next to nothing
        packed[f"{name}_blocks"], packed[f"{name}_scales"] = torch.from_numpy(blocks), torch.from_numpy(scales)
    return packed


# ------------------------------------------------------------------------------------------------------ checkpoints

def write_safetensors(folder, weights):
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def write_sharded(folder, weights, shards=3, ending="safetensors"):
    """`shards` files and their index, cut where they are about even."""
    total = sum(v.nbytes for v in weights.values())
    groups, done = [{} for _ in range(shards)], 0
    for name, value in weights.items():
        groups[min(shards - 1, done * shards // total)][name] = value
        done += value.nbytes
    stem = "model" if ending == "safetensors" else "pytorch_model"
    where = {}
    for i, group in enumerate(groups):
        file = f"{stem}-{i + 1:05}-of-{shards:05}.{ending}"
        if ending == "safetensors":
            save_file(group, folder / file, metadata={"format": "pt"})
        else:
            save_bin(group, folder / file)
        where.update({name: file for name in group})
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    write_json(folder / f"{stem}.{ending}.index.json", index)


def write_model(folder, weights, config):
    """As `save_pretrained` names the tensors."""
    model = AutoModelForCausalLM.from_config(config)
    lacks = model.load_state_dict(weights, strict=False)
    assert not lacks.unexpected_keys and set(lacks.missing_keys) <= {"lm_head.weight"}
    model.save_pretrained(folder)


def save_bin(weights, path, legacy=False):
    """torch.save into an OrderedDict with `_metadata`, as `module.state_dict()` gives."""
    state = torch.nn.Module().state_dict()
    state.update(weights)
    if not legacy:
        torch.save(state, path)
        return
    # The legacy format names storages by their address: number them instead, so that the bytes repeat.
    numbers, original = {}, torch.UntypedStorage._cdata

    def numbered(storage):
        return numbers.setdefault(original.__get__(storage), 94000000 + len(numbers))

    torch.UntypedStorage._cdata = property(numbered)
    try:
        torch.save(state, path, _use_new_zipfile_serialization=False)
    finally:
        del torch.UntypedStorage._cdata  # the C attribute shows again


def write_bin(folder, weights):
    save_bin(weights, folder / "pytorch_model.bin")


def write_legacy_bin(folder, weights):
    save_bin(weights, folder / "pytorch_model.bin", legacy=True)


def write_sharded_bin(folder, weights):
    write_sharded(folder, weights, ending="bin")


# --------------------------------------------------------------------------------------------------------- the model

def load(folder, dtype):
    """What a user gets from the folder, in `dtype`."""
    packed = "quantization_config" in json.loads((folder / "config.json").read_text())
    options = dict(quantization_config=Mxfp4Config(dequantize=True)) if packed else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager", **options).eval()
    assert {p.dtype for p in model.parameters()} == {dtype}
    if any(name.endswith(".experts") for name, _ in model.named_modules()):
        model.set_experts_implementation("eager")
    for module in model.modules():
        if getattr(module, "rope_type", None) == "longrope":  # makes its long factors when first run: now, not widened
            module(torch.zeros(1), torch.zeros(1, 1, dtype=torch.int64))
    return model


@contextlib.contextmanager
def float64_attention():
    """Widens the attention casts to float64, by compiling Hugging Face's own source with that one word changed.

    GPT-Neo casts queries and keys to float32 whatever the model's dtype is, and so does GPT-2's
    `reorder_and_upcast_attn`. That is right for a model in half precision and spoils a reference in double.
    """
    patched = []
    for module, owner, method in [
        (modeling_gpt_neo, modeling_gpt_neo.GPTNeoSelfAttention, "_attn"),
        (modeling_gpt2, modeling_gpt2.GPT2Attention, "_upcast_and_reordered_attn"),
    ]:
        original = getattr(owner, method)
        source = textwrap.dedent(inspect.getsource(original))
        wide = source.replace("torch.float32", "torch.float64").replace(".float()", ".double()")
        assert wide != source
        scope = {}
        exec(wide, vars(module), scope)
        setattr(owner, method, scope[method])
        patched.append((owner, method, original))
    try:
        yield
    finally:
        for owner, method, original in patched:
            setattr(owner, method, original)


@contextlib.contextmanager
def float64():
    """Widens every cast to float32 of Hugging Face's: norms, softmax and rotation. Constants that a model has already
    made keep their float32 values."""
    def widened(function):
        def wide(x):
            return torch.float64 if x is torch.float32 else x
        return lambda *args, **kwargs: function(*map(wide, args), **{key: wide(x) for key, x in kwargs.items()})

    with contextlib.ExitStack() as stack:
        stack.enter_context(float64_attention())
        for owner, name in [(torch.Tensor, "to"), (torch, "softmax"), (torch.nn.functional, "softmax")]:
            stack.enter_context(mock.patch.object(owner, name, widened(getattr(owner, name))))
        stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        yield


def router(mlp):
    """The router of a mixture of experts."""
    return mlp.router if hasattr(mlp, "router") else mlp.gate


def tied(mlp):
    """(the experts whose rows of the router are equal, whether they themselves are); one such pair at most."""
    rows = [row.tolist() for row in router(mlp).weight]
    pairs = [[a, b] for b in range(len(rows)) for a in range(b) if rows[a] == rows[b]]
    if not pairs:
        return [], False
    (a, b), = pairs
    return [a, b], all(torch.equal(p[a], p[b]) for p in mlp.experts.parameters())


def routing_margin(logits, k, pair, twins):
    """(what the choice of `k` experts hangs on, what their order does) for each token, in probability."""
    best = logits.double().softmax(-1).sort(-1, descending=True).values
    gaps = torch.nn.functional.pad(best[:, :-1] - best[:, 1:], (1, 1), value=torch.inf)  # gaps[k]: the k-th and the next
    border = gaps[:, k]
    if twins:  # where they are at the border, either may be chosen
        border = torch.where(border == 0, torch.minimum(gaps[:, k - 1], gaps[:, k + 1]), border)
    within = gaps[:, :k].masked_fill(gaps[:, :k] == 0, torch.inf) if pair else gaps[:, :k]
    return border, within.min(-1).values


class Run:
    """One forward pass: every module's output under its name, the extra sites, and each block's inputs."""

    def __init__(self, model, ids, **inputs):
        self.model, self.sites, self.calls, self.repeated, self.shape = model, {}, [], set(), ids.shape
        self.real = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        self.margins = []  # of every router: `routing_margin`, infinite at padding
        self.family = family = families.of(model.config)
        self.base = model.get_submodule(family.base)
        self.layers = self.base.get_submodule(family.layers)
        self.decoder = [(name, m) for name, m in self.base.named_children() if name in family.decoder]
        self.decoder.sort(key=lambda item: family.decoder.index(item[0]))
        layers, heads = sizes(model.config)
        handles = [m.register_forward_hook(self.keep(name)) for name, m in model.named_modules()
                   if f"{name}.".startswith((f"{family.base}.", "lm_head.")) and ".experts." not in name]
        for i, layer in enumerate(self.layers):
            attn = self.attention(i)
            pattern = f"h.{i}.attn.pattern"
            handles.append(layer.register_forward_pre_hook(self.call, with_kwargs=True))
            if not family.parallel:
                first = layer.get_submodule(family.mlp[0])
                handles.append(first.register_forward_pre_hook(self.enter(f"h.{i}.resid_mid")))
            handles += [
                attn.register_forward_hook(lambda _, __, out, name=pattern: self.put(name, out[1])),
                attn.get_submodule(family.output).register_forward_pre_hook(
                    self.enter(f"h.{i}.attn.z", lambda z: z.unflatten(-1, (heads, -1)))),
            ]
            if mixture := self.mixture(i):
                handles += [
                    router(mixture).register_forward_hook(lambda _, __, out, i=i: self.route(i, *out)),
                    mixture.experts.register_forward_hook(lambda _, args, out, i=i: self.mix(i, out, *args)),
                ]
        with torch.no_grad(), self.watch_rotation():
            out = model(ids, use_cache=False, **inputs)
        for handle in handles:
            handle.remove()
        for name in self.repeated:
            del self.sites[name]
        self.put("logits", out.logits)
        self.put("input", self.calls[0][0])
        norm = [name for name, _ in self.decoder if "norm" in name or name == "ln_f"]
        self.put("final_layernorm", self.sites[f"{family.base}.{norm[0]}" if norm else self.name(layers - 1)])
        if model.config.model_type in ["gpt2", "gpt_neo"]:
            for i in range(layers):  # GPT-2's eager attention calls F.dropout, not the module
                name = next(n for n, m in model.named_modules() if m is self.attention(i).attn_dropout)
                self.put(name, self.sites[f"h.{i}.attn.pattern"])

    def name(self, i):
        return f"{self.family.base}.{self.family.layers}.{i}"

    def attention(self, i):
        return self.layers[i].get_submodule(self.family.attention)

    def mixture(self, i):
        """The MLP of a layer, if it is a mixture of experts."""
        mlp = getattr(self.layers[i], "mlp", None)
        return mlp if hasattr(mlp, "experts") else None

    def route(self, i, logits, weights, chosen):
        mlp = self.mixture(i)
        self.put(f"h.{i}.mlp.gate", logits)
        self.put(f"h.{i}.mlp.experts.chosen", chosen)
        self.put(f"h.{i}.mlp.experts.weights", weights)
        margins = routing_margin(logits, router(mlp).top_k, *tied(mlp))
        self.margins.append([m.unflatten(0, self.shape).masked_fill(~self.real, torch.inf) for m in margins])

    def mix(self, i, out, states, chosen, _):
        """Keeps what every expert gives for the real tokens it got, by running it alone with a weight of 1."""
        self.put(f"h.{i}.mlp.experts", out)
        (pair, twins), experts = tied(self.mixture(i)), self.mixture(i).experts
        for e in range(experts.num_experts):
            own = states[(chosen == e).any(-1) & self.real.flatten()]
            if len(own) and not (twins and e in pair):
                index = torch.full((len(own), 1), e)
                self.sites[f"h.{i}.mlp.experts.{e}"] = experts.forward(own, index, torch.ones_like(own[:, :1])).clone()

    def check_routing(self):
        for border, within in self.margins:
            gap = min(border.min(), within.min()).item()
            assert gap > 1e-3, f"the choice of an expert hangs on {gap:.1e}: choose another seed"
        return self

    def watch_rotation(self):
        """Keeps what enters the scores: queries and keys after their norms and rotation."""
        if not self.family.rotary:
            return contextlib.nullcontext()
        owner, name = sys.modules[type(self.attention(0)).__module__], "eager_attention_forward"
        if not hasattr(owner, name):  # GPT-J
            owner, name = type(self.attention(0)), "_attn"
        original = getattr(owner, name)

        def watching(module, query, key, *args, **kwargs):
            self.put(f"h.{module.layer_idx}.attn.q_rot", query.transpose(1, 2))
            self.put(f"h.{module.layer_idx}.attn.k_rot", key.transpose(1, 2))
            return original(module, query, key, *args, **kwargs)

        return mock.patch.object(owner, name, watching)

    def put(self, name, value):
        if value.dim() == 2:  # OPT runs its MLP over all positions of the batch as rows
            value = value.unflatten(0, self.shape)
        self.sites[name] = value.detach().clone()

    def keep(self, name):
        def hook(_, __, out):
            if hasattr(out, "last_hidden_state"):
                out = out.last_hidden_state
            if name in self.sites:
                self.repeated.add(name)
            self.put(name, out[0] if isinstance(out, tuple) else out)
        return hook

    def enter(self, name, shape=lambda x: x):
        return lambda _, args: self.put(name, shape(args[0]))

    def call(self, _, args, kwargs):
        self.calls.append((args[0].detach().clone(), args[1:], kwargs))

    def block(self, i, stream):
        """Block `i` over another stream, with the mask it had."""
        _, args, kwargs = self.calls[i]
        out = self.layers[i](stream, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def mlp(self, i, stream):
        """The MLP half of block `i`."""
        out = stream
        for name in self.family.mlp:
            out = self.layers[i].get_submodule(name)(out)
        out = stream + (out[0] if isinstance(out, tuple) else out)
        for name in self.family.after:
            out = self.layers[i].get_submodule(name)(out)
        return out

    def decode(self, stream):
        """What turns the last stream into logits."""
        for _, module in self.decoder:
            stream = module(stream)
        logits, cap = self.model.lm_head(stream), getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def decoder_names(self):
        """`decode` in neutral names."""
        names = [name if name == "project_out" else "final_layernorm" for name, _ in self.decoder]
        return names + ["lm_head"]


# ---------------------------------------------------------------------------------------------------------- the lens

def lens_rows(run):
    """The rows in the order they run: (name, site of the stream)."""
    rows = [("input", "input")]
    for i in range(len(run.layers)):
        rows += [(f"h.{i}.attn", f"h.{i}.resid_mid")] * (not run.family.parallel) + [(f"h.{i}", run.name(i))]
    return rows


@torch.no_grad()
def lens(run, first=None):
    """The measures of every row, in f64. `first`: None, 'block' or 'mlp', what of the last block the decoder runs.

    Every measure compares with the model's real output. Gives the row names and the tensors.
    """
    last = len(run.layers) - 1
    left_out = {None: [], "block": [f"h.{last}.attn", f"h.{last}"], "mlp": [f"h.{last}"]}[first]
    step = {None: lambda x: x, "block": lambda x: run.block(last, x), "mlp": lambda x: run.mlp(last, x)}[first]
    rows = [row for row in lens_rows(run) if row[0] not in left_out]
    decoded = torch.stack([run.decode(step(run.sites[site]))[0] for _, site in rows])
    assert decoded.dtype == torch.float64

    final = run.sites["logits"][0]
    vocab = final.shape[-1]
    top = final.argmax(-1)
    log_q, log_p = decoded.log_softmax(-1), final.log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    at_top = decoded.gather(-1, top.expand(len(rows), -1)[..., None])
    clip = 1 / (10 * vocab)
    clipped_p, clipped_q = p.clamp(min=clip), q.clamp(min=clip)

    gaps = (decoded - at_top).abs().scatter(-1, top.expand(len(rows), -1)[..., None], torch.inf)
    assert gaps.min() > 1e-4, f"a rank hangs on {gaps.min():.1e}: choose another seed"
    best = decoded.topk(2).values
    assert (best[..., 0] - best[..., 1]).min() > 1e-4, "a row's top-1 is nearly a tie: choose another seed"

    measures = {
        "logits": at_top[..., 0],
        "probs": q.gather(-1, top.expand(len(rows), -1)[..., None])[..., 0],
        "ranks": 1 + (decoded > at_top).sum(-1),
        "kl": (p * (log_p - log_q)).sum(-1),
        "kl_reverse": (q * (log_q - log_p)).sum(-1),
        "kl_clipped": (clipped_p * (clipped_p / clipped_q).log()).sum(-1),
        "top1": decoded.argmax(-1),
        "entropy": -(q * log_q).sum(-1),
    }
    return [name for name, _ in rows], {k: v.double() for k, v in measures.items()}, top


# ---------------------------------------------------------------------------------------------------------- the case

def write_json(path, value):
    """JSON with one key a line, and lists of numbers kept on theirs."""
    def lines(value, indent):
        inner = indent + "  "
        if isinstance(value, dict) and value:
            body = ",\n".join(f"{inner}{json.dumps(k)}: {lines(v, inner)}" for k, v in value.items())
            return f"{{\n{body}\n{indent}}}"
        return json.dumps(value)
    path.write_text(lines(value, "") + "\n")


def error(found, expected):
    """The largest difference, relative to the largest value (or to 1 if that is smaller)."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def padded(ids, side, lengths, opt):
    """Two rows of ids, the second short, and what Hugging Face is given for them."""
    long, short = lengths
    mask = torch.ones(2, long, dtype=torch.int64)
    mask[1, slice(0, long - short) if side == "left" else slice(short, long)] = 0
    ids = ids[:, :long].masked_fill(mask == 0, PAD)
    inputs = {"attention_mask": mask}
    if side == "left":  # as transformers 5.23's generate() makes them, or OPT's own code
        inputs["position_ids"] = (mask.cumsum(-1) - 1).masked_fill(mask == 0, -1 if opt else 0)
    return ids, inputs


def default_positions(mask, opt):
    """The positions that a model takes where it is given none."""
    return mask.cumsum(-1) * mask - 1 if opt else torch.arange(mask.shape[1]).expand(mask.shape)


def greedy(model, ids, new, eos=None, use_cache=True, **inputs):
    """generate()'s ids; refuses a path on which rounding could choose."""
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=new, eos_token_id=eos, pad_token_id=PAD, use_cache=use_cache,
        output_scores=True, return_dict_in_generate=True)
    out = model.generate(ids, **inputs)
    best = torch.stack(out.scores).topk(2).values
    assert (best[..., 0] - best[..., 1]).min() > 5e-3, "greedy is nearly a tie: choose another seed"
    return out.sequences


def pick_eos(sequences, prompt):
    """An id that ends the rows of a batch at different lengths, and none at once."""
    for token in sorted(set(sequences[0, prompt + 1:].tolist()) - {PAD}):
        ends = [(row == token).nonzero().flatten().tolist() for row in sequences[:, prompt:]]
        ends = [end[0] if end else 99 for end in ends]
        if min(ends) > 0 and ends[0] != ends[1]:
            return token
    raise AssertionError("no id ends the rows at different lengths: choose another seed")


def versions():
    return {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}


def folder_of(file):
    """The folder of a generate.py, emptied of what it made before."""
    folder = Path(file).resolve().parent
    for old in folder.iterdir():
        if old.name != "generate.py":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    return folder


def settings(folder):
    """What Hugging Face reads in config.json."""
    read = AutoConfig.from_pretrained(folder).to_dict()
    (read.get("rope_parameters") or {}).pop("type", None)  # stays beside `rope_type`, which was made of it
    read.pop("_sliding_window_pattern", None)  # so does this beside `layer_types`
    return read


def case(file, config, seed, *, std=0.4, tokens=8, new_tokens=8, dtype="f32", change=None, write=write_safetensors,
         raw_config=None, older=None, full_padding=False, decoders=False, eos=False, lengths=PADDED):
    """Writes the checkpoint and what it must give.

    change         the state dict as it goes to disk, from the one under Hugging Face's names
    raw_config     config.json's contents where Hugging Face would not write it so
    older          writes config.json in the spelling of transformers 4, with these keys set or (None) removed
    full_padding   keep every site for the padded batches, not only blocks and logits
    decoders       also the lens through the last block, and through its MLP
    eos            also generation that ends, with an end-of-text id that fires
    lengths        of the rows of the padded batches
    """
    folder = folder_of(file)
    weights = {k: v.to(DTYPES[dtype]) for k, v in random_weights(config, seed, std).items()}
    write(folder, change(weights) if change else weights)
    if raw_config is None:
        config.dtype = DTYPES[dtype]
        config.save_pretrained(folder)
    else:
        write_json(folder / "config.json", raw_config)
    if older is not None:
        saved = settings(folder)
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(families.older(raw, older), indent=2) + "\n")
        assert {**settings(folder), **saved} == settings(folder), "the older spelling says something else"
    (folder / "generation_config.json").unlink(missing_ok=True)

    opt = config.model_type == "opt"
    rng = np.random.default_rng(seed + 1000)
    ids = torch.from_numpy(rng.integers(3, config.get_text_config().vocab_size, (2, tokens)))
    expected = {}
    meta = {
        "summary": read_docstring(folder / "generate.py"),
        "family": config.model_type, "seed": seed, "dtype_on_disk": dtype, **versions(),
        "single": {"ids": ids[:1].tolist()},
    }

    # One sequence, in float64.
    model = load(folder, torch.float64)
    with float64():
        single = Run(model, ids[:1]).check_routing()
        assert {v.dtype for v in single.sites.values() if v.is_floating_point()} == {torch.float64}
        expected.update({f"single/{k}": v.type(torch.float32) if v.is_floating_point() else v
                         for k, v in single.sites.items()})
        meta["lens"], top = {}, None
        last = sizes(config)[0] - 1
        firsts = [("lens_block", "block", f"h.{last}"), ("lens_mlp", "mlp", f"h.{last}.mlp")]
        for prefix, first, part in [("lens", None, None)] + firsts[:1 if single.family.parallel else 2] * decoders:
            names, measures, top = lens(single, first)
            meta["lens"][prefix] = {"names": names, "decoder": [part] * (part is not None) + single.decoder_names()}
            expected.update({f"{prefix}/{k}": v for k, v in measures.items()})
        expected["lens/final_top1"] = top

    # The same in float32 says what rounding alone does.
    model = load(folder, torch.float32)
    noise = Run(model, ids[:1]).sites
    noise = max(error(noise[k].double(), v) for k, v in single.sites.items())
    meta["f32_error"] = float(f"{noise:.1e}")
    meta["tolerance"] = float(f"{max(2e-5, 8 * noise):.1e}")

    # Padded batches, in float32.
    blocks = {single.name(i) for i in range(last + 1)}
    for side in ["left", "right"]:
        batch, inputs = padded(ids, side, lengths, opt)
        run = Run(model, batch, **inputs).check_routing()
        kept = {k: v for k, v in run.sites.items() if full_padding or k == "logits" or k in blocks}
        expected.update({f"{side}/{k}": v for k, v in kept.items()})
        mask = inputs["attention_mask"]
        positions = inputs.get("position_ids", default_positions(mask, opt))
        meta[side] = {"ids": batch.tolist(), "attention_mask": mask.tolist(),
                      "position_ids": positions.tolist(), "sites": "all" if full_padding else "blocks"}

    # Generation, in float32.
    batch, inputs = padded(ids, "left", lengths, opt)
    inputs.pop("position_ids")  # generate() makes them
    meta["generate"] = {"max_new_tokens": new_tokens, "pad_id": PAD}
    expected["generate/greedy"] = greedy(model, ids[:1], new_tokens)
    expected["generate/greedy_left"] = greedy(model, batch, new_tokens, **inputs)
    if eos:
        stop = meta["generate"]["eos_id"] = pick_eos(expected["generate/greedy_left"], batch.shape[1])
        expected["generate/eos"] = greedy(model, ids[:1], new_tokens, stop)
        expected["generate/eos_left"] = greedy(model, batch, new_tokens, stop, **inputs)
    if single.margins:
        long = expected["generate/greedy_left"]
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, new_tokens), value=1)
        Run(model, expected["generate/greedy"]).check_routing()
        Run(model, long, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).check_routing()
        ties = {f"h.{i}.mlp": tied(single.mixture(i)) for i in range(last + 1) if single.mixture(i)}
        if any(pair for pair, _ in ties.values()):
            meta["tied"] = {name: pair for name, (pair, _) in ties.items() if pair}
            meta["twins"] = [name for name, (_, twins) in ties.items() if twins]

    meta["sites"] = [k.removeprefix("single/") for k in expected if k.startswith("single/")]
    save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")
    write_json(folder / "case.json", meta)


def copy_of(file, original, write, change=None):
    """The weights of another case, value for value, in another container: its expectations are the other's."""
    folder = folder_of(file)
    source = GOLDEN / original
    config = AutoConfig.from_pretrained(source)
    weights = load_file(source / "model.safetensors")
    write(folder, change(weights, config) if change else weights)
    shutil.copy(source / "config.json", folder)
    meta = {"summary": read_docstring(folder / "generate.py"), "family": config.model_type, **versions(),
            "same_as": original}
    write_json(folder / "case.json", meta)


def read_docstring(path):
    return " ".join(path.read_text().split('"""')[1].split())

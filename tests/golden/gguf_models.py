"""Writes `gguf_models/`: tiny random models in GGUF, and beside each the same model as Hugging Face has it.

    pip install torch==2.13.0 transformers==5.23.0 safetensors gguf==0.19.0
    python tests/golden/gguf_models.py              # all of them, or those named
    python tests/golden/gguf_models.py --check      # writes nothing: reads what is stored as transformers reads GGUF

Each folder holds `f32.gguf`, `mixed.gguf` (every matrix in another format), and `config.json` with `model.safetensors`:
every tensor's values, under its name on the hub, that both GGUF files stand for bit for bit. They come about as follows:
random weights are brought into GGUF's form as llama.cpp's `convert_hf_to_gguf.py` does (names, order of rows, what is
joined), each is stored in its format, read back by gguf-py, and brought into Hugging Face's form again. `llama_k` has
only `mixed.gguf`.

Keys and values of the metadata are those of that script in its version of 2026. This file is not called `gguf.py`
because Python would take it for the package.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Callable, NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import common
from common import gpt2, tiny

FOLDER = Path(__file__).resolve().parent / "gguf_models"
# By turns for the matrices of mixed.gguf whose rows are whole blocks; the last has no quantiser in gguf-py.
FORMATS = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.BF16, Type.F16, Type.IQ4_NL]
K_FORMATS = [Type.Q4_K, Type.Q6_K, Type.Q5_K, Type.Q3_K, Type.Q2_K, Type.IQ4_XS]
# Where a block has its scales, f16.
SCALES = {Type.IQ4_NL: [0], Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2],
          Type.Q6_K: [208], Type.IQ4_XS: [0]}


# ------------------------------------------------------------------------------------------- from one form to the other

class Rule(NamedTuple):
    """GGUF's tensors `stored` are made of Hugging Face's tensors `ours` by `there`, and these of those by `back`."""
    stored: list
    ours: list
    there: Callable
    back: Callable


def same(x):
    return x


def permute(heads):
    """Llama's rows: halves of a head's rotation beside each other instead of one after the other."""
    def there(x):
        return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    def back(x):
        return x.reshape(heads, x.shape[0] // heads // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
    return there, back


def join_heads(heads):
    """GPT-NeoX's rows: all queries, all keys, all values instead of head by head."""
    def there(x):
        return x.reshape(heads, 3, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

    def back(x):
        return x.reshape(3, heads, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
    return there, back


def swap(x):
    return x.swapaxes(-1, -2)


def add_one(x):
    return x + np.float32(1)


def take_one(x):
    return x - np.float32(1)


def one(stored, ours, there=same, back=same):
    return Rule([stored], [ours], lambda x: [there(x)], lambda x: [back(x)])


def stacked(stored, ours):
    """One matrix for each expert, in one tensor."""
    return Rule([stored], ours, lambda *x: [np.stack(x)], lambda x: list(x))


def by_turns(stored, ours, transposed):
    """GPT-OSS's gate and up, which stand by turns, apart; its matrices are transposed too."""
    turn = swap if transposed else same

    def there(x):
        x = turn(x)
        return [x[:, ::2], x[:, 1::2]]

    def back(gate, up):
        return [turn(np.stack([gate, up], axis=2).reshape(gate.shape[0], -1, *gate.shape[2:]))]
    return Rule(stored, [ours], there, back)


def rules(config, arch, names):
    """What is to be done with the tensors of these names."""
    name_map = gguf.get_tensor_name_map(arch, config.num_hidden_layers)

    def stored(name):
        found = name_map.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found, name
        return found

    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    found, experts = [], {}
    for name in names:
        parts = name.split(".")
        if config.model_type in ("mixtral", "qwen3_moe") and ".experts." in name:
            layer, expert, matrix = parts[2], int(parts[5]), parts[6]
            merged = f"layers.{layer}.feed_forward.experts.{matrix}.weight" if config.model_type == "mixtral" \
                else f"model.layers.{layer}.mlp.experts.{matrix}.weight"
            experts.setdefault(stored(merged), {})[expert] = name
        elif config.model_type == "gpt_oss" and ".experts.gate_up_proj" in name:
            bias = name.endswith("_bias")
            gate = name.removesuffix("_bias").replace("gate_up_proj", "gate_proj") + (".bias" if bias else ".weight")
            found.append(by_turns([stored(gate), stored(gate.replace("gate_proj", "up_proj"))], name, not bias))
        elif config.model_type == "gpt_oss" and name.endswith("experts.down_proj"):
            found.append(one(stored(name + ".weight"), name, swap, swap))
        elif config.model_type == "gpt_oss" and name.endswith("experts.down_proj_bias"):
            found.append(one(stored(name.replace("_bias", ".bias")), name))
        elif name.endswith("sinks"):
            found.append(one(stored(name + ".weight"), name))
        elif arch == gguf.MODEL_ARCH.LLAMA and parts[-2] in ("q_proj", "k_proj"):
            found.append(one(stored(name), name, *permute(heads if parts[-2] == "q_proj" else kv_heads)))
        elif config.model_type.startswith("gemma") and name.endswith("norm.weight"):
            found.append(one(stored(name), name, add_one, take_one))
        elif config.model_type == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            found.append(one(stored(name), name, np.transpose, np.transpose))
        elif config.model_type == "gpt_neox" and "query_key_value" in name:
            found.append(one(stored(name), name, *join_heads(heads)))
        else:
            found.append(one(stored(name), name))
    return found + [stacked(name, [ours[i] for i in range(len(ours))]) for name, ours in experts.items()]


# ------------------------------------------------------------------------------------------------------------- metadata

def describe(writer, config):
    """The keys that `TextModel.set_gguf_parameters` writes for every architecture that does not write its own."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if "sliding_attention" in config.rope_parameters:
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "num_local_experts", None):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)


def llama(writer, config):
    describe(writer, config)
    writer.add_vocab_size(config.vocab_size)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    rope = config.rope_parameters
    if rope["rope_type"] != "llama3":
        return {}
    frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    factors = []
    for wavelength in (2 * np.pi / frequencies).tolist():
        smooth = (old / wavelength - low) / (high - low)
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(rope["factor"])
        else:
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    assert len(set(factors)) > 2  # one of each kind
    return {"rope_freqs.weight": np.array(factors, dtype=np.float32)}


def qwen3_moe(writer, config):
    describe(writer, config)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def gemma(writer, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)


def gemma2(writer, config):
    gemma(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def gemma3(writer, config):
    describe(writer, config)
    writer.add_sliding_window(config.sliding_window)


def gpt2_keys(writer, config):
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def gpt_neox(writer, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    head_dim = config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(config.rope_parameters["partial_rotary_factor"] * head_dim))
    writer.add_head_count(config.num_attention_heads)
    writer.add_parallel_residual(config.use_parallel_residual)
    writer.add_layer_norm_eps(config.layer_norm_eps)


def phi2(writer, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(4 * config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    rotary = config.rope_parameters["partial_rotary_factor"]
    writer.add_rope_dimension_count(int(rotary * config.hidden_size) // config.num_attention_heads)
    writer.add_add_bos_token(False)


def phi3(writer, config):
    rope = config.rope_parameters
    original = rope["original_max_position_embeddings"]
    writer.add_context_length(config.max_position_embeddings)
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rotary = rope.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(rotary * config.hidden_size) // config.num_attention_heads)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_sliding_window(config.sliding_window or 0)
    if "long_factor" not in rope:
        return {}
    scale = config.max_position_embeddings / original
    writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(scale) / np.log(original))))
    return {"rope_factors_long.weight": np.array(rope["long_factor"], dtype=np.float32),
            "rope_factors_short.weight": np.array(rope["short_factor"], dtype=np.float32)}


def gpt_oss(writer, config):
    describe(writer, config)
    writer.add_sliding_window(config.sliding_window)
    writer.add_expert_feed_forward_length(config.intermediate_size)


def tokens(writer, config, model):
    """A vocabulary of as many tokens as the embedding has rows."""
    special = ["<unk>", "<s>", "</s>"]
    texts = special + [chr(0x21 + i) for i in range(config.vocab_size - len(special))]
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    if model == "llama":
        writer.add_token_scores([-float(i) for i in range(len(texts))])
    writer.add_token_types([2, 3, 3] + [1] * (len(texts) - 3))
    if model == "gpt2":
        writer.add_token_merges(["! \"", "# $"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


# --------------------------------------------------------------------------------------------------------------- models

class Case(NamedTuple):
    arch: gguf.MODEL_ARCH
    config: object
    keys: Callable
    formats: list = FORMATS
    tokenizer: str = "gpt2"
    peer: bool = True  # whether transformers reads it; a Mistral is a Llama to it, as to llama.cpp


A = gguf.MODEL_ARCH
SIZES = dict(hidden_size=32, intermediate_size=64, num_key_value_heads=2)
EXPERTS = dict(SIZES, intermediate_size=32, num_local_experts=3, num_experts_per_tok=2)
LONG = dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.3, 1.1, 1.2],
            long_factor=[1.5, 6.0, 2.0, 3.0])
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=256)
YARN = dict(rope_type="yarn", rope_theta=150000.0, factor=4.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
            original_max_position_embeddings=8)
LOCAL = dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
             sliding_attention=dict(rope_type="default", rope_theta=10000.0))

CASES = {
    "llama": lambda: Case(A.LLAMA, tiny("llama", **SIZES), llama, tokenizer="llama"),
    "llama_k": lambda: Case(A.LLAMA, tiny("llama", vocab_size=40, hidden_size=256, intermediate_size=16,
                                          num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                                          head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3),
                            llama, K_FORMATS, "llama"),
    "mistral": lambda: Case(A.LLAMA, tiny("mistral", **SIZES, head_dim=8, sliding_window=None), llama,
                            tokenizer="llama"),
    "mixtral": lambda: Case(A.LLAMA, tiny("mixtral", **EXPERTS), llama, tokenizer="llama", peer=False),
    "qwen2": lambda: Case(A.QWEN2, tiny("qwen2", **SIZES, rope_parameters=dict(rope_type="default", rope_theta=1e6)),
                          describe),
    "qwen3": lambda: Case(A.QWEN3, tiny("qwen3", **SIZES, head_dim=16, tie_word_embeddings=True), describe),
    "qwen3moe": lambda: Case(A.QWEN3MOE, tiny("qwen3_moe", **EXPERTS, head_dim=8, moe_intermediate_size=32,
                                              norm_topk_prob=True), qwen3_moe),
    "gemma": lambda: Case(A.GEMMA, tiny("gemma", **dict(SIZES, num_key_value_heads=1), head_dim=16), gemma,
                          tokenizer="llama", peer=False),
    "gemma2": lambda: Case(A.GEMMA2, tiny("gemma2", **SIZES, head_dim=8, sliding_window=4, query_pre_attn_scalar=8),
                           gemma2, tokenizer="llama"),
    "gemma3": lambda: Case(A.GEMMA3, tiny("gemma3_text", **dict(SIZES, num_key_value_heads=1), head_dim=16,
                                          sliding_window=4, query_pre_attn_scalar=16, rope_parameters=LOCAL,
                                          layer_types=["sliding_attention", "sliding_attention"]),
                           gemma3, tokenizer="llama"),
    "gpt2": lambda: Case(A.GPT2, gpt2(n_embd=32, n_layer=2, n_head=4), gpt2_keys),
    "gptneox": lambda: Case(A.GPTNEOX, tiny("gpt_neox", hidden_size=32, intermediate_size=64), gpt_neox, peer=False),
    "phi2": lambda: Case(A.PHI2, tiny("phi", hidden_size=32, intermediate_size=128, num_key_value_heads=4), phi2,
                         peer=False),
    "phi3": lambda: Case(A.PHI3, tiny("phi3", **SIZES, original_max_position_embeddings=8, sliding_window=20,
                                      rope_parameters=LONG), phi3, tokenizer="llama"),
    "olmo2": lambda: Case(A.OLMO2, tiny("olmo2", **SIZES), describe, peer=False),
    "gpt_oss": lambda: Case(A.GPT_OSS, tiny("gpt_oss", **EXPERTS, head_dim=8, sliding_window=4, rope_parameters=YARN),
                            gpt_oss, peer=False),
}


def random_blocks(rng, shape, kind):
    """Blocks with random bytes and small scales, for formats that gguf-py only reads."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (*shape[:-1], shape[-1] // elements, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scales = rng.uniform(-2e-4, 2e-4, data.shape[:-1]).astype(np.float16)
        data[..., at:at + 2] = scales[..., None].view(np.uint8)
    return data.reshape(*shape[:-1], -1)


def pack(name, x, formats, rng):
    """(format, bytes) of a tensor of mixed.gguf."""
    fits = [kind for kind in formats if x.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0]
    if x.ndim == 1 or name.endswith(("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", ".bias")):
        return Type.F32, x
    if not fits:
        return Type.F16, quantize(x, Type.F16)
    kind = fits[0]
    formats.remove(kind)  # and put it last
    formats.append(kind)
    if "_exps" in name and name.startswith("blk.0") and rng.random() < 0.5:
        kind = Type.MXFP4
    return kind, random_blocks(rng, x.shape, kind) if kind in SCALES else quantize(x, kind)


def hub_weights(config, seed):
    """Random weights under their names on the hub, where experts are matrices of their own."""
    with tempfile.TemporaryDirectory() as folder:
        common.write_model(Path(folder), common.random_weights(config, seed, 0.4), config)
        return load_file(Path(folder) / "model.safetensors")


def write_gguf(path, case, kind, tensors):
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[case.arch])
    writer.add_name(f"tiny {case.config.model_type}")
    extra = case.keys(writer, case.config) or {}
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if kind == "f32" else gguf.LlamaFileType.MOSTLY_Q4_0)
    tokens(writer, case.config, case.tokenizer)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, x in extra.items():
        writer.add_tensor(name, x)
    for name, (format, data) in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=format)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(name, case, seed):
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config, rng = case.config, np.random.default_rng(seed)
    ours = hub_weights(config, seed)
    packed, plain, expected, formats = {}, {}, {}, list(case.formats)
    for rule in rules(config, case.arch, ours):
        values = []
        for stored, x in zip(rule.stored, rule.there(*(ours[name] for name in rule.ours))):
            x = np.ascontiguousarray(x, dtype=np.float32)
            kind, data = pack(stored, x, formats, rng)
            packed[stored] = kind, data
            values.append(dequantize(data, kind).astype(np.float32).reshape(x.shape))
            plain[stored] = Type.F32, values[-1]
        for name, x in zip(rule.ours, rule.back(*values)):
            assert x.shape == ours[name].shape, name
            expected[name] = np.ascontiguousarray(x)
    for rule in rules(config, case.arch, expected):  # there and back are each other's inverse
        for stored, x in zip(rule.stored, rule.there(*(expected[name] for name in rule.ours))):
            if not stored.endswith("norm.weight"):
                assert np.array_equal(x, plain[stored][1]), stored
    if case.formats is FORMATS:
        write_gguf(folder / "f32.gguf", case, "f32", plain)
    write_gguf(folder / "mixed.gguf", case, "mixed", packed)
    config.dtype = torch.float32
    config.save_pretrained(folder)
    save_file(expected, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def check(name, case):
    """What is stored is what transformers makes of the GGUF files; how many tensors were compared."""
    folder = FOLDER / name
    # Its own reading of the metadata forgets some settings. It knows a Mistral as a Llama only.
    config = None if case.arch == A.LLAMA else AutoConfig.from_pretrained(folder)
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    for file in sorted(folder.glob("*.gguf")):
        theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, config=config, dtype=torch.float32)
        theirs = theirs.state_dict()
        assert ours.keys() == theirs.keys()
        different = [key for key in ours if not torch.equal(ours[key], theirs[key])]
        assert not different, (file, different)
    return len(ours)


def main(arguments):
    names = [name for name in arguments if not name.startswith("-")] or list(CASES)
    for seed, name in enumerate(CASES):
        if name not in names:
            continue
        case = CASES[name]()
        if "--check" not in arguments:
            write(name, case, seed + 1)
        size = sum(path.stat().st_size for path in (FOLDER / name).iterdir())
        result = f"{check(name, case)} tensors as transformers reads them" if case.peer else "not read by transformers"
        print(f"{name:10} {size / 1000:5.0f} kB  {result}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""What differs between the families: where their modules are, how their configs are spelt."""

from typing import NamedTuple

import transformers
from transformers import GPT2Config, GPTNeoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

SANDWICH = ("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm")


class Family(NamedTuple):
    """Names of modules: `base` under the model; `layers` and `decoder` under that; the others under a layer."""
    base: str = "model"
    layers: str = "layers"
    attention: str = "self_attn"
    output: str = "o_proj"  # under the attention
    mlp: tuple = ("post_attention_layernorm", "mlp")  # the MLP half, in order; the first reads the stream after attention
    after: tuple = ()  # what the stream goes through when the MLP half has been added
    decoder: tuple = ("norm",)  # from the last stream to what the head reads; a model may lack some
    parallel: bool = False  # both halves read what enters the layer
    rotary: bool = True


FAMILIES = {
    "gpt2": Family("transformer", "h", "attn", "c_proj", ("ln_2", "mlp"), decoder=("ln_f",), rotary=False),
    "gpt_neo": Family("transformer", "h", "attn.attention", "out_proj", ("ln_2", "mlp"), decoder=("ln_f",),
                      rotary=False),
    "gemma2": Family(mlp=SANDWICH),
    "gemma3_text": Family(mlp=SANDWICH),
    "gemma3": Family("model.language_model", mlp=SANDWICH),
    "gpt_neox": Family("gpt_neox", attention="attention", output="dense", decoder=("final_layer_norm",)),
    "gptj": Family("transformer", "h", "attn", "out_proj", decoder=("ln_f",), parallel=True),
    "opt": Family("model.decoder", output="out_proj", mlp=("final_layer_norm", "fc1", "activation_fn", "fc2"),
                  decoder=("final_layer_norm", "project_out"), rotary=False),
    "phi": Family(output="dense", decoder=("final_layernorm",), parallel=True),
    "olmo2": Family(mlp=("mlp", "post_feedforward_layernorm")),
}  # llama, mistral, mixtral, qwen2, qwen3, qwen3_moe, gemma, phi3 and gpt_oss are as Family() says


def of(config):
    """The family of a config."""
    family = FAMILIES.get(config.model_type, Family())
    if config.model_type == "gpt_neox":
        return family._replace(parallel=config.use_parallel_residual)
    if config.model_type == "opt" and not config.do_layer_norm_before:
        return family._replace(mlp=family.mlp[1:], after=family.mlp[:1])
    return family


# ---------------------------------------------------------------------------------------------------------- configs

def gpt2(**settings):
    """A tiny GPT-2 config."""
    base = dict(vocab_size=61, n_positions=24, n_embd=12, n_layer=3, n_head=3, bos_token_id=1, eos_token_id=2)
    return GPT2Config(**{**base, **settings}, architectures=["GPT2LMHeadModel"])


def gpt_neo(**settings):
    """A tiny GPT-Neo config; its window is shorter than the prompts."""
    base = dict(vocab_size=53, max_position_embeddings=24, hidden_size=12, num_layers=4, num_heads=3, window_size=4,
                attention_types=[[["global", "local"], 2]], bos_token_id=1, eos_token_id=2)
    return GPTNeoConfig(**{**base, **settings}, architectures=["GPTNeoForCausalLM"])


def tiny(model_type, **settings):
    """A tiny config of any other family."""
    inner = {"opt": "ffn_dim", "gptj": "n_inner"}.get(model_type, "intermediate_size")
    base = {"vocab_size": 59, "hidden_size": 16, inner: 20, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    config = transformers.CONFIG_MAPPING[model_type](**{**base, **settings})
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
    return config


def multimodal(text, vision):
    """A tiny Gemma 3 that also sees."""
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4,
                                       boi_token_index=56, eoi_token_index=57, image_token_index=58)
    config.architectures = ["Gemma3ForConditionalGeneration"]
    return config


def older(raw, changes):
    """A config.json in the spelling of transformers 4, which most checkpoints on the hub have. None removes a key."""
    raw = {**raw, "torch_dtype": raw["dtype"], "transformers_version": "4.40.0"}
    rope = raw.pop("rope_parameters", None)
    del raw["dtype"]
    if rope:
        if raw["model_type"] == "gemma3_text":
            raw["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
            rope = rope["full_attention"]
        neox = raw["model_type"] == "gpt_neox"
        for key, name in [("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")]:
            if key in rope:
                raw[name if neox else key] = rope.pop(key)
        raw["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    raw.update(changes)
    return {key: raw[key] for key in sorted(raw) if key not in changes or changes[key] is not None}

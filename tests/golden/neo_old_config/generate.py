"""GPT-Neo with a config.json of 2021 (attention_layers too, no newer keys) and boolean mask buffers."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

raw_config = {
    "activation_function": "gelu_new", "architectures": ["GPTNeoForCausalLM"], "attention_dropout": 0,
    "attention_layers": ["global", "local", "global", "local"], "attention_types": [[["global", "local"], 2]],
    "bos_token_id": 1, "embed_dropout": 0, "eos_token_id": 2, "gradient_checkpointing": False, "hidden_size": 12,
    "initializer_range": 0.02, "intermediate_size": None, "layer_norm_epsilon": 1e-05,
    "max_position_embeddings": 24, "model_type": "gpt_neo", "num_heads": 3, "num_layers": 4, "resid_dropout": 0,
    "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True, "use_cache": True, "vocab_size": 53, "window_size": 4,
}
config = common.gpt_neo()


def change(weights):
    return common.with_buffers(weights, config, torch.bool)


common.case(__file__, config, seed=9, tokens=9, raw_config=raw_config, change=change)

"""GPT-2 as the hub's `gpt2` has it: keys without `transformer.`, mask buffers, an old config.json."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

raw_config = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 1,
    "embd_pdrop": 0.1, "eos_token_id": 2, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 24, "n_embd": 12, "n_head": 3, "n_layer": 3, "n_positions": 24,
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 61,
}
config = common.gpt2()


def change(weights):
    return common.with_buffers(common.strip_prefix(weights), config)


common.case(__file__, config, seed=7, raw_config=raw_config, change=change)

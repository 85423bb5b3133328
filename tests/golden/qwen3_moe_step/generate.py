"""A tied Qwen3-MoE whose every second layer is a mixture, with weights left as the softmax gives them, biases, and a window
shorter than the prompt in every layer."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("qwen3_moe", moe_intermediate_size=10, num_hidden_layers=3, num_key_value_heads=4, num_experts=5,
                     num_experts_per_tok=2, norm_topk_prob=False, decoder_sparse_step=2, attention_bias=True,
                     tie_word_embeddings=True, use_sliding_window=True, sliding_window=4)
common.case(__file__, config, seed=2, tokens=10,
            write=lambda folder, weights: common.write_model(folder, weights, config))

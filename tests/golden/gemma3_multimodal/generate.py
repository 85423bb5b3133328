"""The language model of a Gemma 3 with a vision tower, as `save_pretrained` writes it, on text."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

text = dict(vocab_size=59, hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=6, max_position_embeddings=32, sliding_window=4, query_pre_attn_scalar=5,
            bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-5,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"])
vision = dict(model_type="siglip_vision_model", hidden_size=8, intermediate_size=12, num_hidden_layers=1,
              num_attention_heads=2, image_size=8, patch_size=4)
config = common.multimodal(text, vision)
common.case(__file__, config, seed=1, tokens=10,
            write=lambda folder, weights: common.write_model(folder, weights, config))

"""The golden cases as TransformerLens has them."""

import tempfile

from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import common


def load(folder, dtype):
    """The model of a case on the CPU, its weights as they are. Its tokenizer reads numbers: `"5 17"` is the ids 5 and 17, after 0."""
    model = common.load(folder, dtype)
    words = {str(id): id for id in range(model.config.get_text_config().vocab_size)}
    inner = Tokenizer(models.WordLevel(words, unk_token="0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(["bos_token", "eos_token", "pad_token", "unk_token"], "0")
    with tempfile.TemporaryDirectory() as place:
        PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(place)
        tokenizer = AutoTokenizer.from_pretrained(place)
        return TransformerBridge.boot_transformers(
            str(folder), hf_model=model, tokenizer=tokenizer, device="cpu", dtype=dtype)

"""Activations of a corpus by SAELens: its CacheActivationsRunner, as training a sparse autoencoder begins.

usage: sae.py FOLDER TEXTS.jsonl LAYER

The residual stream after a block of every token, f32, into a dataset on the disk. TEXTS.jsonl has {"ids": [...]} on each line, all as
long as a context, as SAELens has it; so there is no padding, and nothing is left of any text. It stops behind the layer, as we do.
FOLDER has to have the name of a model that TransformerLens knows (gpt2): its config is then read there, and nothing is fetched.
Prints the seconds of a run after a short one in the same process; loading the model is not among them.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

folder, texts, layer = sys.argv[1:4]
rows = [json.loads(line)["ids"] for line in open(texts)]
folder = Path(folder).resolve()
name = folder.name
os.chdir(folder.parent)
context, batch = len(rows[0]), 16
network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
# It asks for a tokenizer, though the texts are tokens already.
words = Tokenizer(models.WordLevel({str(at): at for at in range(network.config.vocab_size)}, unk_token="0"))
end = str(network.config.vocab_size - 1)
special = dict(bos_token=end, eos_token=end, unk_token="0", pad_token=end, add_bos_token=True, name_or_path=str(folder))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)


def run(out, rows):
    settings = CacheActivationsRunnerConfig(
        dataset_path="none",
        model_name=name,
        model_batch_size=batch,
        hook_name=f"blocks.{layer}.hook_resid_post",
        d_in=network.config.n_embd,
        training_tokens=len(rows) * context,
        context_size=context,
        new_cached_activations_path=out,
        # All of it at once: shards are copied together at the end.
        buffer_size_gb=len(rows) * context * network.config.n_embd * 4 / 1e9,
        shuffle=False,
        dtype="float32",
        device="cpu",
        prepend_bos=False,
        streaming=False,
        # SAELens folds no norms and centres no weights unless it is asked to: the numbers are those of the checkpoint.
        model_from_pretrained_kwargs={"hf_model": network, "tokenizer": tokenizer},
    )
    runner = CacheActivationsRunner(settings, override_dataset=Dataset.from_dict({"input_ids": rows}))
    start = time.perf_counter()
    dataset = runner.run()
    return time.perf_counter() - start, dataset


with tempfile.TemporaryDirectory() as parent:
    run(str(Path(parent) / "first"), rows[:batch])
    seconds, dataset = run(str(Path(parent) / "second"), rows)
    first = torch.tensor(dataset[0][f"blocks.{layer}.hook_resid_post"][0][:4])
print(json.dumps({"seconds": seconds, "tokens": len(dataset) * context, "first": first.tolist()}))

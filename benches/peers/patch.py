"""How long TransformerLens takes for two patching sweeps: the stream before every block at every position, and every head.

usage: patch.py FOLDER TOKENS
"""

import json
import sys
import time

import torch
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

folder, tokens = sys.argv[1], int(sys.argv[2])
torch.set_grad_enabled(False)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
bridge = TransformerBridge.boot_transformers(folder, hf_model=model, device="cpu")
clean = torch.arange(1000, 1000 + 23 * tokens, 23)[None]
corrupted = clean.clone()
corrupted[0, 5] = 77
_, cache = bridge.run_with_cache(clean)
bridge(corrupted)


def metric(logits):
    return logits[0, -1, 100] - logits[0, -1, 200]


times = {}
for name, sweep in {
    "seconds": patching.get_act_patch_resid_pre,
    "heads": patching.get_act_patch_attn_head_out_all_pos,
}.items():
    start = time.perf_counter()
    sweep(bridge, corrupted, cache, metric)
    times[name] = [time.perf_counter() - start]
print(json.dumps(times))

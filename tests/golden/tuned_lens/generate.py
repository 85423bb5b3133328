"""A tuned lens of the tuned-lens package for gpt2_plain: its files, and the logits it gives each layer, in f64.

    pip install torch==2.13.0 transformers==5.23.0 tuned-lens safetensors
    python tests/golden/tuned_lens/generate.py
"""

import json
import sys
from pathlib import Path

# Optional there, and its present release lacks what the package looks for.
sys.modules["transformer_lens"] = None

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from tuned_lens.nn.lenses import TunedLens

here = Path(__file__).parent
model_folder = here.parent / "gpt2_plain"
ids = torch.tensor(json.loads((model_folder / "case.json").read_text())["single"]["ids"])

torch.manual_seed(7)
model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
lens = TunedLens.from_model(model)
with torch.no_grad():
    for translator in lens:
        translator.weight.normal_(0, 0.1)
        translator.bias.normal_(0, 0.3)
    # The path of this machine means nothing to others.
    lens.config.base_model_name_or_path = "gpt2_plain"
    lens.save(here)

    hidden = model.double()(ids, output_hidden_states=True).hidden_states
    lens = lens.double()
    expected = {f"logits/{layer}": lens(hidden[layer], layer)[0].contiguous() for layer in range(len(lens))}
save_file(expected, here / "expected.safetensors")

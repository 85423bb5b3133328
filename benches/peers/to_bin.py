"""Writes the weights of a checkpoint as PyTorch does: pytorch_model.bin.

usage: to_bin.py FOLDER NEW_FOLDER
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import load_file

folder, new = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
# Whole or not at all: the folder gets its name when it is complete.
making = new.with_name("." + new.name)
shutil.rmtree(making, ignore_errors=True)
making.mkdir()
torch.save(load_file(folder / "model.safetensors"), making / "pytorch_model.bin")
shutil.copy(folder / "config.json", making)
making.rename(new)
print(json.dumps({"seconds": []}))

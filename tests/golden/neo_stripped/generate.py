"""GPT-Neo saved from the base model: keys without `transformer.`, mask buffers as uint8; gelu_pytorch_tanh."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.gpt_neo(activation_function="gelu_pytorch_tanh")


def change(weights):
    return common.with_buffers(common.strip_prefix(weights), config, torch.uint8)


common.case(__file__, config, seed=7, tokens=9, change=change)

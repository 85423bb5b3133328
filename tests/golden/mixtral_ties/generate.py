"""A Mixtral of four experts, two chosen: as on the hub, with two key heads for four. Two rows of a router are equal: in
its second layer both experts are chosen or neither, in its third they are equal themselves."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("mixtral", hidden_size=12, intermediate_size=10, num_hidden_layers=3, num_key_value_heads=2,
                     head_dim=4, num_local_experts=4, rope_parameters=dict(rope_type="default", rope_theta=1e6))


def write(folder, weights):
    common.write_model(folder, common.with_ties(weights, pair=1, twins=2), config)


common.case(__file__, config, seed=12, tokens=8, older={}, write=write, full_padding=True, decoders=True, eos=True)

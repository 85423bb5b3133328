"""An OPT as opt-350m is: norms on the stream, no final norm, token embeddings narrower than the stream, keys under
`decoder.`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

config = common.tiny("opt", do_layer_norm_before=False, word_embed_proj_dim=10)
common.case(__file__, config, seed=1, tokens=10, full_padding=True, decoders=True,
            change=lambda weights: {name.removeprefix("model."): value for name, value in weights.items()})

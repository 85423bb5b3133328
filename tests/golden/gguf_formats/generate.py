"""Writes NAME.bin for every format: blocks, and what gguf-py reads in them.

    pip install gguf==0.19.0
    python tests/golden/gguf_formats/generate.py

A file is `blocks` as u32, the blocks' bytes, then the values as f32, all little-endian. The blocks are random bytes; the first
ones have every edge case of f16 as their scales.
"""

import warnings
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize

FOLDER = Path(__file__).resolve().parent
# Where a block has its scales, f16.
SCALES = {Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0], Type.Q2_K: [80, 82],
          Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208], Type.IQ4_NL: [0], Type.IQ4_XS: [0]}
# Zeros, denormals, the smallest normals, one, the largest, infinities, NaNs quiet and not, and both signs.
EDGES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x8400, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x7c00, 0xfc00,
         0x7e00, 0xfe00, 0x7c01, 0xfdff]
# The same of wider floats.
EDGES_32 = [0, 1 << 31, 1, 0x007fffff, 0x00800000, 0x3f800000, 0x7f7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001]


def blocks_of(kind, rng):
    size = GGML_QUANT_SIZES[kind][1]
    if kind == Type.MXFP4:  # every exponent, and every pair of values
        data = rng.integers(0, 256, (256, size), dtype=np.uint8)
        data[:, 0] = np.arange(256)
        data[:16, 1:] = np.arange(256, dtype=np.uint8).reshape(16, 16)
        return data
    if kind not in SCALES:
        return None
    count = max(len(EDGES) + 30, 48)
    data = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for i, at in enumerate(SCALES[kind]):
        scales = rng.standard_normal(count).astype(np.float16)
        scales[:len(EDGES)] = np.roll(np.array(EDGES, dtype=np.uint16), 5 * i).view(np.float16)
        data[:, at:at + 2] = scales[:, None].view(np.uint8)
    return data


def plain(kind, rng):
    """(bytes, values) of formats without blocks, a row of one element each."""
    if kind == Type.F16:
        data = np.arange(1 << 16, dtype=np.uint16)[::7].copy()
        data[:len(EDGES)] = EDGES
        return data, data.view(np.float16).astype(np.float32)
    if kind == Type.BF16:
        data = np.arange(1 << 16, dtype=np.uint16)[::7].copy()
        return data, dequantize(data.view(np.uint8).reshape(-1, 2), kind).reshape(-1)
    if kind == Type.F32:
        data = np.concatenate([np.array(EDGES_32), rng.integers(0, 1 << 32, 200)]).astype(np.uint32).view(np.float32)
        return data, data
    if kind == Type.F64:
        small = np.array([0.0, -0.0, 1e-320, 1e-45, 1e-46, 1 + 2**-24, 1 + 3 * 2**-24, 3.5e38, np.inf, -np.inf, np.nan, 1e300])
        data = np.concatenate([small, rng.standard_normal(200)])
    else:
        data = np.dtype(kind.name.lower().replace("i", "int"))
        info = np.iinfo(data)
        data = np.concatenate([np.array([0, 1, -1, info.min, info.max]), rng.integers(info.min, info.max, 200)]).astype(data)
    return data, data.astype(np.float32)


def main():
    warnings.simplefilter("ignore")
    for kind in Type:
        rng = np.random.default_rng(int(kind))
        data = blocks_of(kind, rng)
        if data is not None:
            values = dequantize(data, kind)
        elif kind in (Type.F32, Type.F16, Type.BF16, Type.F64, Type.I8, Type.I16, Type.I32, Type.I64):
            data, values = plain(kind, rng)
        else:
            continue
        count = np.array([len(data)], dtype="<u4")
        content = count.tobytes() + data.tobytes() + values.astype("<f4").tobytes()
        (FOLDER / f"{kind.name}.bin").write_bytes(content)
        print(f"{kind.name:8} {len(content) / 1000:5.0f} kB")


if __name__ == "__main__":
    main()

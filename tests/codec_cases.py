"""Segments, headers and inputs that the codec's tests share."""

from __future__ import annotations

import numpy as np

from horovod_qoda.coding import SEGMENT, Header, copy_stats, encode, max_payload_bytes
from horovod_qoda.quantization import step_size, uniform

HEADER = Header(
    layout_hash=0x1122334455667788,
    exchange=(5 << 32) + 9,
    rank=3,
    stage=1,
    chunk=2,
    key=(7 << 52) + (3 << 32) + 0xDEADBEEF,
    sum_sq=1.5,
    sum_sq_diff=0.25,
    aux=-2.0,
)
LEVELS = (uniform(6), np.array([0, 0.1, 0.4, 1], dtype=np.float32))

# Every quantiser as fields of a segment.
QUANTIZERS = {
    "rounded": {"quantizer": 1, "reconstruction": 0},
    "dithered": {"quantizer": 1, "reconstruction": 1},
    "linf": {"quantizer": 2, "norm": 0, "bucket": 512},
    "l2": {"quantizer": 2, "norm": 1, "bucket": 64, "levels": 1},
    "layer_norm": {"quantizer": 2, "norm": 1, "bucket": 0, "levels": 1},
    "maxmin": {"quantizer": 3, "bucket": 128},
}
INPUTS = [
    "normal",
    "student",
    "zeros",
    "one_hot",
    "constant",
    "denormal",
    "huge",
    "extreme",
    "sparse",
    "rows",
]


def make_input(name: str, n: int, rng: np.random.Generator) -> np.ndarray:
    v = rng.standard_normal(n)
    if name == "student":
        v = rng.standard_t(2, n)
    elif name == "zeros":
        v = np.zeros(n)
    elif name == "one_hot":
        v = np.zeros(n)
        v[n // 3] = -2.5
    elif name == "constant":
        v = np.full(n, 0.75)
    elif name == "denormal":
        v = v * 1e-41
    elif name == "huge":
        v = v * 5e35
    elif name == "extreme":  # steps above 2^120
        v = v * 5e37
    elif name == "sparse":
        v = v * (rng.random(n) < 0.1)
    elif name == "rows":  # of different sizes, some of them zero: classes pay
        v = v * np.repeat([1.0, 0.0, 0.25, 6.0, 0.1, 20.0], 208)[np.arange(n) % 1248]
    return v.astype(np.float32)


def segment(numel: int, *, c: float = 1.0, values=None, **fields) -> np.ndarray:
    """One row of SEGMENT; the step of one-stream quantisers is c * RMS of ``values``."""
    row = np.zeros(1, dtype=SEGMENT)
    row["numel"] = numel
    row["layer"] = 11
    row["index"] = 2048
    for name, value in fields.items():
        row[name] = value
    if values is not None and row["quantizer"][0] == 1 and "step" not in fields:
        row["step"] = step_size(c, copy_stats(values)[0], numel)
    return row


def join(rows: list[np.ndarray]) -> np.ndarray:
    """Segments one behind the other in the coordinate array, layers numbered."""
    segments = np.concatenate(rows)
    segments["offset"] = np.concatenate([[0], np.cumsum(segments["numel"])[:-1]])
    segments["layer"] = np.arange(len(segments))
    return segments


def payload(values, segments, header=HEADER, **options) -> np.ndarray:
    out = np.empty(max_payload_bytes(segments), dtype=np.uint8)
    return out[: encode(values, segments, header, out, **options)]

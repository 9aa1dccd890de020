"""Where an exchange of measured speed on a wire of given speed beats NCCL's float32 and float16.

Nothing travels here. The codec's seconds and bytes are one rank's, measured; the wire is bytes over
bandwidth, with no latency and nothing overlapped. NCCL's ring is given its bytes alone, and float16
the two casts: the arithmetic favours what is compared with.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

GBIT = 1e9 / 8
"""Bytes a second of one Gbit/s."""

RATES = (1.0, 10.0, 100.0)
"""Gbit/s at which times are printed."""

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Measured:
    """One rank's exchange with itself: every coordinate encoded once and decoded once.

    Attributes:
        coordinates: of the model.
        total, encode, decode: seconds; the total has copies, statistics and waits too.
        payload: bytes of its payloads.
        cast: seconds of float32 to float16 and back.
    """

    coordinates: int
    total: float
    encode: float
    decode: float
    payload: float
    cast: float


def codec_s(measured: Measured, ranks: int) -> float:
    """Of one rank in scatter-reduce: it encodes all chunks and the mean of its own, decodes its own
    of all ranks, as many coordinates as there are, and all others' means."""
    rest = measured.total - measured.encode - measured.decode
    return rest + measured.encode * (1 + 1 / ranks) + measured.decode * (2 - 1 / ranks)


def link_bytes(size: float, ranks: int) -> float:
    """That one rank sends where ``size`` bytes are reduce-scattered and gathered again."""
    return 2 * (ranks - 1) / ranks * size


def times(measured: Measured, ranks: int, gbit: float) -> dict[str, float]:
    """Seconds of one exchange by each way."""
    wire = gbit * GBIT
    return {
        "ours": codec_s(measured, ranks) + link_bytes(measured.payload, ranks) / wire,
        "fp32": link_bytes(4 * measured.coordinates, ranks) / wire,
        "fp16": measured.cast + link_bytes(2 * measured.coordinates, ranks) / wire,
    }


def crossover(measured: Measured, ranks: int, way: str) -> float:
    """Gbit/s below which ours is faster than ``way``; 0 if it never is, inf if it always is."""
    size, cast = {"fp32": (4, 0.0), "fp16": (2, measured.cast)}[way]
    saved = link_bytes(size * measured.coordinates - measured.payload, ranks)
    extra = codec_s(measured, ranks) - cast
    if extra <= 0:
        return float("inf") if saved > 0 else 0.0
    return max(saved, 0.0) / extra / GBIT


def report(name: str, measured: Measured, ranks: int) -> list[str]:
    """Lines for the terminal."""
    bits = 8 * measured.payload / measured.coordinates
    codec = 1e3 * codec_s(measured, ranks)
    lines = [
        f"{name}: {measured.coordinates:,} coordinates at {bits:.2f} bits over {ranks} ranks, "
        f"scatter-reduce; codec {codec:.2f} ms, measured; wire by arithmetic"
    ]
    for gbit in RATES:
        ways = times(measured, ranks, gbit)
        said = ", ".join(f"{way} {1e3 * seconds:.2f}" for way, seconds in ways.items())
        lines.append(f"  {gbit:5.0f} Gbit/s, ms: {said}")
    limits = ", ".join(f"{way} {crossover(measured, ranks, way):.1f}" for way in ("fp32", "fp16"))
    lines.append(f"  faster on links slower than, Gbit/s: {limits}")
    return lines


def transformer_xl() -> Shapes:
    """NVIDIA's Transformer-XL base on WikiText-103, embedding tied to the softmax: 191,950,298."""
    vocabulary, model, heads, head, inner = 267_735, 512, 8, 64, 2048
    clusters = 3  # cutoffs 19,997, 39,997 and 199,997
    shapes: Shapes = [(vocabulary, model), (vocabulary,), (clusters, model), (clusters,)]
    shapes += [(heads, head)] * 2
    attention: Shapes = [(3 * heads * head, model), (model, heads * head), (heads * head, model)]
    feed_forward: Shapes = [(inner, model), (inner,), (model, inner), (model,)]
    return shapes + 16 * (attention + feed_forward + [(model,)] * 4)


def wgan() -> Shapes:
    """Both players of `examples/wgan.py`."""
    import _models

    return [tuple(p.shape) for player in _models.build("dense") for p in player.parameters()]


def shrunk(shapes: Shapes, by: int) -> Shapes:
    """All dimensions divided, for a look at the code where there is no device."""
    return [tuple(max(n // by, 1) for n in shape) for shape in shapes]

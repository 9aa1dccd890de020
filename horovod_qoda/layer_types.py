"""Layers that share settings and a code table, and which layers travel as they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from horovod_qoda.allocation import low_rank_numbers
from horovod_qoda.quantization.families import gaussian_family_rate, level_sequence
from horovod_qoda.settings import ONE_STREAM_QUANTIZERS, Settings, matches


@dataclass(frozen=True)
class LayerType:
    """Layers that share levels and a code table: the same kind and the same settings.

    ``kind`` is "any" where all kinds are one type, ``layer`` the name where each layer is its own.
    ``levels`` are those at the start; empty for the one-stream quantisers.
    """

    kind: str
    quantizer: str
    bits: float
    bucket_size: int
    norm: str
    levels: tuple[float, ...]
    layer: str = ""
    low_rank: int = 0
    """Rank of PowerSGD, which sends these layers as float32 matrices; 0 for all others."""

    @property
    def raw(self) -> bool:
        """Whether nothing is quantised: float32 travels."""
        return self.quantizer in ("raw", "powersgd")

    @property
    def rate(self) -> float:
        """Coded bits per coordinate to expect: what was asked for, or what Gaussian buckets take
        with these levels."""
        if not self.levels:
            return self.bits
        return gaussian_family_rate(self.quantizer, self.levels, self.bucket_size, self.norm)

    @property
    def adapts(self) -> bool:
        """Whether its levels change during training."""
        return self.quantizer == "adaptive" or bool(self.levels and self.layer)


RAW_TYPE = LayerType("raw", "raw", 32.0, 0, "linf", ())


def layer_type(
    name: str, shape: tuple[int, ...], kind: str, settings: Settings
) -> tuple[LayerType, str]:
    """Type of a layer, and why it travels raw where it does (docs/theory.md section 2).

    One-dimensional tensors (biases, norm weights) and small ones travel raw unless a rule names
    them: they are few bytes and the most sensitive.
    """
    mine = settings.for_layer(name, kind)
    if mine is None:
        return RAW_TYPE, "a rule says raw"
    numel = int(np.prod(shape, dtype=np.int64)) if shape else 1
    named = any(matches(pattern, name, kind) for pattern in settings.rules)
    if len(shape) < 2 and mine.quantizer == "powersgd" and named:
        raise ValueError(
            f"rules ask for PowerSGD of layer {name!r}, which has {len(shape)} "
            f"dimension{'s' if len(shape) != 1 else ''} where a matrix is needed: narrow the "
            "pattern, add a later rule that says 'raw' or a number of bits, or ask for the whole "
            "model by quantizer='powersgd'"
        )
    if numel < settings.min_numel:
        return RAW_TYPE, f"fewer than min_numel = {settings.min_numel} coordinates"
    if len(shape) < 2 and not named:
        return RAW_TYPE, "one-dimensional"
    if mine.quantizer == "powersgd":
        if low_rank_numbers(shape, mine.low_rank) == numel:
            return RAW_TYPE, f"rank {mine.low_rank} would not halve them"
        return LayerType(kind, "powersgd", 32.0, 0, "linf", (), low_rank=mine.low_rank), ""
    levels: tuple[float, ...] = ()
    if mine.quantizer not in ONE_STREAM_QUANTIZERS:
        bucket, norm = mine.bucket_size, mine.norm
        sequence = level_sequence(mine.quantizer, mine.bits, bucket, norm, mine.levels)
        levels = tuple(float(x) for x in sequence)
    else:
        bucket, norm = 0, "linf"
    alone = settings.types == "layer" or settings.allocation != "none"
    return LayerType(
        kind="any" if settings.types == "global" else kind,
        quantizer=mine.quantizer,
        bits=float(mine.bits),
        bucket_size=bucket,
        norm=norm,
        levels=levels,
        layer=name if alone else "",
    ), ""

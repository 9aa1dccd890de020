"""From a quantiser's name and a wanted rate to its level sequence."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from horovod_qoda.quantization.levels import Levels, exponential, ternary, uniform
from horovod_qoda.quantization.steps import (
    choose_uniform,
    gaussian_level_rate,
    gaussian_maxmin_rate,
)

WHOLE_LAYER = 65536
"""Bucket size that stands for "one norm for the layer" when a rate is estimated."""

# Halving levels 40 times reaches 1e-12 of the norm: more inner levels change no symbol.
_MOST_EXPONENTIAL = 40

MOST_MAXMIN = 125
"""Most inner levels of max-min: n = s + 2 entries are 2n values, symbols -n..n - 1, and codes reach
to 127."""

_FAMILIES: dict[str, Callable[[int], Levels]] = {
    "uniform": uniform,
    "exponential": exponential,
    "ternary": lambda s: ternary(),
    # What it starts from, until there is a histogram to fit.
    "adaptive": uniform,
    # n entries stand for 2n values from the least to the greatest: b bits have n = 2^(b - 1).
    "maxmin": uniform,
}


def level_sequence(
    quantizer: str, bits: float, bucket: int, norm: str, count: int | None = None
) -> Levels:
    """Levels of a level quantiser, float32 [s + 2].

    Args:
        quantizer: "uniform", "exponential", "ternary", "adaptive" (its start) or "maxmin" (of
            whose levels only the number counts: s + 2 of them give 2 s + 4 values).
        bits: wanted coded bits per coordinate; the s whose Gaussian rate is nearest is taken.
        bucket: coordinates per norm, 0 for the whole layer.
        norm: "linf" or "l2".
        count: s itself, where it is given; ternary has none and ignores it.

    Raises:
        ValueError: no such family, or a bad count.
    """
    if quantizer not in _FAMILIES:
        raise ValueError(
            f"no level quantizer is called {quantizer!r}; known: {', '.join(_FAMILIES)}"
        )
    if count is None:
        count = _nearest(quantizer, bits, bucket or WHOLE_LAYER, norm)
    return _FAMILIES[quantizer](count)


def gaussian_family_rate(
    quantizer: str, levels: tuple[float, ...], bucket: int, norm: str
) -> float:
    """Coded bits per coordinate of a level quantiser on Gaussian buckets; 0 is the whole layer."""
    if quantizer == "maxmin":
        return gaussian_maxmin_rate(len(levels), bucket or WHOLE_LAYER)
    return gaussian_level_rate(levels, bucket or WHOLE_LAYER, norm)


@lru_cache(maxsize=256)
def _nearest(quantizer: str, bits: float, bucket: int, norm: str) -> int:
    if quantizer in ("uniform", "adaptive"):
        return choose_uniform(bits, bucket, norm)
    most = {"ternary": 0, "exponential": _MOST_EXPONENTIAL}.get(quantizer, MOST_MAXMIN)
    family = _FAMILIES[quantizer]
    return min(
        range(most + 1),
        key=lambda s: abs(gaussian_family_rate(quantizer, tuple(family(s)), bucket, norm) - bits),
    )

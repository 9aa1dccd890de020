"""From a quantiser's name and a wanted rate to its level sequence."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from horovod_qoda.quantization.levels import MOST_LEVELS, Levels, exponential, ternary, uniform
from horovod_qoda.quantization.steps import choose_uniform, gaussian_level_rate

WHOLE_LAYER = 65536
"""Bucket size that stands for "one norm for the layer" when a rate is estimated."""

# Halving levels 40 times reaches 1e-12 of the norm: more inner levels change no symbol.
_MOST_EXPONENTIAL = 40

_FAMILIES: dict[str, Callable[[int], Levels]] = {
    "uniform": uniform,
    "exponential": exponential,
    "ternary": lambda s: ternary(),
}


def level_sequence(
    quantizer: str, bits: float, bucket: int, norm: str, count: int | None = None
) -> Levels:
    """Levels of a level quantiser, float32 [s + 2].

    Args:
        quantizer: "uniform", "exponential" or "ternary".
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


@lru_cache(maxsize=256)
def _nearest(quantizer: str, bits: float, bucket: int, norm: str) -> int:
    if quantizer == "uniform":
        return choose_uniform(bits, bucket, norm)
    most = 0 if quantizer == "ternary" else min(_MOST_EXPONENTIAL, MOST_LEVELS)
    family = _FAMILIES[quantizer]
    return min(
        range(most + 1), key=lambda s: abs(gaussian_level_rate(family(s), bucket, norm) - bits)
    )

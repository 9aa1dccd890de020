"""Step sizes for a wanted number of coded bits (docs/theory.md §8 and §4).

The one-stream quantiser codes k = floor(v / step + U) with step = c * RMS(v). How many bits that
takes depends on the distribution of v. These functions give the start, computed for Gaussian
coordinates; a controller then moves c by what was measured.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from horovod_qoda.quantization.levels import MOST_LEVELS, uniform

# step_factor's domain. Below, a step spans dozens of RMS and nearly all symbols are 0; above, k
# leaves the range in which k - U is exact in float32.
LEAST_BITS, MOST_BITS = 0.01, 12.0


def _normal_tail(x: float) -> float:
    return 0.5 * math.erfc(x / math.sqrt(2.0))


def _tail_integral(x: float) -> float:
    """Integral of the normal tail over [x, infinity)."""
    return math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi) - x * _normal_tail(x)


def _entropy(p: npt.NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def gaussian_rate(c: float) -> float:
    """Entropy in bits of k = floor(z / c + U), z standard normal, U uniform on [0, 1).

    P(k) is the second difference at k * c of the integral of the normal tail, divided by c.

    >>> round(gaussian_rate(1.0), 2)
    2.16
    """
    if not c > 0:
        raise ValueError(f"c must be positive: {c}")
    count = int(9.0 / c) + 2
    tail = np.array([_tail_integral(k * c) for k in range(count + 1)])
    upper = np.maximum(tail[2:] - 2 * tail[1:-1] + tail[:-2], 0.0) / c
    return _entropy(np.concatenate([[max(1.0 - 2.0 * upper.sum(), 0.0)], upper, upper]))


def rate_bound(c: float) -> float:
    """Upper bound in bits per coordinate for any vector: log2(2 pi e (1/c^2 + 1/3)) / 2.

    From E(k - v/step)^2 <= 1/4 and the entropy bound for integer variables.
    """
    return 0.5 * math.log2(2.0 * math.pi * math.e * (1.0 / (c * c) + 1.0 / 3.0))


@lru_cache(maxsize=256)
def step_factor(bits: float) -> float:
    """The c at which Gaussian coordinates take ``bits`` coded bits each.

    Raises:
        ValueError: bits outside [0.01, 12].

    >>> round(gaussian_rate(step_factor(3.0)), 6)
    3.0
    """
    if not LEAST_BITS <= bits <= MOST_BITS:
        raise ValueError(f"bits must lie in [{LEAST_BITS}, {MOST_BITS}]: {bits}")
    low, high = math.log(1e-4), math.log(1e4)
    for _ in range(60):
        middle = 0.5 * (low + high)
        if gaussian_rate(math.exp(middle)) > bits:
            low = middle
        else:
            high = middle
    return math.exp(0.5 * (low + high))


def step_size(c: float, sum_sq: float, numel: int) -> np.float32:
    """c * RMS as the float32 that goes into a payload.

    0 only if ``sum_sq`` is 0: a step that would underflow becomes the least subnormal, with which
    the segment travels raw; one that would overflow becomes the largest float32, likewise.
    """
    if sum_sq == 0.0:
        return np.float32(0.0)
    limits = np.finfo(np.float32)
    step = c * math.sqrt(sum_sq / numel)
    return np.float32(min(max(step, float(limits.smallest_subnormal)), float(limits.max)))


def gaussian_level_rate(levels: npt.ArrayLike, bucket: int, norm: str = "linf") -> float:
    """Coded bits per coordinate of a level quantiser on Gaussian buckets, norms included.

    The symbol entropy of docs/theory.md §4 at a typical norm: the median of the largest of
    ``bucket`` magnitudes for "linf", sqrt(bucket) for "l2"; plus the sign of every non-zero symbol
    and 32 / bucket bits for the norm.
    """
    if bucket < 1:
        raise ValueError(f"bucket must be at least 1: {bucket}")
    if norm not in ("linf", "l2"):
        raise ValueError(f'norm must be "linf" or "l2": {norm!r}')
    scale = math.sqrt(bucket) if norm == "l2" else _median_largest(bucket)
    edges = np.asarray(levels, dtype=np.float64) * scale
    # Second differences of the tail integral, with each side divided by its own gap.
    slope = np.diff([_tail_integral(float(x)) for x in edges]) / np.diff(edges)
    upper = 2.0 * np.concatenate([np.diff(slope), [-slope[-1]]])
    upper = np.maximum(upper, 0.0)
    p = np.concatenate([[max(1.0 - upper.sum(), 0.0)], upper])
    return _entropy(p) + float(upper.sum()) + 32.0 / bucket


def gaussian_maxmin_rate(entries: int, bucket: int) -> float:
    """Coded bits per coordinate of max-min with 2 * entries values on Gaussian buckets.

    The unit is the typical range over 2 * entries - 1; where the grid lies changes the entropy
    little. Minimum and unit of a bucket take 64 bits.
    """
    if bucket < 2:
        raise ValueError(f"bucket must be at least 2: {bucket}")
    # The greatest of n coordinates is about the greatest magnitude of n / 2.
    unit = 2.0 * _median_largest(max(bucket // 2, 1)) / (2 * entries - 1)
    return min(gaussian_rate(unit), math.log2(2 * entries)) + 64.0 / bucket


def _median_largest(bucket: int) -> float:
    """x with P(|z| <= x)^bucket = 1/2 for standard normal z."""
    target = -math.expm1(-math.log(2.0) / bucket)
    low, high = 0.0, 40.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if 2.0 * _normal_tail(middle) > target:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


@lru_cache(maxsize=256)
def choose_uniform(bits: float, bucket: int = 1024, norm: str = "linf") -> int:
    """The s for which `uniform` levels come nearest to ``bits`` coded bits on Gaussian buckets."""
    if not bits > 0:
        raise ValueError(f"bits must be positive: {bits}")
    rates = [abs(gaussian_level_rate(uniform(s), bucket, norm) - bits) for s in range(MOST_LEVELS)]
    return int(np.argmin(rates))

"""Exact variances of the quantizers and the bounds on them (docs/theory.md §2, §5, §8).

A level sequence is an increasing float array from 0 to 1. A *relative* variance or bound ε is a
plain number: E‖Q(v) − v‖² ≤ ε ‖v‖². Absolute ones have the unit of v².
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def check_levels(levels: npt.ArrayLike) -> Array:
    """`levels` as a float64 array.

    Raises:
        ValueError: not 1-D, shorter than 2, not from 0 to 1, or not increasing.
    """
    sequence = np.asarray(levels, dtype=np.float64)
    if sequence.ndim != 1 or sequence.size < 2 or sequence[0] != 0.0 or sequence[-1] != 1.0:
        raise ValueError(f"levels must go from 0 to 1, got {levels!r}")
    if not np.all(np.diff(sequence) > 0):
        raise ValueError(f"levels must increase, got {levels!r}")
    return sequence


def level_variance(values: npt.ArrayLike, levels: npt.ArrayLike, q: float = math.inf) -> float:
    """Exact E‖Q(v) − v‖² of stochastic rounding to levels of one bucket.

    n² Σ_i (ℓ_{j+1} − r_i)(r_i − ℓ_j), with n = ‖v‖_q, r_i = |v_i|/n in [ℓ_j, ℓ_{j+1}]; 0 for v = 0.

    Args:
        values: (d,) the bucket.
        levels: (s + 2,) its level sequence.
        q: order of the norm, in [1, ∞].

    Returns:
        The variance, in units of v². [P] §2
    """
    v = np.abs(np.asarray(values, dtype=np.float64)).ravel()
    sequence = check_levels(levels)
    norm = float(np.linalg.norm(v, ord=q)) if v.size else 0.0
    if norm == 0.0:
        return 0.0
    r = np.minimum(v / norm, 1.0)
    cell = np.minimum(np.searchsorted(sequence, r, side="right") - 1, sequence.size - 2)
    return float(norm**2 * np.sum((sequence[cell + 1] - r) * (r - sequence[cell])))


def ratio_term(level_sequences: Iterable[npt.ArrayLike]) -> float:
    """κ = (ρ̄ − 1)²/(4ρ̄), ρ̄ the largest ratio ℓ_{j+1}/ℓ_j, j ≥ 1, over all sequences.

    The relative variance that coordinates above the first level can have. 0.0 for {0, 1} alone.
    [P] §5
    """
    ratios = [1.0]
    for levels in level_sequences:
        sequence = check_levels(levels)
        ratios.extend(sequence[2:] / sequence[1:-1])
    rho = max(ratios)
    return (rho - 1.0) ** 2 / (4.0 * rho)


def first_level_term(c: float) -> float:
    """inf over p of K_p c^{2−p}: c²/4 for c ≤ 2, c − 1 beyond. [P] §5"""
    return c * c / 4.0 if c <= 2.0 else c - 1.0


def first_level_term_at(c: float, p: float) -> float:
    """K_p c^{2−p}, K_p = (1/(2−p)) ((1−p)/(2−p))^{1−p}, for one p in [0, 1). [P] §5"""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p must be in [0, 1), got {p}")
    return ((1.0 - p) / (2.0 - p)) ** (1.0 - p) / (2.0 - p) * c ** (2.0 - p)


def optimal_p(c: float) -> float:
    """The p that minimises K_p c^{2−p}: 0 for c ≤ 2, (c − 2)/(c − 1) beyond. [P] §5"""
    return 0.0 if c <= 2.0 else (c - 2.0) / (c - 1.0)


def variance_bound(level_sequences: Sequence[npt.ArrayLike], d: int, q: float = math.inf) -> float:
    """ε_Q of layer-wise quantization: κ + c²/4 if c < 2, else κ + c − 1.

    c = ℓ̄_1 d^{1/min(q, 2)}, ℓ̄_1 the largest first level, κ = :func:`ratio_term`.

    Args:
        level_sequences: the sequences of all types m = 1..M.
        d: coordinates that share a norm (the bucket size, or the layer's).
        q: order of the norm, in [1, ∞].

    Returns:
        A relative bound. arXiv 2505.14371, Theorem 5.1; [P] in this form, [R] for its print. §5
    """
    return ratio_term(level_sequences) + first_level_term(_first_level_scale(level_sequences, d, q))


def variance_bound_tight(
    level_sequences: Sequence[npt.ArrayLike], d: int, q: float = math.inf
) -> float:
    """As :func:`variance_bound`, without giving each coordinate both terms.

    κ + c²/(4(1+κ)) if c < 2(1+κ), else c − 1; the second is attained by v = (1, …, 1), q = 2.
    [P] §5
    """
    kappa = ratio_term(level_sequences)
    c = _first_level_scale(level_sequences, d, q)
    if c < 2.0 * (1.0 + kappa):
        return kappa + c * c / (4.0 * (1.0 + kappa))
    return c - 1.0


def bucketed_bound(
    buckets: Iterable[tuple[npt.ArrayLike, npt.ArrayLike]], q: float = math.inf
) -> float:
    """Σ_b ε^{m(b)}(d_b) ‖v_b‖², each bucket with the tight bound of its own type and size.

    Args:
        buckets: pairs (v_b of shape (d_b,), level sequence of its type).
        q: order of the norms.

    Returns:
        Bound on E‖Q(v) − v‖² over all buckets, in units of v². [P] §5
    """
    total = 0.0
    for values, levels in buckets:
        v = np.asarray(values, dtype=np.float64).ravel()
        if v.size:
            total += variance_bound_tight([levels], v.size, q) * float(v @ v)
    return total


def qsgd_bound(d: int, s: int) -> float:
    """min(d/s², √d/s): uniform levels j/s, j = 0..s, L2 norm; arXiv 1610.02132. [P] §5"""
    return min(d / s**2, math.sqrt(d) / s)


def nuqsgd_bound(d: int, s: int) -> float:
    """Levels 0, 2^{−s}, …, 1/2, 1, L2 norm: :func:`variance_bound` with κ = 1/8, c = 2^{−s}√d.

    1/8 + 2^{−2s−2} d if d < 2^{2s+2}, else 2^{−s}√d − 7/8. arXiv 1908.06077. [P] §5
    """
    if d < 2 ** (2 * s + 2):
        return 1 / 8 + d * 2.0 ** (-2 * s - 2)
    return 2.0**-s * math.sqrt(d) - 7 / 8


def all_ones_variance(levels: npt.ArrayLike, d: int) -> float:
    """Exact relative variance of v = (1, …, 1), q = 2: ℓ_1√d − 1. A lower bound on any ε_Q.

    Raises:
        ValueError: √d < 1/ℓ_1, where v does not fall into the first cell. [P] §5
    """
    first = float(check_levels(levels)[1])
    if math.sqrt(d) * first < 1.0:
        raise ValueError(f"needs d ≥ 1/ℓ_1² = {first**-2:.4g}, got {d}")
    return first * math.sqrt(d) - 1.0


def rounded_variance(values: npt.ArrayLike, step: float) -> float:
    """Exact E‖kΔ − v‖², k = ⌊v/Δ + U⌋: Δ² Σ f_i(1 − f_i), f_i = v_i/Δ − ⌊v_i/Δ⌋. [P] §8"""
    scaled = np.asarray(values, dtype=np.float64) / step
    fraction = scaled - np.floor(scaled)
    return float(step**2 * np.sum(fraction * (1.0 - fraction)))


def dithered_variance(d: int, step: float) -> float:
    """Exact E‖(k − U + ½)Δ − v‖² = dΔ²/12, whatever v is. [P] §8"""
    return d * step**2 / 12.0


def rounded_relative_bound(c: float) -> float:
    """ε ≤ c²/4 for step Δ = c · RMS(v), rounded reconstruction. [P] §8"""
    return c * c / 4.0


def dithered_relative_variance(c: float) -> float:
    """ε = c²/12 for step Δ = c · RMS(v), dithered reconstruction; exact. [P] §8"""
    return c * c / 12.0


def _first_level_scale(level_sequences: Sequence[Any], d: int, q: float) -> float:
    if q < 1.0:
        raise ValueError(f"q must be in [1, ∞], got {q}")
    first = max(float(check_levels(levels)[1]) for levels in level_sequences)
    return first * float(d) ** (1.0 / min(q, 2.0))

"""Bits per payload: what the symbols allow and what codes reach (docs/theory.md §4, §8).

Lengths are in bits. A type m has d_m coordinates and symbol probabilities p^m over its levels
0..s+1; signs are not part of the symbol and cost one bit for every non-zero level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from horovod_qoda.theory.variance import Array, check_levels

NORM_BITS = 32  # C_q: a bucket's norm travels as float32


def entropy(probabilities: npt.ArrayLike) -> float:
    """H(p) = −Σ p_j log2 p_j, bits per symbol; 0 log 0 = 0. [P] §4"""
    p = _check_distribution(probabilities)
    p = p[p > 0]
    return float(-np.sum(p * np.log2(p)))


def kl_divergence(probabilities: npt.ArrayLike, table: npt.ArrayLike) -> float:
    """KL(p‖p̂) = Σ p_j log2(p_j/p̂_j): bits per symbol that a code made for p̂ loses on p.

    inf where p̂_j = 0 < p_j. [P] §4
    """
    p, p_hat = _check_distribution(probabilities), _check_distribution(table)
    used = p > 0
    if np.any(p_hat[used] == 0):
        return math.inf
    return float(np.sum(p[used] * np.log2(p[used] / p_hat[used])))


def symbol_probabilities(normalised: npt.ArrayLike, levels: npt.ArrayLike) -> Array:
    """p_j of stochastic rounding, from the coordinates r_i = |v_i|/‖v‖_q themselves.

    Each r in [ℓ_j, ℓ_{j+1}] gives (ℓ_{j+1} − r)/(ℓ_{j+1} − ℓ_j) to p_j and the rest to p_{j+1}.

    Args:
        normalised: (n,) values in [0, 1], n > 0.
        levels: (s + 2,) level sequence.

    Returns:
        (s + 2,) probabilities. [P] §4
    """
    r = np.asarray(normalised, dtype=np.float64).ravel()
    sequence = check_levels(levels)
    if r.size == 0 or r.min() < 0.0 or r.max() > 1.0:
        raise ValueError("normalised coordinates must be at least one number of [0, 1]")
    cell = np.minimum(np.searchsorted(sequence, r, side="right") - 1, sequence.size - 2)
    up = (r - sequence[cell]) / (sequence[cell + 1] - sequence[cell])
    counts = np.bincount(cell, 1.0 - up, sequence.size)
    counts += np.bincount(cell + 1, up, sequence.size)
    return counts / r.size


def length_lower_bound(
    counts: Sequence[int], probabilities: Sequence[npt.ArrayLike], buckets: int
) -> float:
    """Σ_b C_q + Σ_m d_m (H(p^m) + 1 − p^m_0): no prefix code of symbols and signs is shorter.

    Args:
        counts: d_m of each type.
        probabilities: p^m of each type; empirical for one payload, exact for a mean.
        buckets: number of norms, 32 bits each.

    Returns:
        Bits. arXiv 2505.14371, Theorem 5.3; [P] in this form. §4
    """
    symbols = sum(d * entropy(p) for d, p in zip(counts, probabilities, strict=True))
    return _norms_and_signs(counts, probabilities, buckets) + symbols


def huffman_upper_bound(
    counts: Sequence[int], probabilities: Sequence[npt.ArrayLike], buckets: int
) -> float:
    """:func:`length_lower_bound` + Σ_m d_m: Huffman codes of the true p^m stay below. [P] §4

    For codes of another table use :func:`shannon_length`: a Huffman code of p̂ ≠ p may exceed even
    lower + d_m + d_m KL(p^m‖p̂^m).
    """
    return length_lower_bound(counts, probabilities, buckets) + sum(counts)


def shannon_length(
    counts: Sequence[int],
    probabilities: Sequence[npt.ArrayLike],
    tables: Sequence[npt.ArrayLike],
    buckets: int,
) -> float:
    """Exact length with Shannon's code words of ⌈−log2 p̂_j⌉ bits; inf where p̂_j = 0 < p_j.

    [P] §4
    """
    bits = _norms_and_signs(counts, probabilities, buckets)
    for d, p_like, table in zip(counts, probabilities, tables, strict=True):
        p, p_hat = _check_distribution(p_like), _check_distribution(table)
        used = p > 0
        if np.any(p_hat[used] == 0):
            return math.inf
        bits += d * float(np.sum(p[used] * np.ceil(-np.log2(p_hat[used]))))
    return bits


def rans_target(
    counts: Sequence[int],
    probabilities: Sequence[npt.ArrayLike],
    tables: Sequence[npt.ArrayLike],
    buckets: int,
    overhead: float = 0.01,
) -> float:
    """(1 + overhead)(lower + Σ_m d_m KL(p^m‖p̂^m)): what an entropy coder is held to.

    Args:
        overhead: 0.01, for payloads of at least 64 KiB with tables, offsets and header included.

    Returns:
        Bits. A target, not a theorem. §4
    """
    mismatch = sum(
        d * kl_divergence(p, table)
        for d, p, table in zip(counts, probabilities, tables, strict=True)
    )
    return (1.0 + overhead) * (length_lower_bound(counts, probabilities, buckets) + mismatch)


def pooled_entropy(counts: Sequence[int], probabilities: Sequence[npt.ArrayLike]) -> float:
    """Bits per symbol of one codebook over the pooled alphabet {(m, j)}, the alternating protocol.

    H(type) + Σ_m (d_m/d) H(p^m): H(type) more than one codebook per type pays. [P] §4
    """
    share = np.asarray(counts, dtype=np.float64) / sum(counts)
    within = sum(w * entropy(p) for w, p in zip(share, probabilities, strict=True))
    return entropy(share) + float(within)


def one_stream_entropy_bound(c: float) -> float:
    """Bits per coordinate of k = ⌊v/Δ + U⌋ at step Δ = c · RMS(v): ½ log2(2πe(1/c² + 1/3)).

    Holds for every v, both reconstructions and any dimension; on Gaussian data it is about 0.1 bit
    above the entropy at c = 1. [P] §8
    """
    if c <= 0.0:
        raise ValueError(f"c must be positive, got {c}")
    return 0.5 * math.log2(2.0 * math.pi * math.e * (1.0 / c**2 + 1.0 / 3.0))


def _norms_and_signs(
    counts: Sequence[int], probabilities: Sequence[npt.ArrayLike], buckets: int
) -> float:
    signs = sum(
        d * (1.0 - float(_check_distribution(p)[0]))
        for d, p in zip(counts, probabilities, strict=True)
    )
    return NORM_BITS * buckets + signs


def _check_distribution(probabilities: npt.ArrayLike) -> Array:
    p = np.asarray(probabilities, dtype=np.float64).ravel()
    if p.size == 0 or p.min() < 0.0 or not math.isclose(float(p.sum()), 1.0, abs_tol=1e-9):
        raise ValueError("probabilities must be non-negative and add up to 1")
    return p

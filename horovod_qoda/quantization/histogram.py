"""Histograms of normalised magnitudes, the data that levels are fitted to (docs/theory.md §3).

``BINS`` bins cover [0, 1]: 128 equal ones in every octave from 2^-16 on, so that bins are narrow
where small coordinates crowd; the first one reaches down to 0. Two more slots, the first and the
last, count exact zeros and exact ones, which no choice of levels can quantise badly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BINS = 2048
SLOTS = BINS + 2

_SHIFT = 16  # of a float32's bits: 7 bits of mantissa remain, 128 bins an octave
_LOWEST = int(np.float32(2.0**-16).view(np.int32)) >> _SHIFT

SAMPLE = 64 * 1024
"""Coordinates of a layer that are looked at: 64 buckets of 1,024 on every rank, about 2 ms. A bin's
count is then known to a few percent, and levels depend on sums over many bins."""

Histogram = npt.NDArray[np.float64]


def bin_edges() -> npt.NDArray[np.float64]:
    """Edges of the bins, float64 [BINS + 1], from 0 to 1."""
    bits = (np.arange(BINS + 1, dtype=np.int32) + _LOWEST) << _SHIFT
    edges = bits.view(np.float32).astype(np.float64)
    edges[0] = 0.0
    return edges


def normalised_histograms(
    values: npt.NDArray[np.float32], bucket: int, norm: str
) -> tuple[Histogram, Histogram]:
    """Histograms of |v| / norm over the buckets of a layer, or over a sample of its buckets.

    Args:
        values: (n,) float32, finite: one layer's coordinates.
        bucket: coordinates that share a norm; 0 for the whole layer.
        norm: "linf" or "l2".

    Returns:
        Two arrays [SLOTS], scaled to the layer's n coordinates: counts, and counts weighted by the
        squared norm of the bucket. Both are zero for an empty or all-zero layer, the first but for
        its zeros.
    """
    counts, weighted = np.zeros((2, SLOTS))
    if not values.size:
        return counts, weighted
    if not bucket or bucket >= values.size:
        norms = _norms(values[None, :], norm)
        rows = values[:: max(1, values.size // SAMPLE)][None, :]
    else:
        rows = values[: values.size // bucket * bucket].reshape(-1, bucket)
        rows = rows[:: max(1, rows.size // SAMPLE)]
        norms = _norms(rows, norm)
    magnitudes = np.abs(rows)
    scale = np.where((norms > 0) & np.isfinite(norms), norms, np.float32(1))
    with np.errstate(over="ignore"):
        r = np.minimum(magnitudes / scale[:, None].astype(np.float32), np.float32(1))
    slot = np.clip((r.view(np.int32) >> _SHIFT) - _LOWEST, 0, BINS) + 1
    slot[r == 0] = 0
    share = values.size / rows.size
    flat = slot.ravel()
    counts += share * np.bincount(flat, minlength=SLOTS)
    weights = np.repeat(norms**2, rows.shape[1])
    weighted += share * np.bincount(flat, weights, minlength=SLOTS)
    return counts, weighted


def _norms(rows: npt.NDArray[np.float32], norm: str) -> npt.NDArray[np.float64]:
    if norm == "l2":
        return np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return np.abs(rows).max(axis=1).astype(np.float64)

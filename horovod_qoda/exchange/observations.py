"""What ranks measure of their gradients at an update exchange, and its sums over all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from horovod_qoda.coding import entropy
from horovod_qoda.transport import Transport

SAMPLE = 16 * 1024
"""Coordinates of a layer looked at to choose its reconstruction and to predict its rate."""

_UNITS = 40
"""Bits of the largest amount in a row when it becomes an integer: 2^22 ranks fit into int64."""

_NOTHING = -900
"""Exponent that stands for a total of zero."""

Arrays = dict[str, np.ndarray]


def sum_over_ranks(
    transport: Transport, name: str, counts: Mapping[str, np.ndarray], amounts: Arrays
) -> tuple[Arrays, Arrays]:
    """Sums of both kinds over all ranks, the same on every rank to the last bit.

    Args:
        counts: int64 arrays, summed as they are.
        amounts: non-negative float64 arrays [rows, n]. A row is summed in integers too, in units of
            2^-40 of its largest total on any rank, so that the order of ranks does not matter.
    """
    units = {key: np.zeros(len(rows), np.int64) for key, rows in amounts.items()}
    if any(rows.size for rows in amounts.values()):
        totals = np.concatenate([rows.sum(axis=1) for rows in amounts.values()])
        # A rank that saw nothing of a row must not say how finely others may count.
        mine = np.where(totals > 0, np.frexp(totals)[1], _NOTHING)
        gathered = transport.allgather(name + ".units", mine.astype(np.int64)).wait()
        largest = gathered.reshape(transport.size, -1).max(axis=0) - _UNITS
        ends = np.cumsum([len(rows) for rows in amounts.values()])[:-1]
        units = dict(zip(amounts, np.split(largest, ends), strict=True))
    parts = dict(counts)
    for key, rows in amounts.items():
        parts[key] = np.rint(np.ldexp(rows, -units[key][:, None])).astype(np.int64)
    total = transport.allreduce(name, np.concatenate([x.ravel() for x in parts.values()])).wait()
    ends = np.cumsum([x.size for x in parts.values()])[:-1]
    sums = {
        key: flat.reshape(parts[key].shape)
        for key, flat in zip(parts, np.split(total, ends), strict=True)
    }
    floats = {
        key: np.ldexp(sums.pop(key).astype(np.float64), unit[:, None])
        for key, unit in units.items()
    }
    return sums, floats


def sample(values: np.ndarray, most: int = SAMPLE) -> np.ndarray:
    """Up to 2 ``most`` - 1 coordinates at equal distances.

    The distance shares no factor 2, 3, 5 or 7 with the rows of a matrix, or the sample would come
    from a few of its columns: of images from their corners, which are always black.
    """
    distance = max(1, len(values) // most)
    while math.gcd(distance, 2 * 3 * 5 * 7) > 1:
        distance += 1
    return values[::distance]


def sample_of_buckets(values: np.ndarray, bucket: int, most: int = SAMPLE) -> np.ndarray:
    """As :func:`sample`, but whole buckets, one a row; everything where the layer is one."""
    if not bucket or bucket >= len(values):
        return values
    rows = values[: len(values) // bucket * bucket].reshape(-1, bucket)
    return rows[:: max(1, len(rows) * bucket // most)]


def symbol_entropy(scaled: np.ndarray) -> float:
    """Bits per symbol of the one-stream quantiser at step 1."""
    symbols = np.floor(scaled + spread_dither(scaled.shape))
    return entropy(np.unique(symbols, return_counts=True)[1])


def spread_dither(shape: tuple[int, ...]) -> np.ndarray:
    """Multiples of the golden ratio: spread evenly over [0, 1), and they need no generator."""
    return ((np.arange(int(np.prod(shape))) * 0.6180339887498949) % 1).reshape(shape)


def rounding_variance(scaled: np.ndarray) -> float:
    """Sum of f (1 - f), f the fractional parts: the variance of rounding at step 1."""
    fraction = scaled - np.floor(scaled)
    return float(np.sum(fraction * (1 - fraction)))

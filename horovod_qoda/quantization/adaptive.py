"""Level sequences fitted to a histogram of normalised magnitudes (docs/theory.md §3).

Inside a bin the distribution is taken as uniform, so that its integrals are exact and its inverse
exists. Coordinate descent is ALQ's, the fit of one ratio AMQ's (arXiv 2010.12460).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from horovod_qoda.quantization.histogram import BINS, SLOTS, bin_edges
from horovod_qoda.quantization.levels import MOST_LEVELS, Levels, exponential, uniform

Array = npt.NDArray[np.float64]

SOLVERS = ("alq", "amq")

RESIDUAL = 1e-8
"""Coordinate descent has converged when no level moved by more."""

SWEEPS = 50
"""Most passes over the levels. They converge like (1 - O(1/s^2))^passes, but from the companded
start, itself within 2 %, 50 of them leave less than 0.3 % of variance to gain up to 30 levels."""

MIN_GAP = 2.0**-22
"""Least distance between levels: float32 can still tell them apart next to 1."""

_GRID = bin_edges()[np.linspace(0, BINS, 41).astype(int)[1:-1]]

_RATIOS = np.exp(np.linspace(np.log(0.02), np.log(0.98), 96))


class Distribution:
    """Mass and moments up to any point of [0, 1] of one histogram.

    Args:
        histogram: [SLOTS] of non-negative counts or weights, see `histogram`; slots of exact zeros
            and ones have no variance and are left out.
    """

    edges = bin_edges()

    def __init__(self, histogram: npt.ArrayLike) -> None:
        slots = np.asarray(histogram, dtype=np.float64)
        if slots.shape != (SLOTS,) or not np.isfinite(slots).all() or (slots < 0).any():
            raise ValueError(f"a histogram must be {SLOTS} finite numbers >= 0")
        inner = slots[1:-1]
        self.total = float(inner.sum())
        self._density = inner / (self.total or 1.0) / np.diff(self.edges)
        low, high = self.edges[:-1], self.edges[1:]
        self._mass = _cumulate(self._density * (high - low))
        self._first = _cumulate(self._density * (high**2 - low**2) / 2)
        self._second = _cumulate(self._density * (high**3 - low**3) / 3)

    def moments(self, x: Array) -> tuple[Array, Array, Array]:
        """Integrals of 1, u and u^2 from 0 to every x, with the total mass scaled to 1."""
        k = np.clip(np.searchsorted(self.edges, x, side="right") - 1, 0, BINS - 1)
        low, density = self.edges[k], self._density[k]
        return (
            self._mass[k] + density * (x - low),
            self._first[k] + density * (x**2 - low**2) / 2,
            self._second[k] + density * (x**3 - low**3) / 3,
        )

    def inverse(self, mass: Array) -> Array:
        """The smallest x whose mass is at least the given one."""
        k = np.clip(np.searchsorted(self._mass, mass, side="left") - 1, 0, BINS - 1)
        density = self._density[k]
        inside = np.where(
            density > 0, (mass - self._mass[k]) / np.where(density > 0, density, 1), 0
        )
        return np.clip(self.edges[k] + inside, self.edges[k], self.edges[k + 1])

    def companded(self, count: int) -> Array:
        """Levels whose density goes as the cube root of the distribution's, [count + 2].

        Optimal for many levels: a cell of width w at density f costs f w^3 / 6 (Panter and Dite's
        argument). Bins are merged into sixteenths of octaves first, because roots amplify noise.
        """
        edges = np.concatenate([[0.0], self.edges[8::8]])
        mass = np.diff(np.concatenate([[0.0], self._mass[8::8]]))
        width = np.diff(edges)
        # A thousandth of a uniform distribution besides, so that levels never pile up.
        root = np.cbrt(mass / width + 1e-3) * width
        reached = _cumulate(root)
        return np.interp(np.linspace(0, reached[-1], count + 2), reached, edges)


def expected_variance(histogram: npt.ArrayLike, levels: npt.ArrayLike) -> float:
    """Psi(levels): the mean of (l_{j+1} - u)(u - l_j) over the histogram, exact ones and zeros
    included; times the histogram's sum it is the squared error of a weighted one."""
    slots = np.asarray(histogram, dtype=np.float64)
    total = float(slots.sum())
    if total == 0:
        return 0.0
    d = Distribution(slots)
    return float(_psi(d, np.asarray(levels, np.float64)[None, :])[0]) * d.total / total


def symbol_probabilities(histogram: npt.ArrayLike, levels: npt.ArrayLike) -> Array:
    """p_j, [s + 2], of rounding an unweighted histogram to levels (docs/theory.md §4).

    Raises:
        ValueError: the histogram is empty.
    """
    slots = np.asarray(histogram, dtype=np.float64)
    if not slots.sum() > 0:
        raise ValueError("no symbol probabilities without coordinates")
    sequence = np.asarray(levels, dtype=np.float64)
    d = Distribution(slots)
    mass, first, _ = d.moments(sequence)
    mass, first = np.diff(mass), np.diff(first)
    up = (first - sequence[:-1] * mass) / np.diff(sequence)
    p = np.zeros(sequence.size)
    p[1:] += up * d.total
    p[:-1] += (mass - up) * d.total
    p[0] += slots[0]
    p[-1] += slots[-1]
    p = np.maximum(p, 0.0)
    return p / p.sum()


def level_rate(histogram: npt.ArrayLike, levels: npt.ArrayLike, bucket: float) -> float:
    """Coded bits per coordinate: entropy of the levels, signs of all but 0, a norm a bucket."""
    p = symbol_probabilities(histogram, levels)
    used = p[p > 0]
    return float(-(used * np.log2(used)).sum()) + 1.0 - float(p[0]) + 32.0 / bucket


def fit_levels(histogram: npt.ArrayLike, count: int, solver: str = "alq") -> Levels:
    """Levels of least expected variance for a histogram weighted by squared norms.

    Args:
        histogram: [SLOTS], see `normalised_histograms`.
        count: number s of inner levels.
        solver: "alq", coordinate descent from quantiles, uniform, exponential and companded levels,
            for up to three levels from the best of a grid too; the best is kept. "amq", the best
            ratio p of levels p^j, over 10 times faster.

    Returns:
        float32 [count + 2], rising strictly from 0 to 1; its expected variance is at most that of
        `uniform` levels. Uniform levels for a histogram without inner mass.
    """
    if solver not in SOLVERS:
        raise ValueError(f"level_solver must be one of {', '.join(SOLVERS)}, not {solver!r}")
    plain = uniform(count)
    d = Distribution(histogram)
    if count == 0 or d.total == 0:
        return plain
    if solver == "alq":
        found = coordinate_descent(d, _starts(d, count))
    else:
        found = _best_ratio(d, count)[None, :]
    candidates = np.array([_to_levels(x) for x in found] + [plain])
    return candidates[int(np.argmin(_psi(d, candidates.astype(np.float64))))]


def companded_levels(histogram: npt.ArrayLike, count: int) -> Levels:
    """Levels within a few percent of :func:`fit_levels`' variance, in a hundredth of its time."""
    d = Distribution(histogram)
    return _to_levels(d.companded(count)) if d.total else uniform(count)


def count_for_rate(
    counts: npt.ArrayLike, weighted: npt.ArrayLike, bits: float, bucket: float
) -> int:
    """The number s of fitted levels whose rate on this data is nearest to ``bits``.

    The rate is estimated with companded levels, within a few hundredths of a bit of fitted ones.
    """
    return nearest_count(lambda s: level_rate(counts, companded_levels(weighted, s), bucket), bits)


def nearest_count(rate: Callable[[int], float], bits: float) -> int:
    """The s in 0..MOST_LEVELS whose rate, which rises with s, is nearest to ``bits``."""
    low, high = 0, MOST_LEVELS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if rate(middle) < bits else (low, middle)
    return low if abs(rate(low) - bits) <= abs(rate(high) - bits) else high


def coordinate_descent(d: Distribution, starts: Array, sweeps: int = SWEEPS) -> Array:
    """ALQ's update of every level, odd ones and even ones in turn, until none moves.

    Levels of one parity do not depend on each other, so each half pass is a block of exact
    minimisations, and Psi never rises.

    Args:
        starts: float64 [n, s + 2], each row rising from 0 to 1; all are improved at once.
    """
    levels = starts.copy()
    for _ in range(sweeps):
        before = levels.copy()
        for first in (1, 2):
            inner = slice(first, -1, 2)
            low, high = levels[:, first - 1 : -2 : 2], levels[:, first + 1 :: 2]
            if not low.size:
                continue
            (mass_low, mass_high), (one_low, one_high) = (
                np.split(x, 2, axis=1) for x in d.moments(np.hstack([low, high]))[:2]
            )
            above = (one_high - one_low - low * (mass_high - mass_low)) / (high - low)
            wanted = d.inverse(mass_high - above)
            # Where a cell is empty any level will do.
            filled = mass_high - mass_low > 1e-15
            levels[:, inner] = np.where(filled, np.clip(wanted, low, high), levels[:, inner])
        levels = _apart(levels)
        if np.abs(levels - before).max() < RESIDUAL:
            break
    return levels


def _psi(d: Distribution, levels: Array) -> Array:
    mass, first, second = (np.diff(x, axis=1) for x in d.moments(levels))
    low, high = levels[:, :-1], levels[:, 1:]
    return np.maximum((low + high) * first - second - low * high * mass, 0.0).sum(axis=1)


def _starts(d: Distribution, count: int) -> Array:
    quantiles = d.inverse(np.arange(count + 2) / (count + 1))
    quantiles[0], quantiles[-1] = 0.0, 1.0
    # Halving 30 times is below what the histogram resolves.
    halves = exponential(min(count, 30)).astype(np.float64)
    fine = np.linspace(0.0, halves[1], count + 4 - halves.size)[:-1]
    starts = [
        quantiles,
        uniform(count).astype(np.float64),
        np.concatenate([fine, halves[1:]]),
        d.companded(count),
    ]
    if 1 <= count <= 3:
        # So few levels that every choice on a grid can be tried: no basin is missed.
        inner = np.array(list(itertools.combinations(_GRID, count)))
        ends = np.zeros((len(inner), 1)), np.ones((len(inner), 1))
        every = np.hstack([ends[0], inner, ends[1]])
        starts.append(every[int(np.argmin(_psi(d, every)))])
    return _apart(np.array(starts))


def _best_ratio(d: Distribution, count: int) -> Array:
    """Levels 0, p^s, ..., p, 1 with the p of least Psi: a grid, then a finer one around it."""
    ratios = _RATIOS
    for _ in range(2):
        found = _apart(_powers(ratios, count))
        best = int(np.argmin(_psi(d, found)))
        low, high = ratios[max(best - 1, 0)], ratios[min(best + 1, len(ratios) - 1)]
        ratios = np.linspace(low, high, 32)
    return found[best]


def _powers(ratios: Array, count: int) -> Array:
    powers = ratios[:, None] ** np.arange(count, -1.0, -1.0)[None, :]
    return np.hstack([np.zeros((len(ratios), 1)), powers])


def _apart(levels: Array) -> Array:
    """Levels moved as little as makes neighbours at least MIN_GAP apart."""
    steps = MIN_GAP * np.arange(levels.shape[1])
    up = np.maximum.accumulate(levels - steps, axis=1)
    down = np.minimum(up, 1.0 - steps[-1])
    down[:, 0] = 0.0
    out = np.maximum(down, 0.0) + steps
    out[:, -1] = 1.0
    return out


def _to_levels(levels: Array) -> Levels:
    return _apart(np.asarray(levels, np.float64)[None, :])[0].astype(np.float32)


def _cumulate(x: Array) -> Array:
    return np.concatenate([[0.0], np.cumsum(x)])

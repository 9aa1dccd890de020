"""Levels fitted to histograms: against exhaustive search, exact variances and sampled symbols."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_qoda import theory
from horovod_qoda.quantization import uniform
from horovod_qoda.quantization.adaptive import (
    Distribution,
    companded_levels,
    coordinate_descent,
    count_for_rate,
    expected_variance,
    fit_levels,
    level_rate,
    nearest_count,
    symbol_probabilities,
)
from horovod_qoda.quantization.histogram import BINS, SLOTS, bin_edges, normalised_histograms


def gradient(seed, buckets=64, bucket=512):
    """Coordinates of one of several distributions, with scales that differ between buckets."""
    rng = np.random.default_rng(seed)
    shape = (buckets, bucket)
    kind = seed % 4
    v = [rng.standard_normal, rng.laplace, rng.standard_cauchy, rng.uniform][kind](size=shape)
    v *= np.exp(rng.standard_normal((buckets, 1)))
    if rng.random() < 0.3:
        v *= rng.random(shape) < rng.uniform(0.02, 0.5)
    return v.astype(np.float32).ravel()


def histogram_strategy():
    """A few clusters of weight anywhere, many orders of magnitude apart."""
    return st.lists(
        st.tuples(st.integers(1, BINS), st.integers(1, 400), st.floats(1e-6, 1e6)),
        min_size=1,
        max_size=6,
    ).map(spread)


def spread(clusters):
    slots = np.zeros(SLOTS)
    for at, width, weight in clusters:
        slots[at : min(at + width, BINS + 1)] += weight
    return slots


def test_bins():
    edges = bin_edges()
    assert edges[0] == 0 and edges[-1] == 1 and len(edges) == BINS + 1
    assert (np.diff(edges) > 0).all()
    v = np.array([0, 1e-7, 0.25, 0.5, 0.999, 1, -1, -0.25], np.float32)
    counts, weighted = normalised_histograms(v, 0, "linf")
    assert counts[0] == 1 and counts[-1] == 2 and counts.sum() == 8
    assert counts[1] == 1, "tiny magnitudes share the first bin"
    for x, times in ((0.25, 2), (0.5, 1), (0.999, 1)):
        at = int(np.searchsorted(edges, x, side="right"))
        assert counts[at] == times
    assert np.allclose(weighted, counts)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_histograms_weigh_buckets_by_squared_norms(norm):
    v = gradient(0, buckets=8, bucket=128)
    counts, weighted = normalised_histograms(v, 128, norm)
    rows = v.reshape(8, 128).astype(np.float64)
    norms = np.abs(rows).max(1) if norm == "linf" else np.sqrt((rows**2).sum(1))
    assert counts.sum() == 1024
    assert weighted.sum() == pytest.approx(128 * (norms**2).sum(), rel=1e-6)


def test_a_sample_stands_for_the_layer():
    rng = np.random.default_rng(5)
    v = rng.standard_normal(1 << 20).astype(np.float32)
    counts, _ = normalised_histograms(v, 1024, "linf")
    assert counts.sum() == pytest.approx(v.size)
    assert normalised_histograms(v[:0], 1024, "linf")[0].sum() == 0
    zeros, weighted = normalised_histograms(np.zeros(2048, np.float32), 1024, "l2")
    assert zeros[0] == 2048 and not weighted.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed", range(4))
def test_expected_variance_is_the_exact_one_up_to_bins(seed, norm):
    v = gradient(seed)
    counts, weighted = normalised_histograms(v, 512, norm)
    q = np.inf if norm == "linf" else 2
    for levels in (uniform(6), fit_levels(weighted, 6)):
        exact = sum(theory.level_variance(b, levels, q) for b in v.reshape(-1, 512))
        assert expected_variance(weighted, levels) * weighted.sum() == pytest.approx(
            exact, rel=0.02
        )
        norms = np.linalg.norm(v.reshape(-1, 512).astype(np.float64), ord=q, axis=1)
        r = np.minimum(np.abs(v.reshape(-1, 512)) / norms[:, None], 1)
        want = theory.symbol_probabilities(r, levels)
        got = symbol_probabilities(counts, levels)
        assert np.abs(got - want).max() < 2e-3, (got, want)


@given(slots=histogram_strategy(), count=st.integers(0, 20), solver=st.sampled_from(["alq", "amq"]))
@settings(max_examples=60, deadline=None)
def test_levels_rise_and_are_no_worse_than_uniform(slots, count, solver):
    levels = fit_levels(slots, count, solver)
    assert levels.dtype == np.float32 and levels.shape == (count + 2,)
    assert levels[0] == 0 and levels[-1] == 1 and (np.diff(levels) > 0).all()
    assert expected_variance(slots, levels) <= expected_variance(slots, uniform(count)) * (1 + 1e-9)


@given(slots=histogram_strategy(), count=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_descent_never_rises(slots, count):
    d = Distribution(slots)
    levels = uniform(count).astype(np.float64)[None, :]
    before = expected_variance(slots, levels[0])
    for _ in range(15):
        levels = coordinate_descent(d, levels, sweeps=1)
        now = expected_variance(slots, levels[0])
        # Keeping levels apart may cost a gap's width.
        assert now <= before + 1e-6 * (slots.sum() and 1)
        before = now


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_good_as_exhaustive_search_on_a_grid(count):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    grid = bin_edges()[np.unique(np.linspace(0, BINS, 61).astype(int))]
    for _ in range(3):
        slots = np.zeros(SLOTS)
        slots[1:-1] = rng.gamma(0.3, size=BINS) * np.exp(rng.normal() * np.linspace(-3, 3, BINS))
        d = Distribution(slots)
        inner = np.array(list(itertools.combinations(grid[1:-1], count)))
        every = np.hstack([np.zeros((len(inner), 1)), inner, np.ones((len(inner), 1))])
        mass, first, second = (np.diff(x, axis=1) for x in d.moments(every))
        low, high = every[:, :-1], every[:, 1:]
        best = ((low + high) * first - second - low * high * mass).sum(axis=1).min()
        assert expected_variance(slots, fit_levels(slots, count)) <= best * 1.001


@pytest.mark.parametrize("scale", [2.0**-20, 3.0, 1e-6, 7e9])
def test_levels_do_not_depend_on_scale(scale):
    """To the bit by a power of two; else up to coordinates that rounding moves to the next bin."""
    v = gradient(1)
    _, weighted = normalised_histograms(v, 512, "linf")
    _, scaled = normalised_histograms(v * np.float32(scale), 512, "linf")
    found, again = fit_levels(weighted, 6), fit_levels(scaled, 6)
    if np.log2(scale) % 1 == 0:
        assert np.array_equal(found, again)
    np.testing.assert_allclose(again, found, rtol=1e-3)


def test_fitted_levels_gain_and_amq_is_between():
    for seed in range(3):
        _, weighted = normalised_histograms(gradient(4 * seed + seed % 2), 512, "linf")
        plain, amq, alq = (
            expected_variance(weighted, levels)
            for levels in (uniform(6), fit_levels(weighted, 6, "amq"), fit_levels(weighted, 6))
        )
        assert alq <= amq <= plain and alq < 0.8 * plain
        assert expected_variance(weighted, companded_levels(weighted, 6)) < 1.1 * alq


def test_layer_wise_is_never_worse_than_global():
    """sum_m min Psi_m <= min sum_m Psi_m (docs/theory.md §3), and less where types differ."""
    per_type = [normalised_histograms(gradient(s), 512, "linf")[1] for s in (0, 2, 5)]
    pooled = np.sum(per_type, axis=0)
    alone = sum(expected_variance(w, fit_levels(w, 4)) * w.sum() for w in per_type)
    together = expected_variance(pooled, fit_levels(pooled, 4)) * pooled.sum()
    assert alone < 0.999 * together


def test_count_for_rate():
    counts, weighted = normalised_histograms(gradient(0), 512, "linf")
    for bits in (2.0, 3.0, 4.0):
        s = count_for_rate(counts, weighted, bits, 512)
        gaps = [
            abs(level_rate(counts, fit_levels(weighted, n), 512) - bits) for n in (s - 1, s, s + 1)
        ]
        assert gaps[1] <= min(gaps) + 0.05
    assert count_for_rate(counts, weighted, 0.1, 512) == 0
    assert nearest_count(lambda s: float(s), 41.6) == 42


def test_refusals():
    with pytest.raises(ValueError, match="level_solver"):
        fit_levels(np.ones(SLOTS), 3, "newton")
    with pytest.raises(ValueError, match="histogram"):
        fit_levels(-np.ones(SLOTS), 3)
    with pytest.raises(ValueError, match="histogram"):
        expected_variance(np.ones(7), uniform(1))
    with pytest.raises(ValueError, match="coordinates"):
        symbol_probabilities(np.zeros(SLOTS), uniform(1))
    assert np.array_equal(fit_levels(np.zeros(SLOTS), 3), uniform(3))

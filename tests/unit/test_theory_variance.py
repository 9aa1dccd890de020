"""Variance formulas against sampling, and bounds against exact variances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_qoda import theory

CASES = 2500


def random_levels(rng: np.random.Generator) -> np.ndarray:
    """Uniform, exponential, ternary, or anything increasing, with 0 to 14 inner levels."""
    s = int(rng.integers(0, 15))
    kind = rng.integers(3)
    if kind == 0:
        return np.linspace(0.0, 1.0, s + 2)
    if kind == 1:
        ratio = rng.uniform(0.2, 0.8)
        return np.concatenate([[0.0], ratio ** np.arange(s, -1, -1)])
    inner = np.unique(rng.uniform(0.0, 1.0, s) ** rng.uniform(1.0, 4.0))
    return np.concatenate([[0.0], inner[(inner > 1e-9) & (inner < 1.0)], [1.0]])


def random_vector(rng: np.random.Generator) -> np.ndarray:
    """Dense, heavy-tailed, sparse, nearly constant or one-hot; any size and scale."""
    d = int(np.exp(rng.uniform(0.0, np.log(2000.0))))
    kind = rng.integers(5)
    if kind == 0:
        v = rng.standard_normal(d)
    elif kind == 1:
        v = rng.standard_t(1.5, d)
    elif kind == 2:
        v = rng.standard_normal(d) * (rng.random(d) < 0.1)
    elif kind == 3:
        v = 1.0 + 0.01 * rng.standard_normal(d)
    else:
        v = np.zeros(d)
        v[rng.integers(d)] = 1.0
    return v * 10.0 ** rng.uniform(-6, 6)


def test_no_bound_is_ever_exceeded() -> None:
    seed = 20240
    print("seed", seed)
    rng = np.random.default_rng(seed)
    closest = 0.0
    for case in range(CASES):
        levels, v = random_levels(rng), random_vector(rng)
        q = float(rng.choice([1.0, 1.5, 2.0, 3.0, math.inf]))
        norm_sq = float(v @ v)
        if norm_sq == 0.0:
            assert theory.level_variance(v, levels, q) == 0.0
            continue
        relative = theory.level_variance(v, levels, q) / norm_sq
        tight = theory.variance_bound_tight([levels], v.size, q)
        plain = theory.variance_bound([levels], v.size, q)
        slack = 1e-12 * (1.0 + tight)
        assert relative <= tight + slack, (seed, case)
        assert tight <= plain + slack, (seed, case)
        closest = max(closest, relative / tight if tight > 0 else 0.0)
    assert closest > 0.99  # the bound is not vacuous


def test_layer_wise_and_bucketed_bounds_hold_for_mixed_types() -> None:
    seed = 7
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for _ in range(300):
        buckets = [(random_vector(rng), random_levels(rng)) for _ in range(rng.integers(1, 6))]
        q = float(rng.choice([1.0, 2.0, math.inf]))
        exact = sum(theory.level_variance(v, levels, q) for v, levels in buckets)
        norm_sq = sum(float(v @ v) for v, _ in buckets)
        bucketed = theory.bucketed_bound(buckets, q)
        largest = max(v.size for v, _ in buckets)
        joint = theory.variance_bound_tight([levels for _, levels in buckets], largest, q)
        assert exact <= bucketed * (1 + 1e-12)
        assert bucketed <= joint * norm_sq * (1 + 1e-12)


@pytest.mark.parametrize("levels", [[0, 1], [0, 0.5, 1], [0, 0.25, 0.5, 1], [0, 0.1, 0.9, 1]])
def test_all_ones_attains_the_tight_form(levels: list[float]) -> None:
    kappa = theory.ratio_term([levels])
    attained = 0
    for d in (1, 4, 50, 400, 5000, 10**5):
        if math.sqrt(d) * levels[1] < 1:
            continue
        exact = theory.level_variance(np.ones(d), levels, 2.0) / d
        assert exact == pytest.approx(theory.all_ones_variance(levels, d), rel=1e-9, abs=1e-12)
        if levels[1] * math.sqrt(d) >= 2 * (1 + kappa):
            assert theory.variance_bound_tight([levels], d, 2.0) == pytest.approx(exact)
            attained += 1
    assert attained >= 2
    with pytest.raises(ValueError, match="needs d"):
        theory.all_ones_variance([0, 0.01, 1], 9)


@given(st.floats(1e-3, 1e3))
def test_optimal_p_is_optimal(c: float) -> None:
    best = theory.first_level_term(c)
    at_optimum = theory.first_level_term_at(c, theory.optimal_p(c))
    assert at_optimum == pytest.approx(best, rel=1e-9)
    for p in np.linspace(0.0, 0.999, 200):
        assert theory.first_level_term_at(c, float(p)) >= best * (1 - 1e-9)


def test_special_cases() -> None:
    for s in (1, 2, 4, 6):
        exponential = np.concatenate([[0.0], 0.5 ** np.arange(s, -1, -1)])
        for d in (1, 10, 100, 1000, 10**5):
            general = theory.variance_bound([exponential], d, 2.0)
            assert theory.nuqsgd_bound(d, s) == pytest.approx(general)
    seed = 3
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for _ in range(300):
        v, s = random_vector(rng), int(rng.integers(1, 16))
        exact = theory.level_variance(v, np.linspace(0, 1, s + 1), 2.0)
        assert exact <= theory.qsgd_bound(v.size, s) * float(v @ v) * (1 + 1e-12)


def sampled_variance(v: np.ndarray, draws: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean ‖Q(v) − v‖² and the per-coordinate mean of Q(v), `draws` of shape (n, d)."""
    return float(((draws - v) ** 2).sum(1).mean()), draws.mean(0)


@pytest.mark.parametrize("name", ["gaussian", "sparse", "constant"])
def test_exact_variances_are_those_of_sampled_quantizers(name: str) -> None:
    """16-bit random numbers U = (n + ½)/65536, as the codec draws them."""
    seed = 11
    print("seed", seed)
    rng = np.random.default_rng(seed)
    v = {
        "gaussian": rng.standard_normal(64),
        "sparse": rng.standard_normal(64) * (rng.random(64) < 0.2),
        "constant": np.full(64, 0.3),
    }[name]
    n = 20000
    uniform = (rng.integers(0, 65536, (n, v.size)) + 0.5) / 65536

    step = 0.8 * float(np.sqrt(np.mean(v**2)))
    k = np.floor(v / step + uniform)
    samples = {
        "rounded": (k * step, theory.rounded_variance(v, step)),
        "dithered": ((k - uniform + 0.5) * step, theory.dithered_variance(v.size, step)),
    }
    levels = np.array([0.0, 0.1, 0.3, 1.0])
    norm = np.abs(v).max()
    r = np.abs(v) / norm
    cell = np.minimum(np.searchsorted(levels, r, side="right") - 1, 2)
    up = uniform < (r - levels[cell]) / (levels[cell + 1] - levels[cell])
    samples["levels"] = (
        norm * np.sign(v) * levels[cell + up],
        theory.level_variance(v, levels, math.inf),
    )
    for quantizer, (draws, exact) in samples.items():
        sampled, mean = sampled_variance(v, draws)
        assert sampled == pytest.approx(exact, rel=0.02), quantizer
        deviation = draws.std(0)
        assert np.all(np.abs(mean - v) <= 5 * deviation / math.sqrt(n) + step / 65536), quantizer
    assert np.all(samples["rounded"][0][:, v == 0] == 0.0)


def test_dither_error_does_not_depend_on_the_signal() -> None:
    seed = 5
    print("seed", seed)
    rng = np.random.default_rng(seed)
    n, step = 50000, 0.7
    errors = []
    for v in (0.0, 0.01, 0.35, 12.3):
        uniform = (rng.integers(0, 65536, n) + 0.5) / 65536
        errors.append((np.floor(v / step + uniform) - uniform + 0.5) * step - v)
    grid = np.linspace(-step / 2, step / 2, 21)[1:-1]
    uniform_law = (grid + step / 2) / step
    for error in errors:
        assert np.abs(error).max() <= step / 2 * (1 + 1e-4)
        empirical = np.searchsorted(np.sort(error), grid) / n
        assert np.abs(empirical - uniform_law).max() < 1.95 / math.sqrt(n)  # Kolmogorov, 0.1 %


@given(st.floats(0.05, 20.0), st.integers(1, 2**32 - 1))
def test_one_stream_relative_variance(c: float, seed: int) -> None:
    v = random_vector(np.random.default_rng(seed))
    norm_sq = float(v @ v)
    if norm_sq == 0.0:
        return
    step = c * math.sqrt(norm_sq / v.size)
    rounded = theory.rounded_variance(v, step) / norm_sq
    assert rounded <= theory.rounded_relative_bound(c) * (1 + 1e-9)
    dithered = theory.dithered_variance(v.size, step) / norm_sq
    assert dithered == pytest.approx(theory.dithered_relative_variance(c))


@pytest.mark.parametrize("levels", [[0.1, 1.0], [0.0, 0.9], [0.0, 0.5, 0.5, 1.0], [1.0], [[0, 1]]])
def test_bad_levels_are_refused(levels: list[float]) -> None:
    with pytest.raises(ValueError, match="levels must"):
        theory.level_variance([1.0], levels)


def test_bad_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="q must be"):
        theory.variance_bound([[0, 1]], 4, 0.5)
    with pytest.raises(ValueError, match="p must be"):
        theory.first_level_term_at(1.0, 1.0)

"""Level sequences and step factors against Monte Carlo and the bound."""

import doctest

import numpy as np
import pytest

from horovod_qoda.quantization import (
    choose_uniform,
    exponential,
    gaussian_level_rate,
    gaussian_maxmin_rate,
    gaussian_rate,
    levels,
    rate_bound,
    step_factor,
    step_size,
    steps,
    ternary,
    uniform,
)


def test_examples():
    assert doctest.testmod(levels).failed == 0 and doctest.testmod(levels).attempted > 0
    assert doctest.testmod(steps).failed == 0 and doctest.testmod(steps).attempted > 0


def empirical_entropy(symbols):
    p = np.unique(symbols, return_counts=True)[1] / symbols.size
    return -(p * np.log2(p)).sum()


@pytest.mark.parametrize("c", [0.05, 0.5, 1.0, 3.0, 10.0])
def test_gaussian_rate(c):
    rng = np.random.default_rng(18)
    z, u = rng.standard_normal(10**6), rng.random(10**6)
    assert gaussian_rate(c) == pytest.approx(empirical_entropy(np.floor(z / c + u)), abs=0.003)
    assert gaussian_rate(c) <= rate_bound(c)


@pytest.mark.parametrize("bits", [0.01, 0.3, 1.0, 2.5, 4.0, 8.0, 12.0])
def test_step_factor_inverts_the_rate(bits):
    assert gaussian_rate(step_factor(bits)) == pytest.approx(bits, rel=1e-6)


@pytest.mark.parametrize("bits", [0.0, -1.0, 12.5, float("nan")])
def test_absurd_bits(bits):
    with pytest.raises(ValueError, match="bits"):
        step_factor(bits)


@pytest.mark.parametrize("norm, bucket", [("linf", 512), ("l2", 256)])
@pytest.mark.parametrize("sequence", [uniform(6), exponential(4), ternary()])
def test_level_rate(sequence, norm, bucket):
    rng = np.random.default_rng(19)
    z, u = rng.standard_normal((2000, bucket)), rng.random((2000, bucket))
    size = np.abs(z).max(axis=1) if norm == "linf" else np.sqrt((z**2).sum(axis=1))
    r = np.abs(z) / size[:, None]
    edges = sequence.astype(np.float64)
    j = np.clip(np.searchsorted(edges, r, side="right") - 1, 0, len(edges) - 2)
    h = j + (u < (r - edges[j]) / (edges[j + 1] - edges[j]))
    wanted = empirical_entropy(np.sign(z) * h) + 32 / bucket
    assert gaussian_level_rate(sequence, bucket, norm) == pytest.approx(wanted, rel=0.02, abs=0.01)


@pytest.mark.parametrize("bucket", [128, 1024])
@pytest.mark.parametrize("entries", [2, 4, 8, 32])
def test_maxmin_rate(entries, bucket):
    rng = np.random.default_rng(20)
    z, u = rng.standard_normal((2000, bucket)), rng.random((2000, bucket))
    low, high = z.min(axis=1, keepdims=True), z.max(axis=1, keepdims=True)
    symbols = np.floor((z - low) / ((high - low) / (2 * entries - 1)) + u)
    wanted = empirical_entropy(symbols) + 64 / bucket
    assert gaussian_maxmin_rate(entries, bucket) == pytest.approx(wanted, rel=0.05)


def test_choose_uniform():
    for bits in (2.0, 3.0, 4.0):
        s = choose_uniform(bits)
        assert abs(gaussian_level_rate(uniform(s), 1024) - bits) < 0.25
    assert choose_uniform(0.1) == 0


def test_step_size():
    assert step_size(1.0, 0.0, 10) == 0
    assert step_size(0.5, 40.0, 10) == 1.0
    assert step_size(0.1, 1e-88, 1) == np.finfo(np.float32).smallest_subnormal
    assert np.isfinite(step_size(1e4, 1e76, 1))


def test_levels_are_checked():
    for wrong in (-1, 127, 1.5):
        with pytest.raises(ValueError):
            uniform(wrong)
    for ratio in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError):
            exponential(3, ratio)
    with pytest.raises(ValueError, match="fewer levels"):
        exponential(126, 0.1)

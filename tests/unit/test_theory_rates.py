"""Noise of the quantized oracle against sampling; averages over segments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from horovod_qoda import theory


@pytest.mark.parametrize("nodes", [1, 4])
def test_oracle_noise_is_bounded_as_stated(nodes: int) -> None:
    """Gaussian oracle noise, then ternary levels: exact given V, sampled over V."""
    seed = 2
    print("seed", seed)
    rng = np.random.default_rng(seed)
    d, levels, sigma_r = 50, [0.0, 0.5, 1.0], 0.8
    field = rng.standard_normal(d)
    field_sq = float(field @ field)
    epsilon = theory.variance_bound_tight([levels], d)
    errors = np.zeros(4000)
    for i in range(errors.size):
        noise = rng.standard_normal((nodes, d)) * math.sqrt(sigma_r * field_sq / d)
        spread = sum(theory.level_variance(v, levels) for v in field + noise)
        errors[i] = spread / nodes**2 + float(np.sum(noise.mean(0) ** 2))
    found = errors.mean()
    relative = theory.relative_oracle_constant(sigma_r, epsilon) * field_sq / nodes
    absolute = theory.absolute_oracle_variance(sigma_r * field_sq, epsilon, field_sq) / nodes
    assert relative == pytest.approx(absolute)
    assert 0.2 * relative < found <= relative


def test_rates_have_the_stated_exponents() -> None:
    base = theory.relative_rate(0.5, 0.1, 2.0, 100, 4)
    assert base == pytest.approx((0.05 + 0.1 + 0.5) * 4 / 400)
    assert theory.relative_rate(0.5, 0.1, 2.0, 400, 4) == pytest.approx(base / 4)
    noisy = theory.absolute_rate(1.0, 0.1, 2.0, 3.0, 100, 4)
    assert noisy == pytest.approx(3 * math.sqrt(1.3 / 400))
    assert theory.absolute_rate(1.0, 0.1, 2.0, 3.0, 100, 16) == pytest.approx(noisy / 2)
    assert theory.absolute_rate(1.0, 0.1, 2.0, 3.0, 400, 4) == pytest.approx(noisy / 2)


def test_segments_are_weighted_by_their_length() -> None:
    assert theory.segment_average([1.0, 4.0], [3, 1]) == 1.75
    assert theory.segment_root_average([1.0, 4.0], [3, 1]) == 1.25
    for values, lengths in (([1.0], [1, 2]), ([], []), ([1.0], [0]), ([1.0, 1.0], [2, -1])):
        with pytest.raises(ValueError, match="length"):
            theory.segment_average(values, lengths)

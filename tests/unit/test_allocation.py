"""L-GreCo's dynamic programme against brute force, and the counts of PowerSGD at one rank."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_qoda.allocation import (
    allocate,
    combine_errors,
    error_budget,
    low_rank_numbers,
    low_rank_ratio,
)


def brute_force(sizes, errors, budget):
    """Smallest total size within the budget, by trying everything."""
    best = np.inf
    for choice in itertools.product(*(range(len(row)) for row in sizes)):
        if sum(e[c] for e, c in zip(errors, choice, strict=True)) <= budget:
            best = min(best, sum(s[c] for s, c in zip(sizes, choice, strict=True)))
    return best


def total(rows, choice):
    return sum(row[c] for row, c in zip(rows, choice, strict=True))


def instance(seed, layers=6, options=5):
    """Errors that fall as sizes grow, over four decades between layers."""
    rng = np.random.default_rng(seed)
    scale = 10 ** rng.uniform(-2, 2, layers)
    width = rng.integers(10, 10_000, layers)
    sizes = [w * np.arange(2, 2 + options) for w in width]
    errors = [s * w * 4.0 ** -np.arange(2, 2 + options) for s, w in zip(scale, width, strict=True)]
    return sizes, [e * rng.uniform(0.7, 1.3, options) for e in errors]


@given(seed=st.integers(0, 2**32 - 1), alpha=st.floats(0.5, 4))
@settings(max_examples=25, deadline=None)
def test_as_brute_force_and_inside_the_budget(seed, alpha):
    sizes, errors = instance(seed)
    default = [2] * len(sizes)
    budget = error_budget(errors, default, alpha)
    best = brute_force(sizes, errors, budget)
    every = 5**6  # nothing is thinned out
    choice = allocate(sizes, errors, budget, default, bins=every)
    assert total(errors, choice) <= budget
    assert total(sizes, choice) == best
    choice = allocate(sizes, errors, budget, default)  # as in an exchange
    assert total(errors, choice) <= budget
    assert total(sizes, choice) <= 1.001 * best
    if alpha >= 1:
        assert total(sizes, choice) <= total(sizes, default)


@pytest.mark.parametrize(("bins", "excess"), [(1_000, 1e-3), (100, 1e-2)])
def test_excess_on_a_grid_with_more_layers_than_brute_force_can_take(bins, excess):
    for seed in range(3):
        sizes, errors = instance(seed, layers=100, options=7)
        budget = error_budget(errors, [2] * 100)
        choice = allocate(sizes, errors, budget, bins=bins)
        assert total(errors, choice) <= budget
        best = total(sizes, allocate(sizes, errors, budget, bins=100_000))
        assert best <= total(sizes, choice) <= (1 + excess) * best


@given(
    errors=st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3), min_size=1, max_size=5),
    budget=st.integers(0, 60),
)
def test_exact_where_errors_lie_on_the_grid(errors, budget):
    sizes = [[5, 3, 1 + i] for i in range(len(errors))]
    want = brute_force(sizes, errors, budget)
    if not np.isfinite(want):
        with pytest.raises(ValueError, match="smallest sum"):
            allocate(sizes, errors, budget, bins=max(budget, 1))
        return
    choice = allocate(sizes, errors, budget, bins=max(budget, 1))
    assert total(sizes, choice) == want and total(errors, choice) <= budget


def test_falls_back_on_the_default_where_the_grid_is_too_coarse():
    sizes, errors = instance(1, layers=8)
    budget = error_budget(errors, [2] * 8)
    best = allocate(sizes, errors, budget, bins=100_000)
    assert total(sizes, allocate(sizes, errors, budget, bins=1)) > total(sizes, best)
    assert allocate(sizes, errors, budget, best, bins=1) == best


def test_thousands_of_layers_cost_no_more_than_a_default_that_nobody_passed():
    """Alike as they are, a grid of the budget would lose a step at each of them."""
    scales = np.random.default_rng(0).uniform(0.9, 1.1, 3000)
    sizes = [1000 * np.arange(2, 9)] * 3000
    errors = [1000 * scale * 4.0 ** -np.arange(2, 9) for scale in scales]
    budget = error_budget(errors, [2] * 3000)
    choice = allocate(sizes, errors, budget)
    assert total(sizes, choice) <= 1.001 * total(sizes, [2] * 3000)


def test_what_rounding_must_not_lose():
    assert allocate([], [], 1.0) == []
    assert allocate([[1], [1]], [[1e-5], [1e12]], 1e12 + 1e-5) == [0, 0]
    assert allocate([[5, 1]] * 3, [[0.0, 1e-310]] * 3, 3e-310, bins=1) == [1, 1, 1]


def test_a_default_beyond_the_budget_is_not_used():
    assert allocate([[5, 1]], [[0.0, 2.0]], 1.0, default=[1]) == [0]


def test_forbidden_options():
    assert allocate([[1, 5]], [[np.inf, 0.5]], 1.0) == [1]


@pytest.mark.parametrize(
    ("sizes", "errors", "budget", "word"),
    [
        ([[1]], [[1], [1]], 1.0, "1 layers but errors of 2"),
        ([[1, 2]], [[1]], 1.0, "layer 0 has 2 sizes but 1 errors"),
        ([[1]], [[-1]], 1.0, "errors of layer 0"),
        ([[float("nan")]], [[1]], 1.0, "sizes of layer 0"),
        ([[1], []], [[1], []], 1.0, "sizes of layer 1"),
        ([[1]], [[1]], float("inf"), "budget"),
        ([[1]], [[3]], 1.0, "smallest sum is 3"),
    ],
)
def test_refusals(sizes, errors, budget, word):
    with pytest.raises(ValueError, match=word):
        allocate(sizes, errors, budget)


def test_kinds_of_error():
    squared = np.array([4.0, 1.0])
    assert combine_errors(squared).tolist() == [4, 1]
    assert combine_errors(squared, "frobenius").tolist() == [2, 1]
    assert combine_errors(squared, "relative", scale=0.5).tolist() == [8, 2]
    assert combine_errors(squared, weight=3.0).tolist() == [12, 3]
    assert combine_errors(squared, "relative", scale=0.0).tolist() == [0, 0]
    with pytest.raises(ValueError, match="allocation_error"):
        combine_errors(squared, "absolute")
    with pytest.raises(ValueError, match="allocation_alpha"):
        error_budget([squared], [0], 0.0)


def test_squared_error_gives_one_step_for_the_model():
    """Size log2(1/step), error d step^2 / 12: without weights the best steps are all equal, and
    with weights they go as 1 / sqrt(weight) (docs/theory.md §8)."""
    numel = np.array([10_000.0, 30_000.0, 14_000.0])
    rms = np.array([1.0, 0.3, 4.0])
    bits = np.arange(2.0, 12.001, 0.125)
    steps = [r * 2.0**-bits for r in rms]
    for weight in (np.ones(3), 1 / rms**2):
        errors = [
            combine_errors(n * s**2 / 12, weight=w)
            for n, s, w in zip(numel, steps, weight, strict=True)
        ]
        budget = error_budget(errors, [24, 24, 24])
        choice = allocate([n * bits for n in numel], errors, budget)
        scaled = [s[c] * np.sqrt(w) for s, c, w in zip(steps, choice, weight, strict=True)]
        assert max(scaled) / min(scaled) < 1.3, (choice, scaled)


def transformer_xl_base():
    """Shapes of NVIDIA's Transformer-XL base on WikiText-103 (embedding tied to the softmax)."""
    vocabulary, model, heads, head, inner = 267_735, 512, 8, 64, 2048
    clusters = 3  # cutoffs 19,997, 39,997 and 199,997
    shapes = [(vocabulary, model), (vocabulary,), (clusters, model), (clusters,)]
    shapes += [(heads, head)] * 2
    attention = [(3 * heads * head, model), (model, heads * head), (heads * head, model)]
    feed_forward = [(inner, model), (inner,), (model, inner), (model,)]
    norms = [(model,)] * 4
    return shapes + 16 * (attention + feed_forward + norms)


def test_counts_of_transformer_xl():
    shapes = transformer_xl_base()
    assert sum(int(np.prod(shape)) for shape in shapes) == 191_950_298
    ratios = [round(low_rank_ratio(shapes, rank), 2) for rank in (16, 32, 64)]
    assert ratios == [27.44, 14.07, 7.12]


def test_low_rank_numbers():
    assert low_rank_numbers((100, 50), 2) == 300
    assert low_rank_numbers((64, 3, 3, 3), 1) == 64 + 27
    assert low_rank_numbers((10, 10), 4) == 100, "80 numbers would be less than a rate of 2"
    assert low_rank_numbers((512,), 1) == 512
    assert low_rank_numbers((0, 5), 1) == 0

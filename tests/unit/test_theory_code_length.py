"""Code-length bounds against codes that are really built, and entropies against samples."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_qoda import theory


def huffman_lengths(weights: np.ndarray) -> np.ndarray:
    """Code word lengths of a Huffman code; a lone used symbol gets one bit, unused ones none."""
    lengths = np.zeros(weights.size, dtype=int)
    used = np.flatnonzero(weights)
    if used.size == 1:
        lengths[used] = 1
        return lengths
    heap = [(float(weights[j]), int(j), [int(j)]) for j in used]
    heapq.heapify(heap)
    while len(heap) > 1:
        a, tie, left = heapq.heappop(heap)
        b, _, right = heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (a + b, tie, left + right))
    return lengths


def quantize(
    rng: np.random.Generator, v: np.ndarray, levels: np.ndarray, bucket: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Symbols, normalised coordinates and bucket count of L∞ buckets."""
    buckets = [v[i : i + bucket] for i in range(0, v.size, bucket)]
    r = np.concatenate([np.abs(b) / (np.abs(b).max() or 1.0) for b in buckets])
    cell = np.minimum(np.searchsorted(levels, r, side="right") - 1, levels.size - 2)
    up = rng.random(r.size) < (r - levels[cell]) / (levels[cell + 1] - levels[cell])
    return cell + up, r, len(buckets)


def test_the_chain_holds_for_huffman_codes_of_real_symbols() -> None:
    """lower ≤ Huffman ≤ upper on 200 layer-wise payloads, statement per payload (p empirical)."""
    seed = 31
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for case in range(200):
        counts, empirical, length, buckets = [], [], 0.0, 0
        for _ in range(int(rng.integers(1, 4))):
            size = int(rng.integers(1, 15))
            levels = np.concatenate([[0.0], np.sort(rng.random(size)), [1.0]])
            v = rng.standard_t(rng.uniform(1.5, 20.0), int(rng.integers(1, 3000)))
            symbols, _, n = quantize(rng, v, levels, int(rng.choice([16, 128, 1024])))
            frequencies = np.bincount(symbols, minlength=levels.size)
            counts.append(v.size)
            empirical.append(frequencies / v.size)
            buckets += n
            length += 32 * n + frequencies @ huffman_lengths(frequencies) + np.sum(symbols > 0)
        lower = theory.length_lower_bound(counts, empirical, buckets)
        upper = theory.huffman_upper_bound(counts, empirical, buckets)
        assert lower * (1 - 1e-12) <= length <= upper * (1 + 1e-12), (seed, case)
        shannon = theory.shannon_length(counts, empirical, empirical, buckets)
        assert length <= shannon * (1 + 1e-12) <= upper * (1 + 2e-12), (seed, case)


def test_a_huffman_code_of_another_table_can_exceed_its_naive_bound() -> None:
    """Why Shannon's lengths serve for other tables: Fibonacci weights make Huffman's tree deep."""
    weights = np.array([1, 1, 2, 3, 5, 8, 13, 21, 34, 55], dtype=float)
    table = weights / weights.sum()
    # Nothing but the table's rarest symbol, the zero level.
    p = np.eye(table.size)[0]
    naive = theory.entropy(p) + 1.0 + theory.kl_divergence(p, table)
    assert huffman_lengths(weights)[0] > naive
    assert theory.shannon_length([1], [p], [table], 0) <= naive


def test_symbol_probabilities_are_those_of_sampled_symbols() -> None:
    seed = 8
    print("seed", seed)
    rng = np.random.default_rng(seed)
    levels = np.array([0.0, 0.07, 0.2, 0.45, 1.0])
    v = rng.standard_normal(500)
    draws = 400
    total = np.zeros(levels.size)
    for _ in range(draws):
        symbols, r, _ = quantize(rng, v, levels, 128)
        total += np.bincount(symbols, minlength=levels.size)
    p = theory.symbol_probabilities(r, levels)
    n = draws * v.size
    assert p.sum() == pytest.approx(1.0)
    assert np.all(np.abs(total / n - p) <= 3 * np.sqrt(p * (1 - p) / n) + 1e-12)


def test_symbol_probabilities_at_the_ends() -> None:
    assert theory.symbol_probabilities([0.0, 1.0], [0.0, 0.5, 1.0]).tolist() == [0.5, 0.0, 0.5]
    assert theory.symbol_probabilities([0.5], [0.0, 0.5, 1.0]).tolist() == [0.0, 1.0, 0.0]
    for bad in ([], [1.5], [-0.1]):
        with pytest.raises(ValueError, match="normalised"):
            theory.symbol_probabilities(bad, [0.0, 1.0])


distributions = st.lists(st.integers(0, 1000), min_size=2, max_size=12).filter(any)


@given(distributions, distributions)
def test_entropy_kl_and_target(first: list[int], second: list[int]) -> None:
    size = min(len(first), len(second))
    p = np.array(first[:size]) + 1.0
    table = np.array(second[:size]) + 1.0
    p, table = p / p.sum(), table / table.sum()
    assert 0.0 <= theory.entropy(p) <= math.log2(size) + 1e-12
    assert theory.kl_divergence(p, table) >= -1e-12
    assert theory.kl_divergence(p, p) == 0.0
    lower = theory.length_lower_bound([100], [p], 2)
    assert lower == pytest.approx(64 + 100 * (theory.entropy(p) + 1 - p[0]))
    target = theory.rans_target([100], [p], [table], 2)
    assert target == pytest.approx(1.01 * (lower + 100 * theory.kl_divergence(p, table)))
    shannon = theory.shannon_length([100], [p], [table], 2)
    assert target / 1.01 <= shannon * (1 + 1e-12)
    assert shannon <= target / 1.01 + 100 + 1e-9


def test_a_table_without_a_used_symbol_costs_infinitely_much() -> None:
    p, table = [0.5, 0.5], [1.0, 0.0]
    assert theory.kl_divergence(p, table) == math.inf
    assert theory.shannon_length([4], [p], [table], 1) == math.inf
    with pytest.raises(ValueError, match="add up to 1"):
        theory.entropy([0.5, 0.4])


@given(st.lists(st.tuples(st.integers(1, 1000), distributions), min_size=1, max_size=4))
def test_pooled_alphabet_pays_the_entropy_of_the_type(types: list[tuple[int, list[int]]]) -> None:
    counts = [count for count, _ in types]
    probabilities = [np.array(weights) / sum(weights) for _, weights in types]
    share = np.array(counts) / sum(counts)
    pooled = np.concatenate([w * p for w, p in zip(share, probabilities, strict=True)])
    assert theory.pooled_entropy(counts, probabilities) == pytest.approx(theory.entropy(pooled))


@pytest.mark.parametrize("c", [0.1, 0.5, 1.0, 2.0, 5.0])
def test_one_stream_entropy_bound_holds_for_any_vector(c: float) -> None:
    seed = 12
    print("seed", seed)
    rng = np.random.default_rng(seed)
    n = 200_000
    one_hot = np.zeros(n)
    one_hot[:20] = 1.0
    vectors = {
        "gaussian": rng.standard_normal(n),
        "laplace": rng.laplace(size=n),
        "heavy": rng.standard_t(2.0, n),
        "constant": np.ones(n),
        "sparse": rng.standard_normal(n) * (rng.random(n) < 0.1),
        "few": one_hot,
    }
    bound = theory.one_stream_entropy_bound(c)
    found = {}
    for name, v in vectors.items():
        step = c * float(np.sqrt(np.mean(v**2)))
        k = np.floor(v / step + rng.random(n)).astype(np.int64)
        _, counts = np.unique(k, return_counts=True)
        found[name] = theory.entropy(counts / n)
        assert found[name] <= bound, name
    print(c, bound, found)
    if c == 1.0:
        assert bound == pytest.approx(2.26, abs=0.01)
        assert found["gaussian"] == pytest.approx(2.16, abs=0.01)
    with pytest.raises(ValueError, match="c must be positive"):
        theory.one_stream_entropy_bound(0.0)

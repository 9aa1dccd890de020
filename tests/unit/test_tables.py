"""Code tables, books and entropies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_qoda.coding import Book, entropy, entropy_bits
from horovod_qoda.coding.tables import normalize
from tests import reference

counts_strategy = st.dictionaries(st.integers(0, 255), st.integers(1, 10**7), max_size=256)


def to_counts(sparse):
    counts = np.zeros(256, dtype=np.int64)
    for code, count in sparse.items():
        counts[code] = count
    return counts


@given(counts_strategy, st.booleans())
def test_normalize(sparse, exact):
    counts = to_counts(sparse)
    freq = normalize(counts, exact)
    assert freq.tolist() == reference.normalize(counts, exact)
    assert freq.sum() == 4096
    used = np.flatnonzero(freq[1:]) + 1
    assert used[-1] - used[0] + 1 == len(used)
    outside = counts.sum() - counts[used].sum()
    assert freq[0] > 0 or (exact and outside == 0)


def test_normalize_costs_little():
    rng = np.random.default_rng(17)
    for scale in (0.5, 2.0, 8.0):
        k = np.clip(np.round(rng.standard_normal(10**6) * scale), -127, 127).astype(int)
        counts = np.bincount(k + 128, minlength=256)
        bits = reference.coded_bits(normalize(counts).tolist(), counts) / len(k)
        assert bits <= 1.002 * entropy(counts)


def test_book():
    histogram = np.zeros((3, 256), dtype=np.int64)
    histogram[0, 120:137] = np.arange(1, 18) ** 2
    histogram[2, 128] = 10**9
    book = Book.from_histogram(histogram)
    assert not book.tables[1].any()
    assert book.tables[2, 128] == 4095 and book.tables[2, 0] == 1  # room for what was never seen
    again = Book.from_bytes(book.to_bytes())
    assert again == book and again.hash == book.hash != 0
    other = book.tables.copy()
    other[0, [130, 131]] = other[0, [131, 130]]
    assert Book(other).hash != book.hash
    with pytest.raises(ValueError):
        book.tables[0, 0] = 1


@pytest.mark.parametrize("change", [{128: 4095}, {128: 4096}, {0: 1, 127: 4094, 129: 1}, {0: 4096}])
def test_wrong_tables_are_refused(change):
    tables = np.zeros((1, 256), dtype=np.uint16)
    for code, freq in change.items():
        tables[0, code] = freq
    with pytest.raises(ValueError, match="code table 0"):
        Book(tables)


def test_entropy():
    assert entropy([1, 1, 1, 1]) == 2.0
    assert entropy([0, 7, 0]) == 0.0
    assert entropy(np.zeros(5)) == 0.0
    assert entropy_bits([[1, 1], [0, 4]]) == 2.0

"""The native codec against the NumPy reference: the same bytes, the same floats."""

import numpy as np
import pytest

from horovod_qoda.coding import SEGMENT, Book, decode
from tests import reference
from tests.codec_cases import HEADER, INPUTS, LEVELS, QUANTIZERS, join, make_input, payload, segment


def check(values, segments, book=None, levels=LEVELS):
    own = np.full(values.shape, 7.0, dtype=np.float32)
    got = payload(values, segments, book=book, levels=levels, decoded=own)
    assert got.tobytes() == reference.encode(values, segments, HEADER, book, levels)
    assert payload(values, segments, book=book, levels=levels).tobytes() == got.tobytes()
    out = np.full(values.shape, 7.0, dtype=np.float32)
    assert decode(got, segments, out, expect=HEADER, book=book, levels=levels).aux == HEADER.aux
    wanted = reference.decode(got.tobytes(), segments, HEADER, book, levels)
    np.testing.assert_array_equal(out.view(np.uint32), wanted.view(np.uint32))
    np.testing.assert_array_equal(own.view(np.uint32), out.view(np.uint32))
    return got, out


@pytest.mark.parametrize("n", [1, 5, 128, 1000, 2100])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_one_segment(quantizer, name, n):
    values = make_input(name, n, np.random.default_rng(n))
    check(values, segment(n, values=values, **QUANTIZERS[quantizer]))


@pytest.mark.parametrize("bits_c", [3.5, 0.26, 0.03, 0.016, 0.004])
@pytest.mark.parametrize("name", ["normal", "student"])
def test_rates(bits_c, name):
    values = make_input(name, 5000, np.random.default_rng(1))
    check(values, segment(5000, c=bits_c, values=values, quantizer=1, reconstruction=1))


def test_sampled_table():
    """More than 1,024 groups of a type: the table comes from a subsample of them."""
    rng = np.random.default_rng(2)
    values = rng.standard_t(4, 150_000).astype(np.float32)
    check(values, segment(150_000, values=values, quantizer=1, reconstruction=0))


@pytest.mark.parametrize("n", [384, 3000, 70_001])
@pytest.mark.parametrize("c", [2.0, 0.5, 0.1])
def test_classes(n, c):
    """Rows of different sizes: of one block and of two, with a last group that is not whole."""
    values = make_input("rows", n, np.random.default_rng(6))
    made, _ = check(values, segment(n, c=c, values=values, quantizer=1, reconstruction=1))
    assert n < 70_000 or made[112 + 8] == 3, "the case has no classes"


def test_classes_beat_an_agreed_table():
    values = make_input("rows", 20_000, np.random.default_rng(7))
    rows = segment(20_000, values=values, quantizer=1)
    histogram = np.zeros((1, 256), dtype=np.int64)
    payload(values, rows, histogram=histogram)
    made, _ = check(values, rows, Book.from_histogram(histogram))
    assert made[112 + 8] == 3


def mixed_chunk(rng):
    """Types of several segments, of all kinds and quantisers, over block boundaries."""
    sizes = [1024, 70_000, 3000, 1, 999, 4096, 2048, 17, 300]
    values = [make_input("normal", n, rng) * 10.0 ** rng.integers(-3, 3) for n in sizes]
    values = [v.astype(np.float32) for v in values]
    values[2][:] = 0.0
    values[5][7] = np.nan
    kinds = ["dithered", "rounded", "dithered", "rounded", "linf", "dithered", "maxmin", "l2"]
    rows = [
        segment(n, values=v, index=0, **QUANTIZERS[kind])
        for n, v, kind in zip(sizes[:-1], values, kinds, strict=False)
    ]
    rows[5]["nonfinite"], rows[5]["step"] = 1, 0
    rows.append(segment(sizes[-1], quantizer=0, index=5))
    segments = join(rows)
    segments["type"] = [0, 0, 0, 2, 2, 2, 5, 5, 0]
    return np.concatenate(values), segments


def test_mixed_chunk():
    values, segments = mixed_chunk(np.random.default_rng(3))
    _, out = check(values, segments)
    np.testing.assert_array_equal(out[-300:], values[-300:])
    start = int(segments["offset"][5])
    assert np.isnan(out[start : start + 4096]).all()
    assert not np.isnan(np.delete(out, np.arange(start, start + 4096))).any()


def test_agreed_tables():
    rng = np.random.default_rng(4)
    values = make_input("normal", 3000, rng)
    rows = [
        segment(1000, values=values[i * 1000 :][:1000], index=0, **QUANTIZERS["dithered"])
        for i in range(3)
    ]
    segments = join(rows)
    segments["type"] = [0, 1, 2]
    histogram = np.zeros((3, 256), dtype=np.int64)
    inline = payload(values, segments, histogram=histogram)
    histogram[1] = 0  # no agreed table for type 1
    book = Book.from_histogram(histogram)
    agreed, _ = check(values, segments, book)
    assert len(agreed) < len(inline)


def test_segments_need_not_be_in_order_or_cover_the_array():
    rng = np.random.default_rng(5)
    values = rng.standard_normal(9000).astype(np.float32)
    segments = join([segment(2000, step=0.5, quantizer=1) for _ in range(2)])
    segments["offset"] = [6000, 500]
    out, own = np.full((2, 9000), 7.0, dtype=np.float32)
    got = payload(values, segments, decoded=own)
    decode(got, segments, out, expect=HEADER)
    assert (own == out).all()
    assert (np.abs(out - values)[6000:8000] < 0.5).all()
    assert (np.abs(out - values)[500:2500] < 0.5).all()
    assert (np.delete(out, np.r_[500:2500, 6000:8000]) == 7.0).all()


def test_dtype_matches():
    from horovod_qoda.native import _codec

    assert SEGMENT.itemsize == _codec.SEGMENT_BYTES

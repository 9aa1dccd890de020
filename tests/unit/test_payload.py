"""Round trips, corrupted and foreign payloads, capacities, threads and instruction sets."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_qoda import theory
from horovod_qoda.coding import (
    KIND_CODED,
    KIND_NONFINITE,
    KIND_RAW,
    KIND_ZERO,
    SEGMENT,
    Book,
    PayloadError,
    decode,
    decode_sum,
    encode,
    entropy_bits,
    max_payload_bytes,
    peek,
    seal,
    simd,
    steps,
)
from tests.codec_cases import HEADER, LEVELS, QUANTIZERS, join, make_input, payload, segment


def small_payload(n=300):
    values = make_input("student", n, np.random.default_rng(9))
    segments = join(
        [
            segment(n - 100, values=values, index=0, **QUANTIZERS["dithered"]),
            segment(80, index=0, quantizer=2, bucket=16, type=1),
            segment(20, quantizer=0),
        ]
    )
    return values, segments, payload(values, segments, levels=LEVELS)


def try_decode(data, segments, n=300):
    """Decodes into guarded memory; returns whether it was accepted."""
    guard = np.full(n + 128, 123.0, dtype=np.float32)
    try:
        decode(data, segments, guard[64:-64], expect=HEADER, levels=LEVELS)
    except PayloadError:
        accepted = False
    else:
        accepted = True
    assert (guard[:64] == 123.0).all() and (guard[-64:] == 123.0).all()
    return accepted


def meta_bytes(data):
    return int(data[104:108].view("<u4")[0])


def test_every_truncation_is_refused():
    _, segments, data = small_payload()
    assert try_decode(data, segments)
    meta = meta_bytes(data)
    assert peek(data[:meta].copy()) == peek(data)
    for length in range(len(data)):
        assert not try_decode(data[:length].copy(), segments), length
        if length < meta:
            with pytest.raises(PayloadError):
                peek(data[:length].copy())


def test_every_bit_flip_is_refused():
    _, segments, data = small_payload()
    for bit in range(8 * len(data)):
        flipped = data.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        assert not try_decode(flipped, segments), bit


def test_a_refused_payload_leaves_the_output_alone():
    _, segments, data = small_payload()
    data[-1] ^= 1
    out = np.full(300, 5.0, dtype=np.float32)
    with pytest.raises(PayloadError, match="checksum"):
        decode(data, segments, out, expect=HEADER, levels=LEVELS)
    assert (out == 5.0).all()


def test_padding_is_allowed():
    _, segments, data = small_payload()
    assert try_decode(np.concatenate([data, np.full(77, 255, dtype=np.uint8)]), segments)


@pytest.mark.parametrize(
    "field", ["layout_hash", "exchange", "rank", "stage", "chunk", "key", "book_hash"]
)
def test_foreign_headers_are_refused(field):
    _, segments, data = small_payload()
    out = np.empty(300, dtype=np.float32)
    other = replace(HEADER, **{field: getattr(HEADER, field) + 1})
    with pytest.raises(PayloadError, match=field.replace("_", " ")):
        decode(data, segments, out, expect=other, levels=LEVELS)


def test_other_layouts_are_refused():
    _, segments, data = small_payload()
    changes = {
        "numel": 199,
        "quantizer": 3,
        "reconstruction": 0,
        "type": 1,
        "bucket": 32,
        "norm": 1,
    }
    for field, value in changes.items():
        other = segments.copy()
        other[field][1 if field in ("bucket", "norm") else 0] = value
        assert not try_decode(data, other), field
    assert not try_decode(data, segments[:2])
    out = np.empty(300, dtype=np.float32)
    with pytest.raises(PayloadError, match="level sequences"):
        decode(data, segments, out, expect=HEADER, levels=LEVELS[::-1])


def test_seal_and_peek():
    values, segments, data = small_payload()
    assert peek(data) == (HEADER, len(data))
    seal(data, 2.0, 3.0, 4.0)
    sealed = replace(HEADER, sum_sq=2.0, sum_sq_diff=3.0, aux=4.0)
    assert peek(data) == (sealed, len(data))
    out = np.empty(300, dtype=np.float32)
    assert decode(data, segments, out, expect=HEADER, levels=LEVELS) == sealed
    data[120] ^= 1
    with pytest.raises(PayloadError):
        seal(data, 0.0, 0.0)


def test_blocks_are_not_needed_to_read_and_seal_the_meta_part():
    _, segments, data = small_payload()
    front = data[: meta_bytes(data)].copy()
    seal(front, 2.0, 3.0)
    seal(data, 2.0, 3.0)
    np.testing.assert_array_equal(front, data[: len(front)])
    for mine, theirs in zip(steps(front), steps(data), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not try_decode(front, segments)


def test_steps_and_kinds():
    values = make_input("normal", 4096, np.random.default_rng(10))
    segments = join([segment(1024, step=s, quantizer=1) for s in (0.5, 0.0, 1e-37, 2.0)])
    segments["nonfinite"][3] = 1
    step, kind = steps(payload(values, segments))
    assert step.tolist() == [0.5, 0.0, 0.0, 0.0]
    assert kind.tolist() == [KIND_CODED, KIND_ZERO, KIND_RAW, KIND_NONFINITE]


def test_empty_chunk():
    segments = np.zeros(0, dtype=SEGMENT)
    data = payload(np.zeros(0, dtype=np.float32), segments)
    decode(data, segments, np.zeros(0, dtype=np.float32), expect=HEADER)
    assert len(data) == 112


def test_nan_and_overflow_are_the_callers_errors():
    for quantizer in QUANTIZERS.values():
        for bad in (np.nan, np.inf, -np.inf):
            values = make_input("normal", 500, np.random.default_rng(11))
            segments = segment(500, step=0.5, **quantizer)
            values[400] = bad
            with pytest.raises(ValueError, match="segment 0.*NaN or Inf"):
                payload(values, segments, levels=LEVELS)
    values = np.full(500, 1e30, dtype=np.float32)
    with pytest.raises(ValueError, match="overflows"):
        payload(values, segment(500, step=1e-20, quantizer=1))


def test_decoded_fits_the_values():
    values, segments, _ = small_payload()
    short = np.empty(299, dtype=np.float32)
    with pytest.raises(ValueError, match="differ in size"):
        payload(values, segments, levels=LEVELS, decoded=short)
    both = np.resize(values, 400)
    with pytest.raises(ValueError, match="overlap"):
        payload(both[:300], segments, levels=LEVELS, decoded=both[100:])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"numel": 0}, "numel"),
        ({"numel": 501}, "outside the array"),
        ({"index": 512}, "multiple of 1024"),
        ({"layer": 1 << 24}, "layer"),
        ({"quantizer": 4}, "quantizer"),
        ({"reconstruction": 2}, "reconstruction"),
        ({"step": -1.0}, "step"),
        ({"step": np.nan}, "step"),
        ({"step": np.inf}, "step"),
        ({"quantizer": 2, "bucket": 48}, "power of two"),
        ({"quantizer": 2, "bucket": 2048}, "power of two"),
        ({"quantizer": 2, "norm": 2}, "norm"),
        ({"quantizer": 2, "levels": 9}, "level sequences"),
    ],
)
def test_wrong_segments_are_named(fields, message):
    values = np.ones(500, dtype=np.float32)
    segments = segment(500, quantizer=1, step=0.5)
    for name, value in fields.items():
        segments[name] = value
    with pytest.raises(ValueError, match=f"segment 0.*{message}"):
        payload(values, segments, levels=LEVELS)


def test_types_must_be_contiguous():
    segments = join([segment(10, step=1.0, quantizer=1, type=t) for t in (0, 1, 0)])
    with pytest.raises(ValueError, match="segment 2.*contiguous"):
        payload(np.ones(30, dtype=np.float32), segments)


@pytest.mark.parametrize("levels", [[0.0], [0.0, 0.5], [0.1, 1.0], [0.0, 0.5, 0.5, 1.0]])
def test_wrong_level_sequences(levels):
    with pytest.raises(ValueError, match=r"levels\[0\]"):
        payload(np.ones(10, dtype=np.float32), segment(10, quantizer=2), levels=[levels])


def test_capacity_and_arrays_are_checked():
    values = np.ones(500, dtype=np.float32)
    segments = segment(500, step=0.5, quantizer=1)
    with pytest.raises(ValueError, match="max_payload_bytes"):
        encode(values, segments, HEADER, np.empty(max_payload_bytes(segments) - 1, dtype=np.uint8))
    out = np.empty(max_payload_bytes(segments), dtype=np.uint8)
    for wrong in (values.astype(np.float64), np.ones(1000, dtype=np.float32)[::2]):
        with pytest.raises(TypeError):
            encode(wrong, segments, HEADER, out)
    with pytest.raises(ValueError, match="stage"):
        encode(values, segments, replace(HEADER, stage=256), out)


def test_incompressible_symbols_stay_within_capacity():
    """Every symbol an escape: blocks turn plain, at 4 bytes a symbol."""
    values = np.random.default_rng(12).uniform(-1e6, 1e6, 70_000).astype(np.float32)
    segments = segment(70_000, step=1e-3, quantizer=1)
    data = payload(values, segments)
    assert len(data) <= max_payload_bytes(segments)
    out = np.empty_like(values)
    decode(data, segments, out, expect=HEADER)
    np.testing.assert_allclose(out, values, atol=0.2)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    quantizer=st.sampled_from(list(QUANTIZERS)),
    name=st.sampled_from(["normal", "student", "sparse", "constant", "one_hot", "rows"]),
    log_c=st.floats(-6, 3),
)
def test_round_trip(seed, sizes, quantizer, name, log_c):
    """Decoding is deterministic, exact in shape, close to the input and adds up."""
    rng = np.random.default_rng(seed)
    parts = [make_input(name, n, rng) for n in sizes]
    rows = [
        segment(len(v), c=2.0**log_c, values=v, index=0, **QUANTIZERS[quantizer]) for v in parts
    ]
    values, segments = np.concatenate(parts), join(rows)
    data = payload(values, segments, levels=LEVELS)
    assert len(data) <= max_payload_bytes(segments)
    out = np.empty_like(values)
    decode(data, segments, out, expect=HEADER, levels=LEVELS)
    if quantizer in ("rounded", "dithered"):
        step = np.repeat(segments["step"], segments["numel"].astype(int)).astype(np.float64)
        bound = step * (1.0 if quantizer == "rounded" else 0.5) + np.abs(values) * 1e-5
        assert (np.abs(out.astype(np.float64) - values) <= bound + 1e-30).all()
    again = out.copy()
    decode(data, segments, again, expect=HEADER, levels=LEVELS, add=True, scale=0.5)
    np.testing.assert_array_equal(again, out + out * np.float32(0.5))


def test_decode_sum_equals_decoding_in_order():
    rng = np.random.default_rng(13)
    base = join([segment(70_000, quantizer=1, index=0), segment(500, quantizer=0, type=3)])
    payloads, expect = [], []
    for rank in range(4):
        values = rng.standard_normal(70_500).astype(np.float32)
        segments = base.copy()
        segments["step"][0] = [0.5, 0.0, 1e-38, 0.25][rank]  # coded, zero, raw, coded
        segments["reconstruction"] = 1
        base["reconstruction"] = 1
        header = replace(HEADER, rank=rank, key=rank << 32)
        payloads.append(payload(values, segments, header))
        expect.append(header)
    for add in (False, True):
        start = rng.standard_normal(70_500).astype(np.float32)
        together, one_by_one = start.copy(), start.copy()
        decode_sum(payloads, base, together, expect=expect, add=add, scale=0.25, threads=2)
        for i, (data, header) in enumerate(zip(payloads, expect, strict=True)):
            decode(data, base, one_by_one, expect=header, add=add or i > 0, scale=0.25)
        np.testing.assert_array_equal(together, one_by_one)


def test_histogram_counts_every_symbol():
    values = make_input("student", 200_000, np.random.default_rng(14))
    segments = join([segment(100_000, step=0.05, quantizer=1, type=t, index=0) for t in (0, 2)])
    histogram = np.zeros((3, 256), dtype=np.int64)
    data = payload(values, segments, histogram=histogram, threads=2)
    assert histogram.sum(axis=1).tolist() == [100_000, 0, 100_000]
    assert histogram[0, 0] > 0  # beyond 127
    again = histogram.copy()
    assert payload(values, segments, histogram=again).tobytes() == data.tobytes()
    assert (again == 2 * histogram).all()


@pytest.mark.parametrize("c", [1.14, 0.53, 0.26])
@pytest.mark.parametrize("name", ["normal", "student"])
def test_rate_is_near_the_entropy(name, c):
    """At most 1.01 of the empirical entropy, everything included, at 64 KiB and more."""
    n = 300_000
    values = make_input(name, n, np.random.default_rng(15))
    if name == "student":
        values = np.random.default_rng(15).standard_t(3, n).astype(np.float32)
    segments = segment(n, c=c, values=values, quantizer=1)
    histogram = np.zeros((1, 256), dtype=np.int64)
    data = payload(values, segments, histogram=histogram)
    assert len(data) >= 65536
    assert 8 * len(data) <= 1.01 * entropy_bits(histogram)
    book = Book.from_histogram(histogram)
    agreed = payload(values, segments, book=book)
    assert 8 * len(agreed) <= 1.01 * entropy_bits(histogram)


LEVEL_TYPES = [
    {"quantizer": 2, "norm": 0, "bucket": 512, "levels": 0, "type": 0},
    {"quantizer": 2, "norm": 1, "bucket": 128, "levels": 1, "type": 1},
]
LEVEL_NUMEL = 200_000


def level_payload(seed, book=None):
    """Gaussian coordinates of two types of levels: payload, p of each type, number of buckets."""
    values = np.random.default_rng(seed).standard_normal(2 * LEVEL_NUMEL).astype(np.float32)
    segments = join([segment(LEVEL_NUMEL, index=0, **kind) for kind in LEVEL_TYPES])
    histogram = np.zeros((2, 256), dtype=np.int64)
    data = payload(values, segments, levels=LEVELS, histogram=histogram, book=book)
    magnitudes = histogram[:, 128:].copy()
    magnitudes[:, 1:] += histogram[:, 127:0:-1]
    probabilities = [counts[: len(LEVELS[i])] / LEVEL_NUMEL for i, counts in enumerate(magnitudes)]
    buckets = sum(-(-LEVEL_NUMEL // kind["bucket"]) for kind in LEVEL_TYPES)
    return values, histogram, data, probabilities, buckets


def test_lengths_of_levels_keep_the_bounds_of_the_theory():
    """lower <= length <= target (docs/theory.md section 4): norms, tables and header included."""
    counts = [LEVEL_NUMEL] * 2
    _, histogram, data, p, buckets = level_payload(18)
    assert len(data) >= 65536
    lower = theory.length_lower_bound(counts, p, buckets)
    assert lower <= 8 * len(data) <= theory.rans_target(counts, p, p, buckets)
    assert 8 * len(data) <= theory.huffman_upper_bound(counts, p, buckets)
    # Tables agreed upon after another gradient, which the header says by their hash.
    book = Book.from_histogram(histogram)
    _, _, data, p, buckets = level_payload(19, book)
    tables = []
    for row, levels in zip(book.tables / 4096, LEVELS, strict=True):
        table = row[128 : 128 + len(levels)].copy()
        table[1:] += row[128 - len(levels) + 1 : 128][::-1]
        tables.append(table / table.sum())
    lower = theory.length_lower_bound(counts, p, buckets)
    assert lower <= 8 * len(data) <= theory.rans_target(counts, p, tables, buckets)


def test_symbols_are_as_frequent_as_the_theory_says():
    """Within 3 standard errors, given the gradient: p_j of docs/theory.md section 4."""
    values, _, _, found, _ = level_payload(20)
    for kind, levels, p in zip(LEVEL_TYPES, LEVELS, found, strict=True):
        start = kind["type"] * LEVEL_NUMEL
        own = np.abs(values[start : start + LEVEL_NUMEL].astype(np.float64))
        at = np.arange(0, LEVEL_NUMEL, kind["bucket"])
        largest, l2 = np.maximum.reduceat(own, at), np.sqrt(np.add.reduceat(own**2, at))
        norms = (largest, l2)[kind["norm"]]
        r = np.minimum(own / np.repeat(norms, np.diff(np.append(at, LEVEL_NUMEL))), 1)
        wanted = theory.symbol_probabilities(r, levels)
        error = np.sqrt(wanted * (1 - wanted) / LEVEL_NUMEL)
        assert (np.abs(p - wanted) <= 3 * error + 1e-9).all(), (p, wanted)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("quantizer", ["dithered", "linf"])
def test_memory_beyond_input_and_output_is_at_most_a_quarter_of_the_input(quantizer, threads):
    from benchmarks.codec import extra_memory

    values = np.random.default_rng(21).standard_normal(1 << 22).astype(np.float32)
    segments = segment(len(values), values=values, index=0, **QUANTIZERS[quantizer])
    out, decoded = np.zeros(max_payload_bytes(segments), np.uint8), np.zeros_like(values)
    options = {"levels": LEVELS, "threads": threads}
    data = out[: encode(values, segments, HEADER, out, **options)].copy()
    for work in (
        lambda: encode(values, segments, HEADER, out, **options),
        lambda: decode(data, segments, decoded, expect=HEADER, **options),
    ):
        assert extra_memory(work) <= values.nbytes / 4


def test_threads_and_instruction_sets_give_the_same_bytes():
    sets = ["portable", simd()]
    if simd() == "avx512":
        sets.append("avx2")
    digests = {}
    for name in dict.fromkeys(sets):
        env = {**os.environ, "HOROVOD_QODA_SIMD": name}
        run = subprocess.run(
            [sys.executable, "-m", "tests.codec_digest"], env=env, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        digests[name] = run.stdout.split()
        assert digests[name][0] == name
    assert len({tuple(d[1:]) for d in digests.values()}) == 1, digests


def test_unknown_instruction_set_is_an_error():
    env = {**os.environ, "HOROVOD_QODA_SIMD": "mmx"}
    code = "from horovod_qoda.coding import simd; simd()"
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode != 0 and "HOROVOD_QODA_SIMD=mmx" in run.stderr

"""Classes of groups in payloads: where they pay, where they do not, and what is refused."""

import struct

import numpy as np
import pytest

import horovod_qoda.native._codec as _codec
from horovod_qoda.coding import PayloadError, decode, decode_sum, entropy_bits, max_payload_bytes
from tests.codec_cases import HEADER, QUANTIZERS, join, make_input, payload, segment

META_BYTES, CLASSES = 104, 3


def kind(data, segments):
    return data[112 + 8 * len(segments)] & 15


def rows_case(n, seed=21, **fields):
    values = make_input("rows", n, np.random.default_rng(seed))
    fields = {"quantizer": 1, "reconstruction": 1, **fields}
    return values, segment(n, values=values, **fields)


def three_classes(n=900):
    """Rows of 0, of 1 and of 4 steps: symbols without chance, and as many classes."""
    sizes = np.repeat([0.0, 1.0, 4.0, 1.0, 0.0], 256)[:n]
    signs = np.where(np.arange(n) % 3, 1, -1)
    values = (sizes * signs).astype(np.float32)
    return values, segment(n, quantizer=1, step=1.0)


def restamped(data):
    """The payload of one block with its checksums made right again."""
    start = struct.unpack_from("<I", data, META_BYTES)[0]
    crc = _codec.crc32c(data[start:])
    data[start - 4 : start] = np.frombuffer(struct.pack("<I", crc), np.uint8)
    crc = _codec.crc32c(data[112:start], _codec.crc32c(data[:108]))
    data[108:112] = np.frombuffer(struct.pack("<I", crc), np.uint8)
    return data


def test_rows_of_different_sizes_take_fewer_bits_than_their_entropy():
    values, segments = rows_case(400_000, c=0.5)
    histogram = np.zeros((1, 256), dtype=np.int64)
    data = payload(values, segments, histogram=histogram)
    assert kind(data, segments) == CLASSES
    assert 8 * len(data) < 0.9 * entropy_bits(histogram)


@pytest.mark.parametrize("name", ["normal", "student", "constant", "zeros"])
@pytest.mark.parametrize("n", [500, 300_000])
def test_symbols_of_one_size_keep_one_table(name, n):
    values = make_input(name, n, np.random.default_rng(22))
    segments = segment(n, values=values, quantizer=1)
    assert kind(payload(values, segments), segments) != CLASSES


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_quantizer_goes_through_classes(quantizer):
    """Two types and three blocks; the payloads of two ranks differ in their classes."""
    n = 150_000
    values = make_input("rows", n, np.random.default_rng(23))
    fields = QUANTIZERS[quantizer]
    step = {"step": 0.5} if fields["quantizer"] == 1 else {}
    segments = join([segment(n - 999, index=0, type=0, **fields, **step)] +
                    [segment(999, index=0, type=1, **fields, **step)])  # fmt: skip
    levels = [np.linspace(0, 1, 9, dtype=np.float32), np.linspace(0, 1, 60, dtype=np.float32)]
    both = [payload(v, segments, levels=levels, threads=2) for v in (values, np.roll(values, 77))]
    out, one = np.zeros((2, n), dtype=np.float32)
    decode_sum(both, segments, out, expect=[HEADER, HEADER], levels=levels)
    for i, data in enumerate(both):
        decode(data, segments, one, expect=HEADER, levels=levels, add=i > 0)
    np.testing.assert_array_equal(out, one)


def test_escapes_keep_their_place():
    values, segments = rows_case(70_001, c=0.5)
    rare = np.random.default_rng(24).choice(70_001, 300, replace=False)
    values[rare] *= np.float32(50)
    data = payload(values, segments, decoded=(own := np.zeros_like(values)))
    assert kind(data, segments) == CLASSES
    out = np.zeros_like(values)
    decode(data, segments, out, expect=HEADER)
    np.testing.assert_array_equal(out, own)
    assert (np.abs(out - values) <= 0.5001 * segments["step"][0] + 1e-5 * np.abs(values)).all()


def outcome(data, segments, n):
    try:
        decode(data, segments, np.zeros(n, dtype=np.float32), expect=HEADER)
    except PayloadError as error:
        return str(error)
    return ""


def test_wrong_class_numbers_and_counts_are_refused():
    values, segments = three_classes()
    good = payload(values, segments)
    tables, block = 112 + 8, int(struct.unpack_from("<I", good, META_BYTES)[0])
    assert (good[tables], good[tables + 1]) == (CLASSES, 3)
    assert outcome(restamped(good.copy()), segments, 900) == ""
    for at, value, message in (
        (tables, CLASSES | 2 << 4, "shift"),
        (tables + 1, 1, "number of classes"),
        (tables + 1, 5, "number of classes"),
        (tables + 1, 4, "tables"),
        (tables + 3, 255, "tables"),
        (block + 128, good[block + 128] | 3, "class number"),
    ):
        bad = good.copy()
        bad[at] = value
        assert message in outcome(restamped(bad), segments, 900), (at, value)


def test_changed_bytes_are_refused_or_decoded():
    """Whatever is changed in tables, class numbers and stream, with checksums right again."""
    values, segments = three_classes()
    good = payload(values, segments)
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    guard = np.full(900 + 128, 7.0, dtype=np.float32)
    refused = 0
    for at in range(120, len(good)):
        bad = good.copy()
        bad[at] ^= rng.integers(1, 256)
        try:
            decode(restamped(bad), segments, guard[64:-64], expect=HEADER)
        except PayloadError:
            refused += 1
        assert (guard[:64] == 7.0).all() and (guard[-64:] == 7.0).all()
    assert refused > 0.5 * (len(good) - 120)


def test_payloads_of_version_1_are_refused_by_name():
    values, segments = three_classes()
    data = payload(values, segments)
    data[4] = 1
    with pytest.raises(PayloadError, match="format version 1, this build reads 2"):
        decode(data, segments, np.zeros_like(values), expect=HEADER)


def test_large_segments_that_turn_raw_fit_the_capacity():
    """They have the layout's blocks, empty, beside the raw ones."""
    n = 1 << 23
    segments = segment(n, quantizer=1, step=1e-38)
    out = np.full(max_payload_bytes(segments) + 4096, 0xA5, dtype=np.uint8)
    capacity = len(out) - 4096
    length = _codec.encode(
        np.ones(n, dtype=np.float32), segments, HEADER.as_tuple(), out[:capacity], None, 0, [],
        None, 1, None,
    )  # fmt: skip
    assert length <= capacity
    assert (out[capacity:] == 0xA5).all()

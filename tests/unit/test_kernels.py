"""The Triton codec against the CPU's bytes and values: in Triton's interpreter, or on a device.

Each case goes both ways: the kernels' payload must be the CPU's byte for byte, and what the kernels
decode from it must be what the CPU decodes. The NumPy reference checks the same bytes once more.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="Triton is not installed: pip install horovod-qoda[gpu]")

import horovod_qoda.native._codec as _codec  # noqa: E402
from horovod_qoda import coding  # noqa: E402
from horovod_qoda.coding import SEGMENT, Book, Header, PayloadError  # noqa: E402
from horovod_qoda.kernels import (  # noqa: E402
    Coder,
    copy_stats,
    decode,
    decode_sum,
    encode,
    host_coder,
)
from horovod_qoda.quantization import exponential, uniform  # noqa: E402
from tests import reference  # noqa: E402

HEADER = Header(0xABCDEF, (5 << 32) + 9, 3, 1, 2, (7 << 52) | (3 << 32) | 0x9FFFFFFF)


def devices():
    on_gpu = torch.cuda.is_available()
    why = "a CUDA device is there, so Triton's interpreter is off"
    yield pytest.param("cpu", marks=pytest.mark.skipif(on_gpu, reason=why), id="interpreter")
    yield pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=list(devices()), scope="module")
def coder(request):
    return Coder(request.param)


@pytest.fixture
def rng(request):
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


def rows(*specs):
    """Segments one behind the other with a gap of 3 coordinates, from dicts."""
    out = np.zeros(len(specs), SEGMENT)
    at = 3
    for row, spec in enumerate(specs):
        out[row]["offset"], out[row]["layer"] = at, 5 * row
        for name, value in spec.items():
            out[row][name] = value
        at += int(out[row]["numel"]) + 3
    return out, at


def poison(coder):
    """Nothing of the calls before may show through."""
    for buffer in coder.memory.every():
        buffer.view(torch.uint8).fill_(0xA5)


def by_cpu(values, segments, header=HEADER, **settings):
    out = np.empty(coding.max_payload_bytes(segments), np.uint8)
    return out[: coding.encode(values, segments, header, out, **settings)]


def by_kernels(coder, values, segments, header=HEADER, histogram=None, **settings):
    """The payload of the kernels alone; the CPU has made the same of their symbols."""
    there = torch.from_numpy(values).to(coder.device)
    counts = [None if histogram is None else histogram.copy() for _ in range(2)]
    made = []
    for coder.host_coded, count in zip((1 << 30, 0), counts, strict=True):
        poison(coder)
        out = torch.full((coding.max_payload_bytes(segments),), 0x5A, dtype=torch.uint8)
        length = encode(there, segments, header, out, coder=coder, histogram=count, **settings)
        made.append(out.numpy()[:length])
    np.testing.assert_array_equal(made[0], made[1], "coded by the CPU")
    if histogram is not None:
        np.testing.assert_array_equal(counts[0], counts[1])
        histogram[:] = counts[1]
    return made[1]


def decoded_by_kernels(coder, payloads, segments, before, headers, **settings):
    poison(coder)
    out = torch.from_numpy(before).to(coder.device)
    decode_sum(payloads, segments, out, expect=headers, coder=coder, **settings)
    return out.cpu().numpy()


def check_both_ways(coder, rng, values, segments, header=HEADER, **settings):
    """Bytes of encode and values of decode; returns the payload."""
    expected = by_cpu(values, segments, header, **settings)
    made = by_kernels(coder, values, segments, header, **settings)
    np.testing.assert_array_equal(made, expected)
    settings.pop("histogram", None)
    before = rng.standard_normal(len(values)).astype(np.float32)
    out = before.copy()
    coding.decode(expected, segments, out, expect=header, **settings)
    found = decoded_by_kernels(coder, [expected], segments, before, [header], **settings)
    np.testing.assert_array_equal(found, out)
    same_bits = found.view(np.uint32) == out.view(np.uint32)
    assert (same_bits | np.isnan(out)).all()
    return expected


def test_one_stream_with_both_reconstructions_equals_cpu_and_reference(coder, rng):
    segments, n = rows(
        {"numel": 450, "quantizer": 1, "step": 0.4, "index": 2048},
        {"numel": 131, "quantizer": 1, "step": 0.21, "reconstruction": 1},
        {"numel": 40, "quantizer": 1, "step": 0.0},
        {"numel": 1, "quantizer": 1, "step": 3.0},
    )
    values = rng.standard_normal(n).astype(np.float32)
    values[10:15] = [0.0, -0.0, 1e-42, -1e-42, 1e-38]
    payload = check_both_ways(coder, rng, values, segments)
    assert bytes(payload) == reference.encode(values, segments, HEADER)


def test_escapes_small_and_large_keep_their_order(coder, rng):
    segments, n = rows(
        {"numel": 500, "quantizer": 1, "step": 1.0},
        {"numel": 150, "quantizer": 1, "step": 0.7, "reconstruction": 1},
    )
    values = rng.standard_normal(n).astype(np.float32)
    rare = rng.choice(n, 40, replace=False)
    values[rare] *= np.float32(10.0) ** rng.uniform(1, 12, 40).astype(np.float32)
    payload = check_both_ways(coder, rng, values, segments)
    info = coding_info(payload)
    assert info[0] & 0x1FFFF > 5, "the case has no escapes"


def test_groups_of_different_sizes_take_tables_of_their_own(coder, rng):
    """One type with classes, with escapes and a last group that is not whole, and one without."""
    segments, n = rows(
        {"numel": 1000, "quantizer": 1, "step": 1.0},
        {"numel": 130, "quantizer": 1, "step": 1.0, "reconstruction": 1},
        {"numel": 150, "quantizer": 1, "step": 1.0, "type": 1},
    )
    values = rng.choice([-1.0, 1.0], n).astype(np.float32)
    values[200:600] *= 9
    values[600:900] = 0
    values[300], values[303] = 40, 1e5
    payload = check_both_ways(coder, rng, values, segments)
    assert payload[112 + 8 * len(segments)] == 3, "the case has no classes"
    assert coding_info(payload)[0] & 0x1FFFF > 0, "the case has no escapes"
    assert bytes(payload) == reference.encode(values, segments, HEADER)


def test_a_class_without_a_table_is_refused(coder, rng):
    segments, n = rows({"numel": 400, "quantizer": 1, "step": 1.0})
    values = (9 * rng.choice([-1.0, 1.0], n)).astype(np.float32)
    values[130:] /= 9
    payload = by_cpu(values, segments)
    tables = 112 + 8
    assert payload[tables] == 3 and payload[tables + 1] < 4
    start = int(np.frombuffer(payload[104:108].tobytes(), "<u4")[0])
    payload[start + 128] |= 3
    restamp(payload)
    with pytest.raises(PayloadError, match="class"):
        coding.decode(payload, segments, np.zeros(n, np.float32), expect=HEADER)
    with pytest.raises(PayloadError):
        decode(payload, segments, torch.zeros(n, device=coder.device), expect=HEADER, coder=coder)


def test_low_bits_travel_apart_at_high_rates(coder, rng):
    segments, n = rows(
        {"numel": 330, "quantizer": 1, "step": 0.004},
        {"numel": 105, "quantizer": 1, "step": 0.004, "reconstruction": 1},
    )
    values = rng.standard_normal(n).astype(np.float32)
    values[5] = 1e6
    payload = check_both_ways(coder, rng, values, segments)
    tables = 112 + 8 * len(segments)
    assert payload[tables] >> 4 in (2, 4), "the case has no low bits"


def test_block_that_coding_would_lengthen_is_plain(coder, rng):
    segments, n = rows({"numel": 30, "quantizer": 1, "step": 1e-3})
    values = (rng.standard_normal(n) * 1e4).astype(np.float32)
    payload = check_both_ways(coder, rng, values, segments)
    assert coding_info(payload)[0] == 1 << 31


def test_certain_tables_make_empty_blocks(coder, rng):
    segments, n = rows({"numel": 500, "quantizer": 1, "step": 1e9, "type": 1})
    values = np.zeros(n, np.float32)
    payload = check_both_ways(coder, rng, values, segments)
    assert coding_info(payload)[0] == 0


def test_kinds_that_carry_no_symbols(coder, rng):
    segments, n = rows(
        {"numel": 70, "quantizer": 0},
        {"numel": 300, "quantizer": 1, "step": 0.5},
        {"numel": 50, "quantizer": 1, "step": 0.5, "nonfinite": 1},
        {"numel": 64, "quantizer": 1, "step": 1e-40},
        {"numel": 20, "quantizer": 2, "levels": 0, "bucket": 16},
        {"numel": 9, "quantizer": 0, "nonfinite": 1},
    )
    values = rng.standard_normal(n).astype(np.float32)
    values[int(segments["offset"][2])] = np.nan
    values[int(segments["offset"][4]) :][:20] = 0
    check_both_ways(coder, rng, values, segments, levels=[uniform(3)])


@pytest.mark.parametrize("norm", [0, 1])
def test_levels_with_bucket_norms(coder, rng, norm):
    segments, n = rows(
        {"numel": 330, "quantizer": 2, "levels": 1, "bucket": 128, "norm": norm},
        {"numel": 150, "quantizer": 2, "levels": 0, "bucket": 0, "norm": norm, "type": 1},
    )
    values = rng.standard_normal(n).astype(np.float32)
    values[3 : 3 + 128] = 0
    payload = check_both_ways(coder, rng, values, segments, levels=[uniform(1), exponential(4)])
    assert bytes(payload) == reference.encode(
        values, segments, HEADER, levels=[uniform(1), exponential(4)]
    )


def test_max_min(coder, rng):
    segments, n = rows(
        {"numel": 200, "quantizer": 3, "levels": 0, "bucket": 64},
        {"numel": 100, "quantizer": 3, "levels": 0, "bucket": 0},
    )
    values = rng.standard_normal(n).astype(np.float32)
    values[3 : 3 + 64] = 0.25
    check_both_ways(coder, rng, values, segments, levels=[uniform(2)])


def test_agreed_tables_and_histogram(coder, rng):
    segments, n = rows(
        {"numel": 300, "quantizer": 1, "step": 0.5},
        {"numel": 150, "quantizer": 1, "step": 0.02, "type": 1},
    )
    values = rng.standard_normal(n).astype(np.float32)
    values[20] = 1e5
    counts = np.zeros((2, 256), np.int64)
    by_cpu(values, segments, histogram=counts)
    book = Book.from_histogram(counts)
    found = np.zeros((2, 256), np.int64)
    made = by_kernels(coder, values, segments, book=book, histogram=found)
    np.testing.assert_array_equal(found, counts)
    np.testing.assert_array_equal(made, by_cpu(values, segments, book=book))
    out = np.zeros(n, np.float32)
    coding.decode(made, segments, out, expect=HEADER, book=book)
    there = decoded_by_kernels(
        coder, [made], segments, np.zeros(n, np.float32), [HEADER], book=book
    )
    np.testing.assert_array_equal(there, out)


def test_small_payloads_alone_are_coded_by_the_cpu(coder, rng, monkeypatch):
    """Not where they are larger, stay on the device, have no symbols or send low bits apart."""
    asked = []
    code = host_coder.code
    monkeypatch.setattr(host_coder, "code", lambda *a: asked.append(1) or code(*a))
    one, n = rows({"numel": 90, "quantizer": 1, "step": 0.5}, {"numel": 9, "quantizer": 0})
    fine, raw = one.copy(), one.copy()
    fine["step"], raw["quantizer"] = 0.004, 0
    values = rng.standard_normal(n).astype(np.float32)
    room = coding.max_payload_bytes(one)
    on_device = torch.empty(room, dtype=torch.uint8, device=coder.device)
    for limit, segments, there, expected in (
        (99, one, None, 1),
        (98, one, None, 0),
        (0, one, None, 0),
        (99, one, on_device, 0),
        (99, fine, None, 0),
        (99, raw, None, 0),
    ):
        asked.clear()
        coder.host_coded = limit
        poison(coder)
        out = torch.empty(room, dtype=torch.uint8)
        x = torch.from_numpy(values).to(coder.device)
        length = encode(x, segments, HEADER, out, there=there, coder=coder)
        made = out if there is None else there.cpu()
        np.testing.assert_array_equal(made.numpy()[:length], by_cpu(values, segments))
        assert len(asked) == expected, (limit, segments["step"][0])
    coder.host_coded = 0


def test_symbols_that_do_not_fit_what_is_said_of_them_are_refused():
    codes = np.array([128, 129, 0, 127], np.uint8)
    freq = np.zeros((1, 256), np.uint16)
    freq[0, [0, 127, 128, 129]] = 1024
    table = (freq, np.zeros(29, np.uint8))
    certain, closed = np.zeros((2, 1, 256), np.uint16)
    certain[0, 128], closed[0, [128, 129]] = 4096, 2048
    out, one = np.empty(16, np.uint8), np.ones(1, np.float32)
    for floats, runs, tables, to, said in (
        (one[:0], [[0, 4, 0]], [table], out, "fewer floats"),
        (one, [[1, 4, 0]], [table], out, "outside codes"),
        (one, [[-1, 4, 0]], [table], out, "outside codes"),
        (one, [[0, 4, 1]], [table], out, "no table"),
        (one, [[0, 4, 0]], [(freq[:0], table[1])], out, "no table"),
        (one, [[0, 4, 0]], [(freq, table[1] + 1)], out, "class without table"),
        (one, [[0, 4, 0]], [(freq, table[1][:28])], out, "one of them for every size"),
        (one, [[0, 4, 0]], [(freq - freq, table[1])], out, "code tables"),
        (np.ones(2, np.float32), [[0, 4, 0]], [table], out, "more floats"),
        (one, [[0, 4, 0]], [(certain, table[1])], out, "no escape"),
        (one, [[0, 4, 0]], [(closed, table[1])], out, "no escape"),
        (one, [[0, 4, 0]], [table], out[:15], "15 bytes but up to 16"),
    ):
        with pytest.raises(ValueError, match=said):
            _codec.code_symbols(codes, floats, np.array(runs, np.int64), tables, to)
    written, found = _codec.code_symbols(codes, one, np.array([[0, 4, 0]]), [table], out)
    assert written == 16 and found[0, 0] == 16 and found[0, 1] == 1 << 31, "a plain block"
    np.testing.assert_array_equal(out.view(np.float32), [0, 1, 1, -1])


def test_sum_of_payloads_of_different_kinds(coder, rng):
    segments, n = rows(
        {"numel": 90, "quantizer": 1, "step": 0.5, "reconstruction": 1},
        {"numel": 40, "quantizer": 1, "step": 0.5},
        {"numel": 30, "quantizer": 0},
    )
    payloads, headers = [], []
    for rank in range(5):
        mine = segments.copy()
        mine["step"] = [0.02 + 0.01 * rank, 0.0 if rank in (0, 2) else 0.05, 0]
        values = rng.standard_normal(n).astype(np.float32)
        values[-10] = -0.0
        header = Header(1, 2, rank, 0, 0, rank << 32 | 77)
        payloads.append(by_cpu(values, mine, header))
        headers.append(header)
    for add in (False, True):
        before = rng.standard_normal(n).astype(np.float32)
        out = before.copy()
        settings = {"add": add, "scale": 0.2}
        coding.decode_sum(payloads, segments, out, expect=headers, **settings)
        found = decoded_by_kernels(coder, payloads, segments, before, headers, **settings)
        np.testing.assert_array_equal(found.view(np.uint32), out.view(np.uint32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_statistics_equal_the_cpus(coder, rng, dtype):
    tensors, copies, expected = [], [], []
    for n in (1, 15, 1000, 333):
        x = torch.from_numpy(rng.standard_normal(n).astype(np.float32)).to(getattr(torch, dtype))
        if n == 333:
            x[7] = float("inf")
        tensors.append(x.to(coder.device))
        copies.append(torch.full((n,), 7.0, device=coder.device))
        expected.append(coding.copy_stats(x.float().numpy()))
    found = copy_stats(tensors, copies, coder=coder)
    assert found[:3] == expected[:3]
    assert [finite for _, finite in found] == [True, True, True, False]
    for x, y in zip(tensors, copies, strict=True):
        assert torch.equal(x.float(), y)


def test_values_that_are_not_finite_are_refused(coder, rng):
    for quantizer, settings in ((1, {}), (2, {"levels": [uniform(3)]})):
        segments, n = rows({"numel": 90, "quantizer": quantizer, "step": 0.5, "bucket": 16})
        values = rng.standard_normal(n).astype(np.float32)
        values[40] = np.inf
        there = torch.from_numpy(values).to(coder.device)
        out = torch.empty(coding.max_payload_bytes(segments), dtype=torch.uint8)
        for coder.host_coded in (1000, 0):
            with pytest.raises(ValueError, match="segment 0"):
                encode(there, segments, HEADER, out, coder=coder, **settings)


def test_malformed_streams_are_refused(coder, rng):
    """Bytes changed and checksums made right again: only the kernels can notice."""
    segments, n = rows({"numel": 100, "quantizer": 1, "step": 0.5})
    values = rng.standard_normal(n).astype(np.float32)
    good = by_cpu(values, segments)
    start = int(np.frombuffer(good[104:108].tobytes(), "<u4")[0])
    refused = 0
    for at in rng.integers(start, len(good), 4):
        bad = good.copy()
        bad[at] ^= 1 << rng.integers(8)
        restamp(bad)
        found = outcome(lambda out, bad=bad: coding.decode(bad, segments, out, expect=HEADER), n)
        there = outcome(
            lambda out, bad=bad: decode(
                bad, segments, torch.from_numpy(out).to(coder.device), expect=HEADER, coder=coder
            ),
            n,
        )
        assert found == there
        refused += there
    assert refused, "no change was noticed"


def test_a_changed_byte_is_refused_with_its_block(coder, rng):
    """In the second of two payloads: in a stream, then in a raw block."""
    segments, n = rows(
        {"numel": 100, "quantizer": 1, "step": 0.5}, {"numel": 30, "quantizer": 0, "type": 1}
    )
    values = rng.standard_normal(n).astype(np.float32)
    other = replace(HEADER, rank=4)
    good, bad = by_cpu(values, segments), by_cpu(values, segments, other)
    start = int(bad[104:108].view("<u4")[0])
    out = torch.zeros(n, device=coder.device)
    for at, block in ((start, 0), (len(bad) - 1, 1)):
        bad[at] ^= 4
        with pytest.raises(PayloadError, match=f"rank 4: checksum of block {block}"):
            decode_sum([good, bad], segments, out, expect=[HEADER, other], coder=coder)
        bad[at] ^= 4
    bad[120] ^= 4
    with pytest.raises(PayloadError, match="checksum of the meta part"):
        decode_sum([good, bad], segments, out, expect=[HEADER, other], coder=coder)


def test_payloads_on_the_device_need_their_meta_parts_on_the_host(coder, rng):
    """Among them escape floats behind which low bits lie, and values that are raw."""
    segments, n = rows(
        {"numel": 140, "quantizer": 1, "step": 0.004},
        {"numel": 30, "quantizer": 1, "step": 1e-38},
        {"numel": 40, "quantizer": 0, "type": 1},
    )
    headers = [replace(HEADER, rank=rank) for rank in range(2)]
    payloads = []
    for header in headers:
        values = rng.standard_normal(n).astype(np.float32)
        values[5:9] = 1e6
        payloads.append(by_cpu(values, segments, header))
    expected = np.zeros(n, np.float32)
    coding.decode_sum(payloads, segments, expected, expect=headers)
    poison(coder)
    there = [torch.from_numpy(payload).to(coder.device) for payload in payloads]
    fronts = [payload[: int(payload[104:108].view("<u4")[0])].copy() for payload in payloads]
    out = torch.zeros(n, device=coder.device)
    settings = {"expect": headers, "fronts": fronts, "coder": coder}
    decode_sum(there, segments, out, **settings)
    np.testing.assert_array_equal(out.cpu().numpy(), expected)
    with pytest.raises(PayloadError, match="truncated"):
        decode_sum([there[0], there[1][:-4]], segments, out, **settings)


def random_case(rng, longest):
    """Segments of any quantizer and size, values of any scale, and their level sequences."""
    specs = []
    for _ in range(rng.integers(1, 5)):
        q = int(rng.choice([0, 1, 1, 1, 2, 3]))
        specs.append(
            {
                "numel": int(rng.integers(1, longest)),
                "index": 1024 * int(rng.integers(0, 50)),
                "quantizer": q,
                "step": np.float32(10.0 ** rng.uniform(-3, 1)) * (rng.random() > 0.1),
                "reconstruction": int(rng.integers(2)) if q == 1 else 0,
                "norm": int(rng.integers(2)),
                "bucket": int(rng.choice([0, 16, 64, 256])) if q > 1 else 0,
                "levels": int(rng.integers(2)) if q > 1 else 0,
                "nonfinite": int(rng.random() < 0.05),
            }
        )
    segments, n = rows(*specs)
    segments["type"] = np.sort(rng.integers(0, 3, len(specs)))
    scale = 10.0 ** rng.uniform(-2, 2)
    values = (rng.standard_normal(n) * scale).astype(np.float32)
    values[rng.random(n) < 0.2] = 0
    return segments, values, [uniform(int(rng.integers(0, 5))), exponential(3)]


def test_random_layouts_and_values(coder, rng):
    on_gpu = coder.device.type == "cuda"
    for _ in range(40 if on_gpu else 1):
        segments, values, levels = random_case(rng, 100_000 if on_gpu else 120)
        check_both_ways(coder, rng, values, segments, levels=levels)


@pytest.mark.gpu
def test_many_blocks_types_and_sizes_on_a_device(rng):
    coder = Coder("cuda")
    segments, n = rows(
        {"numel": 700_001, "quantizer": 1, "step": 0.4},
        {"numel": 1000, "quantizer": 1, "step": 0.3, "reconstruction": 1},
        {"numel": 300_000, "quantizer": 1, "step": 1.3, "reconstruction": 1},
        {"numel": 131_072, "quantizer": 2, "levels": 0, "bucket": 1024, "type": 1},
        {"numel": 70_003, "quantizer": 2, "levels": 1, "bucket": 0, "norm": 1, "type": 1},
        {"numel": 99_999, "quantizer": 3, "levels": 0, "bucket": 64, "type": 2},
        {"numel": 80_000, "quantizer": 1, "step": 1e-4, "type": 3},
        {"numel": 70_000, "quantizer": 0},
    )
    values = rng.standard_normal(n).astype(np.float32)
    values[rng.choice(n, 500, replace=False)] *= 1e4
    check_both_ways(coder, rng, values, segments, levels=[uniform(3), exponential(6)])


@pytest.mark.gpu
def test_work_queued_before_and_after_is_waited_for(rng):
    coder = Coder("cuda")
    segments, n = rows({"numel": 200_000, "quantizer": 1, "step": 0.5})
    host = rng.standard_normal(n).astype(np.float32)
    there = torch.from_numpy(host).to("cuda")
    out = torch.empty(coding.max_payload_bytes(segments), dtype=torch.uint8, pin_memory=True)
    torch.cuda._sleep(200_000_000)
    twice = there * 2
    length = encode(twice, segments, HEADER, out, coder=coder)
    payload = by_cpu(host * np.float32(2), segments)
    np.testing.assert_array_equal(out.numpy()[:length], payload)
    target = torch.full((n,), 5.0, device="cuda")
    decode(payload, segments, target, expect=HEADER, coder=coder)
    after = (target + 1).cpu().numpy()
    expected = np.full(n, 5.0, np.float32)
    coding.decode(payload, segments, expected, expect=HEADER)
    np.testing.assert_array_equal(after, expected + np.float32(1))


@pytest.mark.gpu
def test_nothing_is_allocated_after_warm_up(rng):
    coder = Coder("cuda")
    segments, n = rows({"numel": 200_000, "quantizer": 1, "step": 0.5})
    values = torch.randn(n, device="cuda")
    out = torch.empty(coding.max_payload_bytes(segments), dtype=torch.uint8, pin_memory=True)
    target = torch.empty(n, device="cuda")

    def step():
        length = encode(values, segments, HEADER, out, coder=coder)
        decode(out[:length], segments, target, expect=HEADER, coder=coder)

    step()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    step()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_buffers_are_reused(coder, rng):
    segments, n = rows({"numel": 64, "quantizer": 1, "step": 0.5})
    values = rng.standard_normal(n).astype(np.float32)
    before = None
    for _ in range(2):
        payload = by_kernels(coder, values, segments)
        decoded_by_kernels(coder, [payload], segments, np.zeros(n, np.float32), [HEADER])
        found = [buffer.data_ptr() for buffer in coder.memory.every()]
        assert before is None or found == before
        before = found


def outcome(call, n):
    try:
        call(np.zeros(n, np.float32))
    except PayloadError:
        return True
    return False


def restamp(payload):
    """Makes the checksums of a payload with one block right again."""
    start = int(np.frombuffer(payload[104:108].tobytes(), "<u4")[0])
    crc = reference.crc32c(payload[start:].tobytes())
    payload[start - 4 : start] = np.frombuffer(np.uint32(crc).tobytes(), np.uint8)
    crc = reference.crc32c(payload[:108].tobytes())
    crc = reference.crc32c(payload[112:start].tobytes(), crc)
    payload[108:112] = np.frombuffer(np.uint32(crc).tobytes(), np.uint8)


def coding_info(payload):
    """Info fields of a payload's blocks."""
    n_blocks = int(np.frombuffer(payload[72:76].tobytes(), "<u4")[0])
    start = int(np.frombuffer(payload[104:108].tobytes(), "<u4")[0])
    table = np.frombuffer(payload[start - 12 * n_blocks : start].tobytes(), "<u4")
    return table.reshape(-1, 3)[:, 1]

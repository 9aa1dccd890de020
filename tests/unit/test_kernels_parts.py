"""Single kernels and the host's tables for them, against NumPy; and what the compiler makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="Triton is not installed: pip install horovod-qoda[gpu]")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from horovod_qoda.coding import SEGMENT, Header  # noqa: E402
from horovod_qoda.kernels.checksum import LANES, checksum_blocks, lane_tables  # noqa: E402
from horovod_qoda.kernels.coder import call_words  # noqa: E402
from horovod_qoda.kernels.geometry import make_geometry  # noqa: E402
from horovod_qoda.kernels.philox import tile_uniforms  # noqa: E402
from horovod_qoda.kernels.rans import fill_slots, popcount, push  # noqa: E402
from tests import reference  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ON = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def push_lanes(x, freq, start, reciprocal, out, bits, N: tl.constexpr):
    i = tl.arange(0, N)
    state = tl.load(x + i).to(tl.uint32, bitcast=True)
    y = push(
        state,
        tl.load(freq + i).to(tl.uint32, bitcast=True),
        tl.load(start + i).to(tl.uint32, bitcast=True),
        tl.load(reciprocal + i).to(tl.uint32, bitcast=True),
    )
    tl.store(out + i, y.to(tl.int32, bitcast=True))
    tl.store(bits + i, popcount(state))


@triton.jit
def uniforms_of(call, layer, first, out, G: tl.constexpr):
    group = (first + tl.arange(0, G)).to(tl.uint32)
    u = tile_uniforms(group, tl.full([], 0, tl.uint32) + layer, call)
    g = tl.arange(0, G)[:, None, None]
    at = g * 128 + tl.arange(0, 8)[None, None, :] * 16 + tl.arange(0, 16)[None, :, None]
    tl.store(out + at, u)


def on_device(array):
    return torch.from_numpy(np.ascontiguousarray(array)).to(ON)


def test_push_divides_exactly_for_every_frequency_at_the_edges():
    """x runs over multiples of the frequency and their neighbours, up to freq << 20."""
    freq = np.arange(1, 4096, dtype=np.uint64)
    most = np.minimum((freq << np.uint64(20)) - np.uint64(1), np.uint64(2**32 - 1))
    rng = np.random.default_rng(7)
    middle = rng.integers(1, 1 << 20, len(freq)).astype(np.uint64) * freq
    xs = [most, most // freq * freq, most // freq * freq - np.uint64(1), freq, middle]
    xs += [np.maximum(middle, np.uint64(1)) - np.uint64(1)]
    x = np.minimum(np.concatenate(xs), np.tile(most, len(xs)))
    f = np.tile(freq, len(xs))
    n = 1 << int(len(x) - 1).bit_length()
    x, f = np.resize(x, n), np.resize(f, n)
    start = (x * np.uint64(31)) % np.uint64(4096)
    reciprocal = np.minimum(np.uint64(1 << 32) // f, np.uint64(2**32 - 1))
    words = [on_device(a.astype(np.uint32).view(np.int32)) for a in (x, f, start, reciprocal)]
    out = torch.full((n,), -1, dtype=torch.int32, device=ON)
    bits = torch.full((n,), -1, dtype=torch.int32, device=ON)
    push_lanes[(1,)](*words, out, bits, N=n)
    expected = x // f * np.uint64(4096) + x % f + start
    np.testing.assert_array_equal(out.cpu().numpy().view(np.uint32), expected.astype(np.uint32))
    counted = [int(v).bit_count() for v in x]
    np.testing.assert_array_equal(bits.cpu().numpy(), counted)


@pytest.mark.parametrize("exchange", [0, (3 << 32) + 2**31 + 5])
def test_uniforms_equal_the_reference(exchange):
    header = Header(0, exchange, 0, 200, 0, (2**31 + 9) << 32 | 0xFFFFFFF0)
    row = np.zeros(1, SEGMENT)[0]
    row["layer"], row["index"] = 2**24 - 3, 128 * 1024
    layer, first, groups = int(row["layer"]), 1024, 4
    out = torch.full((groups * 128,), -1.0, device=ON)
    uniforms_of[(1,)](on_device(call_words(header)), layer, first, out, G=groups)
    expected = reference.uniforms(header, row, 0, groups * 128)
    np.testing.assert_array_equal(out.cpu().numpy(), expected)


def test_slots_are_the_tables_spread_out():
    freq = np.zeros((2, 256), np.int32)
    freq[0, [0, 127, 128, 129]] = 1, 1000, 2095, 1000
    freq[1, 1:256] = 16
    freq[1, 0] = 4096 - 255 * 16
    slots = torch.full((2, 4096), -1, dtype=torch.int32, device=ON)
    starts = np.cumsum(freq, axis=1) - freq
    fill_slots[(2, 8)](on_device(freq), on_device(starts.astype(np.int32)), slots, WIDTH=512)
    for row in range(2):
        code = np.repeat(np.arange(256), freq[row])
        start = np.cumsum(freq[row]) - freq[row]
        entry = (np.arange(4096) - start[code]) << 20 | freq[row][code] << 8 | code
        found = slots[row].cpu().numpy().view(np.uint32)
        np.testing.assert_array_equal(found, entry.astype(np.uint32))


def test_checksums_equal_crc32c():
    rng = np.random.default_rng(5)
    n_words = np.array([0, 1, 255, 256, 257, 1000, 3])
    words = rng.integers(0, 2**32, n_words.sum(), dtype=np.uint64).astype(np.uint32)
    words[:2] = 0
    at = np.cumsum(n_words) - n_words
    out = torch.full((len(n_words),), 7, dtype=torch.int32, device=ON)
    tables = [on_device(table) for table in lane_tables()]
    data = on_device(words.view(np.int32))
    checksum_blocks[(len(n_words),)](
        data, on_device(at), on_device(n_words), *tables, out, LANES=LANES
    )
    expected = [
        reference.crc32c(words[a : a + n].tobytes()) for a, n in zip(at, n_words, strict=True)
    ]
    np.testing.assert_array_equal(out.cpu().numpy().view(np.uint32), expected)


def test_sample_takes_the_groups_of_the_reference():
    segments = np.zeros(4, SEGMENT)
    segments["numel"] = [150_000, 100, 70_001, 500]
    segments["offset"] = np.cumsum(segments["numel"]) - segments["numel"]
    segments["quantizer"], segments["step"] = 1, 1
    segments["type"] = [0, 0, 0, 1]
    n = int(segments["numel"].sum())
    geometry = make_geometry(segments, n, [])
    kinds = np.array([1, 0, 1, 1], np.uint8)
    sample = geometry.sample(kinds)
    for slot, (_, run) in enumerate(reference.plan_blocks(segments)):
        groups = [
            (row, start + at)
            for block in run
            for row, start, numel in block
            if kinds[row] == 1
            for at in range(0, numel, 128)
        ]
        stride = max(1, len(groups) // min(max(len(groups) // 8, 512), 1024))
        drawn = range(-(-len(groups) // stride))
        picked = [i * stride + reference.jitter(i, stride) for i in drawn]
        expected = [groups[i] for i in picked if i < len(groups)]
        mine = np.repeat(sample.program_type[1], 16) == slot
        piece, start = sample.piece[1][mine], sample.start[1][mine]
        piece, start = piece[piece >= 0], start[piece >= 0]
        row = geometry.pieces[piece, 1]
        found = list(zip(row.tolist(), (start + geometry.pieces[piece, 3]).tolist(), strict=True))
        assert found == expected
        assert sample.exact[slot] == (stride == 1)


@pytest.mark.slow
def test_kernels_compile_without_spills_and_without_fused_arithmetic():
    """For sm_90; Triton brings the whole compiler, no device is needed."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "compile_kernels.py"), "90", "quick"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for row in json.loads(done.stdout):
        assert row["fused_multiply_adds_ptx"] == 0, row
        assert row["stack_bytes"] in (0, None), row
        # Divisions are made of fused operations and still round correctly; nothing else may be.
        if row["constants"].get("QUANTIZER") == 1:
            assert row["fused_multiply_adds_sass"] in (0, None), row


def test_import_without_triton_names_the_extra():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "try:\n    import horovod_qoda.kernels\n"
        "except ModuleNotFoundError as e:\n    print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "pip install horovod-qoda[gpu]" in done.stdout, done.stdout + done.stderr

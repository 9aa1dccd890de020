"""Speed and rate of the codec beside memcpy, zstandard and constriction, in one run.

    python benchmarks/codec.py [--json FILE] [--gradients FILE] [--paths avx512,avx2,portable]
                               [--clock cpu|wall]

Each figure is the median over repeats; encode and decode are timed right beside a memcpy of the
same floats, and their ratio is taken repeat by repeat, so that a busy machine disturbs both.
"encode" is the norm pass and the encoding, "decode" the sum of four payloads divided by four. The
other coders, zstandard (level 1, two symbols a byte, symbols beyond 7 in a byte of their own) and
constriction (ANS), have the same norm pass and quantiser in front and the same reconstruction and
sum behind; packing is not charged to them. Both are optional: pip install zstandard constriction.

The file has a record for each (data, bits, path, coder); ours also has its ratios to the others.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import inputs  # noqa: E402
from horovod_qoda.coding import (  # noqa: E402
    SEGMENT,
    Header,
    copy_stats,
    decode_sum,
    encode,
    entropy_bits,
    from_symbols,
    max_payload_bytes,
    simd,
    symbols,
)
from horovod_qoda.quantization import step_factor, step_size  # noqa: E402

RANKS = 4
# What the codec is meant to reach: (name, comparison, bound).
TARGETS = {
    "encode_over_memcpy": (">=", 0.5, 0.35),
    "decode_over_memcpy": (">=", 0.5, 0.35),
    "rate_over_entropy": ("<=", 1.01, 1.01),
    "threads_2_over_1": (">=", 1.7, 1.7),
    "extra_memory_over_input": ("<=", 0.25, 0.25),
    "zstd_encode": (">=", 1.0, 1.0),
    "zstd_decode": (">=", 1.0, 1.0),
    "zstd_rate": (">=", 1.0, 1.0),
    "constriction_encode": (">=", 10.0, 10.0),
    "constriction_decode": (">=", 10.0, 10.0),
}


class Case:
    """One input at one rate: segments, buffers and four ranks' payloads."""

    def __init__(self, layers: list[np.ndarray], bits: float) -> None:
        self.values = np.concatenate(layers)
        self.segments = np.zeros(len(layers), dtype=SEGMENT)
        sizes = [len(layer) for layer in layers]
        self.segments["numel"] = sizes
        self.segments["offset"] = np.cumsum([0, *sizes[:-1]])
        self.segments["layer"] = np.arange(len(layers))
        self.segments["quantizer"] = self.segments["reconstruction"] = 1
        self.headers = [Header(1, 2, rank, 0, 0, rank << 32) for rank in range(RANKS)]
        self.buffer = np.zeros(max_payload_bytes(self.segments), dtype=np.uint8)
        self.out = np.zeros_like(self.values)
        self.codes = np.zeros(len(self.values), dtype=np.uint8)
        c = step_factor(bits)
        for _ in range(6):  # the rate depends on the distribution
            self.set_steps(c, layers)
            measured = 8 * self.encode() / len(self.values)
            c *= 2.0 ** (measured - bits)
        self.set_steps(c, layers)
        self.histogram = np.zeros((1, 256), dtype=np.int64)
        self.length = encode(
            self.values, self.segments, self.headers[0], self.buffer, histogram=self.histogram
        )
        self.payloads = [self.payload(header) for header in self.headers]

    def set_steps(self, c: float, layers: list[np.ndarray]) -> None:
        self.segments["step"] = [step_size(c, copy_stats(v)[0], len(v)) for v in layers]

    def payload(self, header: Header) -> np.ndarray:
        return self.buffer[: encode(self.values, self.segments, header, self.buffer)].copy()

    def encode(self, threads: int = 1) -> int:
        return encode(self.values, self.segments, self.headers[0], self.buffer, threads=threads)

    def norms_and_encode(self) -> None:
        copy_stats(self.values)
        self.encode()

    def decode(self, threads: int = 1) -> None:
        decode_sum(self.payloads, self.segments, self.out, expect=self.headers, threads=threads)

    def quantize(self) -> None:
        """Norm pass and quantiser alone, as another coder would need them."""
        copy_stats(self.values)
        symbols(self.values, self.segments, self.headers[0], self.codes)

    def reconstruct(self) -> None:
        from_symbols(self.codes, self.segments, self.headers[0], self.out, add=True)


def side_by_side(
    work: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float]
) -> dict[str, np.ndarray]:
    """Seconds of each piece of work, [repeats], all pieces in turn."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, run in work.items():
            start = clock()
            run()
            if repeat > 0:
                times[name].append(clock() - start)
    return {name: np.array(t) for name, t in times.items()}


def spread(values: np.ndarray) -> list[float]:
    """Median and quartiles."""
    return [float(np.percentile(values, q)) for q in (50, 25, 75)]


def extra_memory(run: Callable[[], Any]) -> int:
    """Bytes by which the peak of resident memory exceeds what was resident before."""
    run()
    ctypes.CDLL(None).malloc_trim(0)  # what the first run freed must not hide what the next takes
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def zstandard_coder(codes: np.ndarray) -> tuple[dict[str, Callable[[], Any]], int] | None:
    try:
        import zstandard
    except ImportError:
        return None
    escaped = (codes <= 120) | (codes > 135)
    nibbles = np.where(escaped, 0, codes - np.uint8(120)).astype(np.uint8)
    pairs = nibbles[0::2] | nibbles[1::2] << 4
    packed = np.concatenate([pairs, codes[escaped]]).tobytes()
    coder, decoder = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    compressed = coder.compress(packed)
    work = {
        "zstd_encode": lambda: coder.compress(packed),
        "zstd_decode": lambda: decoder.decompress(compressed),
    }
    return work, len(compressed)


def constriction_coder(codes: np.ndarray) -> tuple[dict[str, Callable[[], Any]], int] | None:
    try:
        import constriction
    except ImportError:
        return None
    symbols = codes.astype(np.int32)
    counts = np.bincount(symbols, minlength=256).astype(np.float64)
    model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)

    def compress() -> np.ndarray:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols, model)
        return coder.get_compressed()

    compressed = compress()
    size = len(symbols)
    work = {
        "constriction_encode": compress,
        "constriction_decode": lambda: constriction.stream.stack.AnsCoder(compressed).decode(
            model, size
        ),
    }
    return work, compressed.nbytes


def others(
    case: Case, memcpy: float, repeats: int, timer: Callable[[], float]
) -> list[dict[str, Any]]:
    """A record for each other coder that is installed, with the same work in front and behind.

    ``encode_ns`` and ``decode_ns`` are what the coder takes by itself, a symbol.
    """
    front = side_by_side(
        {"encode": case.quantize, "decode": case.reconstruct}, max(3, repeats // 2), timer
    )
    records = []
    for name, make, part in (
        ("zstd", zstandard_coder, 1),
        ("constriction", constriction_coder, 16),  # a sixteenth is enough to time it
    ):
        made = make(case.codes[: len(case.codes) // part])
        if made is None:
            continue
        work, size = made
        times = side_by_side(work, max(3, repeats // 3), timer)
        record: dict[str, Any] = {
            "coder": name,
            "rate_over_entropy": 8 * size * part / entropy_bits(case.histogram),
            "gb_s": {},
        }
        for direction in ("encode", "decode"):
            coder = float(np.median(times[f"{name}_{direction}"])) * part
            seconds = coder + float(np.median(front[direction]))
            record[f"{direction}_over_memcpy"] = memcpy / seconds
            record["gb_s"][direction] = 1e-9 * case.values.nbytes / seconds
            record[f"{direction}_ns"] = 1e9 * coder / len(case.codes)
        records.append(record)
    return records


def against(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Their time over ours, their size over ours, and their coder's own nanoseconds."""
    name = theirs["coder"]
    found = {f"{name}_rate": theirs["rate_over_entropy"] / ours["rate_over_entropy"]}
    for direction in ("encode", "decode"):
        found[f"{name}_{direction}"] = ours["gb_s"][direction] / theirs["gb_s"][direction]
        found[f"{name}_{direction}_ns"] = theirs[f"{direction}_ns"]
    return found


def measure(data: str, bits: float, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Records of one case: ours, which says how it compares, then those of other coders."""
    timer = time.thread_time if args.clock == "cpu" else time.perf_counter
    repeats = args.repeats
    case = Case(inputs.load(data, args.numel, args.gradients), bits)
    gigabytes = 1e-9 * case.values.nbytes
    times = side_by_side(
        {
            "memcpy": lambda: np.copyto(case.out, case.values),
            "encode": case.norms_and_encode,
            "decode": case.decode,
        },
        repeats,
        timer,
    )
    decode_one = times["decode"] / RANKS
    walls = side_by_side(
        {
            "encode_1": case.encode,
            "encode_2": lambda: case.encode(2),
            "decode_1": case.decode,
            "decode_2": lambda: case.decode(2),
        },
        repeats,
        time.perf_counter,
    )
    one, two = walls["encode_1"] + walls["decode_1"], walls["encode_2"] + walls["decode_2"]
    ratios = {
        "encode_over_memcpy": times["memcpy"] / times["encode"],
        "decode_over_memcpy": times["memcpy"] / decode_one,
        "threads_2_over_1": one / two,
    }
    memcpy = spread(times["memcpy"])[0]
    case_of = {"data": data, "bits": 8 * case.length / len(case.values), "path": simd()}
    record: dict[str, Any] = {
        **case_of,
        "coder": "horovod_qoda",
        **{name: spread(values)[0] for name, values in ratios.items()},
        "rate_over_entropy": 8 * case.length / entropy_bits(case.histogram),
        "gb_s": {
            "memcpy": gigabytes / memcpy,
            "encode": gigabytes / spread(times["encode"])[0],
            "decode": gigabytes / spread(decode_one)[0],
        },
        "quartiles": {name: spread(values)[1:] for name, values in ratios.items()},
        "extra_memory_over_input": max(extra_memory(case.encode), extra_memory(case.decode))
        / case.values.nbytes,
    }
    rivals = [] if simd() == "portable" else others(case, memcpy, repeats, timer)
    for rival in rivals:
        record.update(against(record, rival))
    return [record, *({**case_of, **rival} for rival in rivals)]


def verdict(name: str, value: float) -> str:
    comparison, goal, minimum = TARGETS[name]
    reached = (lambda bound: value >= bound) if comparison == ">=" else (lambda b: value <= b)
    return "met" if reached(goal) else "minimum" if reached(minimum) else "MISSED"


def show(record: dict[str, Any]) -> None:
    speeds = ", ".join(f"{name} {value:.2f}" for name, value in record["gb_s"].items())
    print(f"{record['data']}, {record['bits']:.2f} bits, {record['path']}: GB/s {speeds}")
    for name in TARGETS:
        if name not in record:
            continue
        quartiles = record["quartiles"].get(name)
        between = f" [{quartiles[0]:.3f}, {quartiles[1]:.3f}]" if quartiles else ""
        comparison, goal, _ = TARGETS[name]
        print(
            f"    {name:26s} {record[name]:7.3f}{between}  {comparison} {goal}:"
            f" {verdict(name, record[name])}"
        )
    for name in (name for name in record if name.endswith("_ns")):
        print(f"    {name:26s} {record[name]:7.3f}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--paths", help="instruction sets, one after the other")
    parser.add_argument("--data", default="gaussian,student,gradients")
    parser.add_argument("--bits", default="2,3,4")
    parser.add_argument("--gradients", type=Path, help="file made by benchmarks/inputs.py")
    parser.add_argument("--numel", type=int, default=1 << 24)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--clock",
        choices=["cpu", "wall"],
        default="cpu",
        help="of one-core figures: cpu leaves out the time in which other jobs had the core",
    )
    args = parser.parse_args()
    if args.paths:
        run_paths(args)
        return
    records = []
    for data in args.data.split(","):
        for bits in args.bits.split(","):
            found = measure(data, float(bits), args)
            records += found
            show(found[0])
    if args.json:
        args.json.write_text("".join(json.dumps(record) + "\n" for record in records))


def run_paths(args: argparse.Namespace) -> None:
    """Each instruction set in a process of its own; JSON records of all in one file."""
    lines = ""
    for path in args.paths.split(","):
        command = [sys.executable, __file__, "--data", args.data, "--bits", args.bits]
        command += ["--numel", str(args.numel), "--repeats", str(args.repeats)]
        command += ["--clock", args.clock]
        command += ["--gradients", str(args.gradients)] if args.gradients else []
        part = args.json.with_suffix(f".{path}") if args.json else None
        if part:
            command += ["--json", str(part)]
        subprocess.run(command, check=True, env={**os.environ, "HOROVOD_QODA_SIMD": path})
        if part:
            lines += part.read_text()
            part.unlink()
    if args.json:
        args.json.write_text(lines)


if __name__ == "__main__":
    main()

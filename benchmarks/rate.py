"""Coded bits against relative variance of every quantiser, all with the same entropy coder.

    python benchmarks/rate.py [--numel 4194304] [--gradients FILE] [--out FOLDER] [--tables]

Bits are 8 * payload bytes / coordinates, norms, tables and headers included; variance is
||decoded - v||^2 / ||v||^2 over all layers. For each level quantiser's points the last column is
the bits that the one-stream quantiser needs for the same variance, divided by its bits. One-stream
rows: "rms" has a step per layer proportional to its RMS, "one step" the same for all layers;
"auto" takes, layer by layer, the reconstruction with the smaller error, rounded where 1 % or more
of the coordinates are zero (docs/theory.md §8). Writes rate.json and, with matplotlib, rate.png.

--tables prints instead what the symbols of the one-stream quantiser (steps by layer RMS) would need
with other choices of code tables: their empirical entropy in bits, and the tables themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import inputs  # noqa: E402
from horovod_qoda.coding import (  # noqa: E402
    SEGMENT,
    Header,
    copy_stats,
    decode,
    encode,
    entropy,
    entropy_bits,
    max_payload_bytes,
    sum_sq_diff,
    symbols,
)
from horovod_qoda.quantization import exponential, step_size, ternary, uniform  # noqa: E402
from horovod_qoda.quantization.adaptive import fit_levels  # noqa: E402
from horovod_qoda.quantization.histogram import normalised_histograms  # noqa: E402

HEADER = Header(1, 0, 0, 0, 0, 42)
STEPS = [4.0, 2.8, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.18]
ZERO_SHARE = 0.01

Layers = list[npt.NDArray[np.float32]]
Sequence = npt.NDArray[np.float32]  # of levels
Point = tuple[float, float]  # bits, relative variance

# Level quantisers: their sequences, which may depend on the layers, and the fields of a segment.
LEVEL_QUANTISERS: dict[str, tuple[Callable[[Layers], list[Sequence]], dict[str, int]]] = {
    "uniform L-inf 512": (
        lambda _: [uniform(s) for s in (0, 1, 2, 6, 14, 30)],
        {"quantizer": 2, "bucket": 512},
    ),
    "adaptive L-inf 512": (
        lambda layers: [adaptive(layers, s) for s in (0, 1, 2, 6, 14, 30)],
        {"quantizer": 2, "bucket": 512},
    ),
    "exponential L2 512": (
        lambda _: [exponential(s) for s in (2, 6, 14)],
        {"quantizer": 2, "norm": 1, "bucket": 512},
    ),
    "max-min 4 bits 512 (CGX)": (lambda _: [uniform(6)], {"quantizer": 3, "bucket": 512}),
    "QSGD (uniform L2 512)": (
        lambda _: [uniform(s) for s in (2, 6, 14, 30, 62, 126)],
        {"quantizer": 2, "norm": 1, "bucket": 512},
    ),
    "QSGD (uniform L2, layer)": (
        lambda _: [uniform(s) for s in (0, 14, 62, 126)],
        {"quantizer": 2, "norm": 1, "bucket": 0},
    ),
    "ternary L-inf, layer": (lambda _: [ternary()], {"quantizer": 2, "bucket": 0}),
}


def adaptive(layers: Layers, count: int) -> Sequence:
    """One sequence of ``count`` inner levels, fitted to all layers together."""
    weighted = sum(normalised_histograms(layer, 512, "linf")[1] for layer in layers)
    return fit_levels(weighted, count)


def segments_of(layers: Layers, **fields: int) -> npt.NDArray[np.void]:
    segments = np.zeros(len(layers), dtype=SEGMENT)
    sizes = [len(layer) for layer in layers]
    segments["numel"] = sizes
    segments["offset"] = np.cumsum([0, *sizes[:-1]])
    segments["layer"] = np.arange(len(layers))
    for name, value in fields.items():
        segments[name] = value
    return segments


def run(
    values: npt.NDArray[np.float32],
    segments: npt.NDArray[np.void],
    levels: list[npt.NDArray[np.float32]] | None = None,
) -> tuple[float, npt.NDArray[np.float32]]:
    """(bits per coordinate, decoded values), through a real payload."""
    out = np.empty(max_payload_bytes(segments), dtype=np.uint8)
    length = encode(values, segments, HEADER, out, levels=levels or ())
    decoded = np.empty_like(values)
    decode(out[:length], segments, decoded, expect=HEADER, levels=levels or ())
    return 8 * length / len(values), decoded


def one_stream(layers: Layers, reconstruction: str, common_step: bool) -> list[Point]:
    values = np.concatenate(layers)
    total = copy_stats(values)[0]
    points = []
    for c in STEPS:
        segments = segments_of(layers, quantizer=1)
        if common_step:
            segments["step"] = step_size(c, total, len(values))
        else:
            segments["step"] = [step_size(c, copy_stats(v)[0], len(v)) for v in layers]
        segments["reconstruction"] = [
            choose(v, float(step), reconstruction)
            for v, step in zip(layers, segments["step"], strict=True)
        ]
        bits, decoded = run(values, segments)
        points.append((bits, sum_sq_diff(decoded, values) / total))
    return points


def choose(v: npt.NDArray[np.float32], step: float, reconstruction: str) -> int:
    """0 rounded, 1 dithered; "auto" by the exact variances of docs/theory.md §8."""
    if reconstruction != "auto":
        return int(reconstruction == "dithered")
    if step == 0 or (v == 0).mean() >= ZERO_SHARE:
        return 0
    f = np.modf(np.abs(v.astype(np.float64)) / step)[0]
    return int((f * (1 - f)).mean() > 1 / 12)


def with_levels(layers: Layers, sequences: list[Sequence], **fields: int) -> list[Point]:
    values = np.concatenate(layers)
    total = copy_stats(values)[0]
    points = []
    for sequence in sequences:
        bits, decoded = run(values, segments_of(layers, **fields), [sequence])
        points.append((bits, sum_sq_diff(decoded, values) / total))
    return points


def curves(layers: Layers) -> dict[str, list[Point]]:
    made = {
        f"{kind}, {'one step' if common else 'rms'}": one_stream(layers, kind, common)
        for common in (False, True)
        for kind in ("auto", "rounded", "dithered")
    }
    for name, (sequences, fields) in LEVEL_QUANTISERS.items():
        made[name] = with_levels(layers, sequences(layers), **fields)
    return made


def bits_at(points: list[Point], variance: float) -> float:
    """Bits at a variance by interpolation of bits over log variance; nan outside the curve."""
    ordered = sorted(points, key=lambda p: p[1])
    x = [np.log(v) for _, v in ordered]
    if not x[0] <= np.log(variance) <= x[-1]:
        return float("nan")
    return float(np.interp(np.log(variance), x, [b for b, _ in ordered]))


def codes_at(layers: Layers, bits: float) -> npt.NDArray[np.uint8]:
    """Codes with steps by layer RMS at which one table for all needs about ``bits``."""
    values = np.concatenate(layers)
    segments = segments_of(layers, quantizer=1)
    codes = np.zeros(len(values), dtype=np.uint8)
    c = 1.0
    for _ in range(7):
        segments["step"] = [step_size(c, copy_stats(v)[0], len(v)) for v in layers]
        symbols(values, segments, HEADER, codes)
        c *= 2.0 ** (entropy(np.bincount(codes)) - bits)
    return codes


def block_bits(codes: npt.NDArray[np.uint8], size: int) -> float:
    """Bits with a table for every ``size`` symbols: 2 bytes and 1.3 for each code it has."""
    total = 0.0
    for at in range(0, len(codes), size):
        counts = np.bincount(codes[at : at + size])
        total += entropy_bits(counts) + 8 * (2 + 1.3 * np.count_nonzero(counts))
    return total


def class_bits(codes: npt.NDArray[np.uint8], group: int, classes: int) -> float:
    """Bits where every group of symbols names one of a few tables, by its mean magnitude."""
    groups = codes[: len(codes) // group * group].reshape(-1, group)
    size = np.abs(groups.astype(np.float32) - 128).mean(axis=1)
    which = np.searchsorted(np.quantile(size, np.arange(1, classes) / classes), size)
    total = entropy_bits(np.bincount(which))
    return total + sum(
        entropy_bits(np.bincount(groups[which == k].ravel())) for k in range(classes)
    )


def table_choices(layers: Layers) -> None:
    starts = np.cumsum([len(layer) for layer in layers])[:-1]
    for bits in (2.0, 3.0, 4.0):
        codes = codes_at(layers, bits)
        pairs = np.bincount(256 * codes[:-1].astype(np.int64) + codes[1:], minlength=1 << 16)
        found = {
            "one table": entropy_bits(np.bincount(codes)),
            "by layer": sum(entropy_bits(np.bincount(part)) for part in np.split(codes, starts)),
            "by symbol before": entropy_bits(pairs.reshape(256, 256)),
            **{f"by {n} symbols": block_bits(codes, n) for n in (65536, 4096, 1024)},
            **{f"{k} classes of 128": class_bits(codes, 128, k) for k in (2, 4, 8)},
            **{f"4 classes of {n}": class_bits(codes, n, 4) for n in (64, 256)},
        }
        print(", ".join(f"{name} {value / len(codes):.3f}" for name, value in found.items()))


def table(data: str, made: dict[str, list[Point]]) -> None:
    print(f"\n{data}\n{'quantiser':28s} {'bits':>7s} {'variance':>10s}  auto rms  auto one step")
    for name, points in made.items():
        for bits, variance in points:
            shares = [
                bits_at(made[key], variance) / bits for key in ("auto, rms", "auto, one step")
            ]
            print(f"{name:28s} {bits:7.3f} {variance:10.5f}  {shares[0]:8.3f}  {shares[1]:13.3f}")


def plot(results: dict[str, dict[str, list[Point]]], file: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no rate.png: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(results), figsize=(5 * len(results) + 2, 4), squeeze=False, layout="constrained"
    )
    for axis, (data, made) in zip(axes[0], results.items(), strict=True):
        for number, (name, points) in enumerate(made.items()):
            ours = name not in LEVEL_QUANTISERS
            axis.semilogy(
                *zip(*sorted(points), strict=True),
                "-" if ours else "--",
                marker="" if ours else ".",
                color=f"C{number if ours else number - len(made) + len(LEVEL_QUANTISERS)}",
                label=name,
            )
        # Where noise is no larger than the gradient: a norm of a whole layer is off the scale.
        axis.set(title=data, xlabel="coded bits per coordinate", ylabel="relative variance")
        axis.set(xlim=(0.5, 5), ylim=(1e-3, 1.5))
        axis.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=7, loc="outside right center")
    figure.savefig(file, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--numel", type=int, default=1 << 22)
    parser.add_argument("--data", default="gaussian,student,gradients")
    parser.add_argument("--gradients", type=Path, help="file made by benchmarks/inputs.py")
    parser.add_argument("--out", type=Path, default=Path("runs/rate"))
    parser.add_argument("--per-layer", action="store_true", help="a table for every layer too")
    parser.add_argument("--tables", action="store_true", help="other choices of code tables")
    args = parser.parse_args()
    if args.tables:
        for data in args.data.split(","):
            print(data)
            table_choices(inputs.load(data, args.numel, args.gradients))
        return
    results = {}
    for data in args.data.split(","):
        layers = inputs.load(data, args.numel, args.gradients)
        results[data] = curves(layers)
        table(data, results[data])
        if args.per_layer and len(layers) > 1:
            for i, layer in enumerate(layers):
                table(f"{data}, layer {i} of {len(layer)}", curves([layer]))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "rate.json").write_text(json.dumps(results, indent=1))
    plot(results, args.out / "rate.png")


if __name__ == "__main__":
    main()

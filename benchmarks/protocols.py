"""Rates of the coding protocols side by side (docs/theory.md section 4), through real payloads.

    python benchmarks/protocols.py [--numel 3068800] [--bits 2 3 4]

Layers are those of the demo's WGAN-GP (benchmarks/inputs.py), one after the other from generator to
critic, with a type each. Bits per coordinate, everything included:

    main         a table for each type: what coding="main" does with types="layer"
    one table    one for all types: what coding="alternating" does
    pairs        one for pairs of type and symbol, the paper's alternating protocol, whose code
                 words name the type that the decoder knows anyway: main + H(type)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import inputs  # noqa: E402
from horovod_qoda.coding import (  # noqa: E402
    SEGMENT,
    Header,
    copy_stats,
    encode,
    entropy,
    max_payload_bytes,
)
from horovod_qoda.quantization import step_factor, step_size  # noqa: E402
from horovod_qoda.quantization.adaptive import count_for_rate, fit_levels  # noqa: E402
from horovod_qoda.quantization.families import level_sequence  # noqa: E402
from horovod_qoda.quantization.histogram import normalised_histograms  # noqa: E402

BUCKET = 1024
QUANTIZERS = ("one stream", "one step for all", "uniform", "adaptive")


def segments_of(layers: list[np.ndarray], quantizer: str, bits: float) -> tuple[np.ndarray, list]:
    """Rows of all layers, a type each, and their level sequences."""
    rows = np.zeros(len(layers), SEGMENT)
    rows["numel"] = [len(v) for v in layers]
    rows["offset"] = np.cumsum([0, *(len(v) for v in layers[:-1])])
    rows["layer"] = rows["type"] = np.arange(len(layers))
    squares = np.array([copy_stats(v)[0] for v in layers])
    if quantizer in ("one stream", "one step for all"):
        rows["quantizer"] = 1
        whole = step_size(step_factor(bits), squares.sum(), int(rows["numel"].sum()))
        for row, square in zip(rows, squares, strict=True):
            own = step_size(step_factor(bits), square, int(row["numel"]))
            row["step"] = own if quantizer == "one stream" else whole
        return rows, []
    rows["quantizer"], rows["bucket"], rows["levels"] = 2, BUCKET, np.arange(len(layers))
    levels = []
    for v in layers:
        levels.append(level_sequence("uniform", bits, BUCKET, "linf"))
        if quantizer == "adaptive":
            counts, weighted = normalised_histograms(v, BUCKET, "linf")
            levels[-1] = fit_levels(weighted, count_for_rate(counts, weighted, bits, BUCKET))
    return rows, levels


def measure(layers: list[np.ndarray], quantizer: str, bits: float) -> dict[str, float]:
    values = np.concatenate(layers)
    rows, levels = segments_of(layers, quantizer, bits)
    out = np.empty(max_payload_bytes(rows), np.uint8)
    symbols = np.zeros((len(layers), 256), np.int64)
    head = Header(1, 0, 0, 0, 0, 42)
    main = encode(values, rows, head, out, levels=levels, histogram=symbols)
    rows["type"] = 0
    one = encode(values, rows, head, out, levels=levels)
    return {
        "main": 8 * main / values.size,
        "one table": 8 * one / values.size,
        "pairs": 8 * main / values.size + entropy(symbols.sum(axis=1)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numel", type=int, default=3_068_800)
    parser.add_argument("--bits", type=float, nargs="+", default=[2.0, 3.0, 4.0])
    parser.add_argument("--data", default="gradients", help="see benchmarks/inputs.py")
    args = parser.parse_args()
    layers = [v for v in inputs.load(args.data, args.numel) if len(v) >= BUCKET]
    print(f"{len(layers)} types, {sum(map(len, layers)):,} coordinates")
    print("| quantiser | asked for | main | one table | pairs |\n|---|---|---|---|---|")
    for quantizer in QUANTIZERS:
        for bits in args.bits:
            got = measure(layers, quantizer, bits)
            print(
                f"| {quantizer} | {bits:g} | " + " | ".join(f"{x:.3f}" for x in got.values()), "|"
            )


if __name__ == "__main__":
    main()

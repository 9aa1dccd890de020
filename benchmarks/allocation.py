"""What L-GreCo saves on the gradients of the demo's WGAN-GP, by estimates on samples.

    python benchmarks/allocation.py [--bits 3]

For each quantiser and kind of error: mean bits per coordinate of equal bits and of L-GreCo's choice
within the same error, the ratio, the total squared error over that of equal bits, the largest
growth of a layer's own error, and the bits chosen for each layer. "one step" is the one-stream
quantiser with a single step for the model at the same total error, which no choice of steps can
beat under plain squared error at high rates (docs/theory.md section 8).
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import inputs  # noqa: E402
from horovod_qoda.exchange import options  # noqa: E402
from horovod_qoda.exchange.observations import (  # noqa: E402
    rounding_variance,
    sample,
    symbol_entropy,
)
from horovod_qoda.layout import build  # noqa: E402
from horovod_qoda.quantization import step_factor  # noqa: E402
from horovod_qoda.settings import ALLOCATION_ERRORS, Settings  # noqa: E402

COORDINATES = 64 * 1024  # of a layer that rates and errors are estimated on


def one_step(layers: list[np.ndarray], error: float) -> float:
    """Mean bits of rounding with one step for all layers whose total squared error is ``error``."""
    numel = np.array([v.size for v in layers], np.float64)
    parts = [sample(v, COORDINATES).astype(np.float64) for v in layers]

    def at(step: float) -> tuple[float, float]:
        bits = [symbol_entropy(v / step) for v in parts]
        wrong = [step**2 * min(1 / 12, rounding_variance(v / step) / v.size) for v in parts]
        return float(numel @ bits / numel.sum()), float(numel @ wrong)

    low, high = 1e-9, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if at(middle)[1] > error else (middle, high)
    return at(low)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=float, default=3.0)
    args = parser.parse_args()
    layers = [v for v in inputs.load("gradients", 3_068_800) if v.size >= 1024]
    numel = np.array([v.size for v in layers], np.float64)
    squares = np.array([float(np.mean(v.astype(np.float64) ** 2)) for v in layers])
    print("| quantiser | error | equal bits | L-GreCo | ratio | total error | worst layer | bits |")
    print("|---|---|---|---|---|---|---|---|")
    for quantizer in ("auto", "uniform", "adaptive"):
        wanted = Settings(bits=args.bits, quantizer=quantizer, allocation="lgreco")
        layout = build([(f"{i}", (v.size, 1), "f") for i, v in enumerate(layers)], wanted)
        factor = step_factor(args.bits)
        points = []
        for v, square, layer in zip(layers, squares, layout.layers, strict=True):
            kind = layout.types[layer.type]
            part = v[: v.size // 1024 * 1024].reshape(-1, 1024)
            part = part[:: max(1, part.size // COORDINATES)].reshape(1, -1)
            points.append(options.measure(part, np.array([math.sqrt(square)]), kind, factor))
        own = options.options(layout.types[0]).index(args.bits)
        rates, errors = np.array(points).transpose(2, 0, 1)
        for error in ALLOCATION_ERRORS:
            settings = Settings(
                bits=args.bits, quantizer=quantizer, allocation="lgreco", allocation_error=error
            )
            bits, _ = options.choose(layout, settings, rates, errors, squares)
            chosen = [options.options(layout.types[0]).index(b) for b in bits]
            pick = (np.arange(len(layers)), chosen)
            equal, less = (float(numel @ x / numel.sum()) for x in (rates[:, own], rates[pick]))
            growth = float(numel @ errors[pick] / (numel @ errors[:, own]))
            worst = float(np.max(errors[pick] / errors[:, own]))
            print(
                f"| {quantizer} | {error} | {equal:.2f} | {less:.2f} | {equal / less:.2f} "
                f"| {growth:.2f} | {worst:.1f} | {', '.join(f'{b:g}' for b in bits)} |"
            )
        if quantizer == "auto":
            alone = one_step(layers, float(numel @ errors[:, own]))
            equal = float(numel @ rates[:, own] / numel.sum())
            print(
                f"| auto | one step | {equal:.2f} | {alone:.2f} | {equal / alone:.2f} | 1.00 | | |"
            )
    print("coordinates:", ", ".join(f"{int(n):,}" for n in numel))
    print("RMS:", ", ".join(f"{math.sqrt(s):.3g}" for s in squares))


if __name__ == "__main__":
    main()

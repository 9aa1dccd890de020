"""Relative variance of level quantizers and of the one-stream quantizer at equal coded bits.

Rates are entropies of the symbols (plus signs and norms), variances are exact formulas, so nothing
here depends on a coder or on the native code. Prints a table; ``--json FILE`` writes it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable

import numpy as np

from horovod_qoda import theory
from horovod_qoda.quantization.adaptive import fit_levels
from horovod_qoda.quantization.histogram import normalised_histograms

COORDINATES = 1 << 19
BUCKET = 512
LEVELS = 8


def vectors(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Test vectors of COORDINATES float64 each."""
    shape = (COORDINATES // BUCKET, BUCKET)
    scales = np.exp(rng.standard_normal((shape[0], 1)))
    return {
        "Gaussian": rng.standard_normal(COORDINATES),
        "Laplace": rng.laplace(size=COORDINATES),
        "Gaussian, log-normal bucket scales": (rng.standard_normal(shape) * scales).ravel(),
        "Gaussian, 90 % zeros": rng.standard_normal(COORDINATES) * (rng.random(COORDINATES) < 0.1),
    }


def uniform_levels(v: np.ndarray) -> np.ndarray:
    return np.linspace(0.0, 1.0, LEVELS)


def exponential_levels(v: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], 0.5 ** np.arange(LEVELS - 2, -1, -1)])


def adaptive_levels(v: np.ndarray) -> np.ndarray:
    """Those of docs/theory.md §3, fitted as the exchange fits them."""
    _, weighted = normalised_histograms(v.astype(np.float32), BUCKET, "linf")
    return fit_levels(weighted, LEVELS - 2)


def level_point(v: np.ndarray, levels: np.ndarray) -> tuple[float, float]:
    """Bits per coordinate and relative variance of stochastic rounding to `levels`."""
    _, r = _normalise(v)
    p = theory.symbol_probabilities(r, levels)
    bits = theory.length_lower_bound([v.size], [p], v.size // BUCKET) / v.size
    variance = sum(theory.level_variance(bucket, levels) for bucket in v.reshape(-1, BUCKET))
    return bits, variance / float(v @ v)


def stream_point(v: np.ndarray, c: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Bits, and relative variances (dithered, rounded), of one stream at step c · RMS(v)."""
    step = c * math.sqrt(float(v @ v) / v.size)
    symbols = np.floor(v / step + rng.random(v.size)).astype(np.int64)
    _, counts = np.unique(symbols, return_counts=True)
    rounded = theory.rounded_variance(v, step) / float(v @ v)
    return theory.entropy(counts / v.size), theory.dithered_relative_variance(c), rounded


def stream_at(v: np.ndarray, bits: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """`stream_point` at the step whose rate is `bits`, by bisection."""
    low, high = 1e-3, 100.0
    for _ in range(30):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if stream_point(v, middle, rng)[0] > bits else (low, middle)
    return stream_point(v, high, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file to write the rows to")
    args = parser.parse_args()
    families: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "uniform": uniform_levels,
        "adaptive": adaptive_levels,
        "exponential ½": exponential_levels,
    }
    rows = []
    print("| data | levels | bits | levels' variance | dithered | rounded |")
    print("|---|---|---|---|---|---|")
    rng = np.random.default_rng(args.seed)
    for data, v in vectors(rng).items():
        for family, make in families.items():
            bits, variance = level_point(v, make(v))
            _, dithered, rounded = stream_at(v, bits, rng)
            rows.append(
                {
                    "data": data,
                    "levels": family,
                    "bits": bits,
                    "variance": variance,
                    "dithered": dithered,
                    "rounded": rounded,
                }
            )
            print(
                f"| {data} | {family} | {bits:.2f} | {variance:.4f} | {dithered:.4f} "
                f"| {rounded:.4f} |",
                flush=True,
            )
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"seed": args.seed, "rows": rows}, file, indent=1)


def _normalise(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """L∞ norms of the buckets, and all |v|/norm in one array."""
    buckets = np.abs(v.reshape(-1, BUCKET))
    norms = buckets.max(1)
    return norms, (buckets / np.where(norms > 0, norms, 1.0)[:, None]).ravel()


if __name__ == "__main__":
    main()

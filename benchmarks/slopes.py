"""Slopes of QODA's gap over exchanges and over nodes, on the bilinear game of _games.py.

    python benchmarks/slopes.py [--exchanges 20000]

Prints the table of docs/theory.md section 6: for each kind of noise and variant, with quantisation
and without, the slope of the gap over exchanges from a thirtieth of them on, and the last gap; then
the slope over 1 to 16 nodes under absolute noise. All in one process, a minute in all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._games import BilinearGame, absolute, noiseless, play, relative, slope  # noqa: E402

NOISES = {
    "none": noiseless,
    "relative, σ_R = ½": relative(0.5),
    "absolute, σ = ½": absolute(0.5),
}
VARIANTS = ("coupled", "separated")
NODES, NODES_EXCHANGES, NODES_SEEDS = (1, 2, 4, 8, 16), 1000, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--exchanges", type=int, default=20_000)
    args = parser.parse_args()
    game = BilinearGame()
    marks = [round(args.exchanges * 30 ** (k / 15 - 1)) for k in range(16)]
    columns = [(variant, quantized) for variant in VARIANTS for quantized in (False, True)]
    heads = [variant + (", quantised" if quantized else "") for variant, quantized in columns]
    print(f"| noise | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for name, noise in NOISES.items():
        cells = []
        for variant, quantized in columns:
            gaps = play(game, variant, noise, marks, quantized=quantized)
            cells.append(f"{slope(marks, gaps):.2f} / {gaps[-1]:.1e}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for variant in VARIANTS:
        ends = [
            np.mean([
                play(game, variant, absolute(1.0), [NODES_EXCHANGES], nodes=nodes, seed=seed)[-1]
                for seed in range(NODES_SEEDS)
            ])
            for nodes in NODES
        ]  # fmt: skip
        print(f"over {NODES[0]} to {NODES[-1]} nodes, {variant}: {slope(NODES, ends):.2f}")


if __name__ == "__main__":
    main()

"""Which kind of layer suffers most? One kind quantised at a time, everything else as float32.

    .venv/bin/python benchmarks/ablation.py                          # needs no other benchmark
    .venv/bin/python benchmarks/ablation.py --bits 2 --seeds 0

Trains examples/transformer_xl.py as benchmarks/comparison.py does and shares its results file, so
the runs without compression are made once. Prints a table and writes a plot.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)
from _runs import ROOT, Run, complete, rows_of, summarize  # noqa: E402
from comparison import COMMON, CONFIGS, STEPS, plus_minus  # noqa: E402

EXAMPLE = "transformer_xl"

KINDS = {
    "embedding": "type:embedding",
    "attention": "type:attention",
    "feed-forward": "type:feed_forward",
    "softmax": "softmax.*",
    "all": "*.weight",
}


def name_of(kind: str, bits: float) -> str:
    return f"only {kind}, {bits:g} bits"


def wanted(kinds: list[str], all_bits: list[float], seeds: list[int], ranks: int) -> list[Run]:
    configs = {"fp32": CONFIGS["fp32"]}
    for kind in kinds:
        for bits in all_bits:
            # Later rules override earlier ones.
            rules = ("--rule", "*=raw", "--rule", f"{KINDS[kind]}={bits:g}")
            configs[name_of(kind, bits)] = rules
    return [
        Run(EXAMPLE, name, seed, STEPS[EXAMPLE], ranks, flags, COMMON[EXAMPLE])
        for seed in seeds
        for name, flags in configs.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--bits", type=float, nargs="+", default=[2.0, 3.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--np", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "comparison.jsonl")
    parser.add_argument("--plot", type=Path, default=ROOT / "runs" / "ablation.png")
    parser.add_argument("--limit", type=float, default=900, help="seconds a run may take")
    parser.add_argument("--table", action="store_true", help="no new runs: show what is there")
    args = parser.parse_args()

    runs = wanted(args.kinds, args.bits, args.seeds, args.np)
    there = [row["key"] for row in rows_of(args.out)]
    rows = complete(args.out, [r for r in runs if r.key in there or not args.table], args.limit)
    totals = summarize(rows, EXAMPLE, "fp32")
    print(table(totals, args.kinds, args.bits))
    plot(args.plot, totals, args.kinds, args.bits)
    print(f"written: {args.plot}")
    for run in runs:
        if run.key not in [row["key"] for row in rows]:
            print(f"missing: {run.config}, seed {run.seed}")
    return 0


def table(totals: dict[str, Any], kinds: list[str], all_bits: list[float]) -> str:
    lines = [
        f"{EXAMPLE}, {STEPS[EXAMPLE]} steps: final loss minus that without compression",
        "| quantised | " + " | ".join(f"{bits:g} bits" for bits in all_bits) + " | seeds |",
        "|---|" + "---|" * (len(all_bits) + 1),
    ]
    for kind in kinds:
        of = [totals.get(name_of(kind, bits)) for bits in all_bits]
        cells = ["-" if x is None else plus_minus(x["difference"]) for x in of]
        seeds = "/".join("0" if x is None else str(x["seeds"]) for x in of)
        lines.append(f"| {kind} | " + " | ".join(cells) + f" | {seeds} |")
    return "\n".join(lines)


def plot(path: Path, totals: dict[str, Any], kinds: list[str], all_bits: list[float]) -> None:
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    width = 0.8 / len(all_bits)
    for number, bits in enumerate(all_bits):
        found = [totals.get(name_of(kind, bits)) for kind in kinds]
        at = [i + (number - (len(all_bits) - 1) / 2) * width for i in range(len(kinds))]
        means = [float("nan") if x is None else x["difference"][0] for x in found]
        deviations = [float("nan") if x is None else x["difference"][1] for x in found]
        axis.bar(at, means, width, yerr=deviations, capsize=3, label=f"{bits:g} bits")
    axis.axhline(0, color="0.4", lw=1)
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set(ylabel="final loss minus float32's, nats", xlabel="kind of layer that is quantised")
    axis.set_title(f"one kind at a time, {STEPS[EXAMPLE]} steps")
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())

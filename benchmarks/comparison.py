"""Compressors side by side on the examples: compression ratio and final loss over seeds.

    .venv/bin/python benchmarks/comparison.py                       # all of it: an hour on 2 cores
    .venv/bin/python benchmarks/comparison.py --only fp32 fp16 --seeds 0

Runs that are in the results file are not repeated; what is missing is listed. A seed sets weights,
batches and the compressor's random numbers; the held-out data are the same in all runs.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from _runs import ROOT, Run, complete, rows_of, summarize

LEVELS = ("--bits", "4", "--levels", "6", "--bucket-size", "1024", "--norm", "linf")
"""Four bits of fixed-length code: a sign and 8 magnitudes, of which 6 lie between 0 and 1."""

CONFIGS: dict[str, tuple[str, ...]] = {
    "fp32": ("--compression", "none"),
    "fp16": ("--compression", "fp16"),
    "global uniform": ("--quantizer", "uniform", "--types", "global", *LEVELS),
    "global adaptive": ("--quantizer", "adaptive", "--types", "global", *LEVELS),
    "layer-wise adaptive": ("--quantizer", "adaptive", *LEVELS),
    "layer-wise adaptive, L-GreCo": (
        "--quantizer", "adaptive", "--bits", "4", "--allocation", "lgreco",
    ),
    "layer-wise adaptive, L-GreCo, relative": (
        "--quantizer", "adaptive", "--bits", "4", "--allocation", "lgreco",
        "--allocation-error", "relative",
    ),
    "default (auto, 3 bits)": (),
    "auto, 3 bits, L-GreCo": ("--allocation", "lgreco"),
    "auto, 1.5 bits": ("--bits", "1.5"),
    "auto, 1.5 bits, L-GreCo": ("--bits", "1.5", "--allocation", "lgreco"),
    "auto, 1.25 bits, L-GreCo": ("--bits", "1.25", "--allocation", "lgreco"),
    "auto, 1 bit": ("--bits", "1"),
    "auto, 1 bit, L-GreCo": ("--bits", "1", "--allocation", "lgreco"),
    "dithered, 3 bits": ("--quantizer", "dithered"),
    "PowerSGD, rank 4": ("--quantizer", "powersgd", "--low-rank", "4"),
    "PowerSGD, rank 8": ("--quantizer", "powersgd", "--low-rank", "8"),
    "PowerSGD, L-GreCo ranks": (
        "--quantizer", "powersgd", "--low-rank", "8", "--allocation", "lgreco",
    ),
    "PowerSGD, L-GreCo ranks from 16": (
        "--quantizer", "powersgd", "--low-rank", "16", "--allocation", "lgreco",
    ),
    "PowerSGD, L-GreCo ranks, relative": (
        "--quantizer", "powersgd", "--low-rank", "8", "--allocation", "lgreco",
        "--allocation-error", "relative",
    ),
}  # fmt: skip

WGAN = ("fp32", "fp16", "global uniform", "default (auto, 3 bits)")

PAIRS = (
    ("auto, 1.5 bits", "global adaptive"),
    ("auto, 1.5 bits, L-GreCo", "global adaptive"),
    ("auto, 1.5 bits, L-GreCo", "global uniform"),
    ("auto, 1.25 bits, L-GreCo", "global adaptive"),
    ("auto, 1.25 bits, L-GreCo", "global uniform"),
    ("auto, 1 bit, L-GreCo", "global uniform"),
    ("auto, 1 bit", "global adaptive"),
    ("auto, 1 bit", "global uniform"),
    ("layer-wise adaptive, L-GreCo", "global adaptive"),
    ("layer-wise adaptive, L-GreCo", "global uniform"),
    ("layer-wise adaptive, L-GreCo, relative", "global adaptive"),
    ("layer-wise adaptive, L-GreCo, relative", "global uniform"),
    ("PowerSGD, L-GreCo ranks", "PowerSGD, rank 4"),
    ("PowerSGD, L-GreCo ranks", "PowerSGD, rank 8"),
    ("PowerSGD, L-GreCo ranks from 16", "PowerSGD, rank 8"),
    ("PowerSGD, L-GreCo ranks, relative", "PowerSGD, rank 8"),
)
"""Layer-wise with L-GreCo against its global counterpart."""

COMMON = {
    "transformer_xl": ("--eval-every", "1000000", "--eval-symbols", "16384", "--megabytes", "1"),
    "wgan": ("--eval-every", "1000000", "--data", "digits"),
}
STEPS = {"transformer_xl": 120, "wgan": 300}
"""Enough to see a difference, few enough for a minute a run on two cores."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--np", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of configurations, in full")
    parser.add_argument("--examples", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "comparison.jsonl")
    parser.add_argument("--limit", type=float, default=900, help="seconds a run may take")
    parser.add_argument("--table", action="store_true", help="no new runs: print what is there")
    args = parser.parse_args()
    unknown = set(args.only or ()) - set(CONFIGS)
    if unknown:
        parser.error(f"--only {sorted(unknown)}: known are {list(CONFIGS)}")

    wanted = [
        Run(example, name, seed, STEPS[example], args.np, flags, COMMON[example])
        for example in args.examples
        for name, flags in CONFIGS.items()
        if example != "wgan" or name in WGAN
        for seed in args.seeds
    ]
    chosen = [r for r in wanted if not args.only or r.config in args.only]
    if not args.table:
        complete(args.out, sorted(chosen, key=lambda r: (r.example, r.seed)), args.limit)
    rows = complete(args.out, [r for r in wanted if r.key in keys(args.out)], 0)
    for example in args.examples:
        print(table(rows, example))
    missing = [r for r in wanted if r.key not in keys(args.out)]
    for run in missing:
        print(f"missing: {run.example} {run.config}, seed {run.seed}")
    return 0


def keys(path: Path) -> list[list[object]]:
    return [row["key"] for row in rows_of(path)]


def table(rows: list[dict[str, object]], example: str) -> str:
    totals = summarize(rows, example, "fp32")
    lines = [
        f"\n{example}, {STEPS[example]} steps",
        "| configuration | seeds | ratio | second half | payloads | final loss | minus fp32 |",
        "|---|---|---|---|---|---|---|",
    ]
    for config in (c for c in CONFIGS if c in totals):
        of = totals[config]
        loss, change = (plus_minus(of[name]) for name in ("loss", "difference"))
        ratios = [f"{of[x][0]:.2f}" for x in ("ratio", "late_ratio", "late_payload_ratio")]
        cells = [config, str(of["seeds"]), *ratios, loss, change]
        lines.append(f"| {' | '.join(cells)} |")
    for ours, theirs in PAIRS:
        if ours in totals and theirs in totals:
            gain = totals[ours]["late_payload_ratio"][0] / totals[theirs]["late_payload_ratio"][0]
            above = [totals[name]["difference"][0] for name in (ours, theirs)]
            lines.append(
                f"{ours} against {theirs}: payloads {gain:.2f}x smaller, "
                f"loss {above[0]:+.4f} against {above[1]:+.4f} above fp32"
            )
    return "\n".join(lines)


def plus_minus(value: tuple[float, float]) -> str:
    mean, deviation = value
    return f"{mean:.4f}" + ("" if math.isnan(deviation) else f" ± {deviation:.4f}")


if __name__ == "__main__":
    raise SystemExit(main())

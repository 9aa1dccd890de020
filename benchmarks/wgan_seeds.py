"""Does compression change what a WGAN-GP learns? The demo's two runs, over several seeds.

    .venv/bin/python benchmarks/wgan_seeds.py --seeds 0 1 2 --np 4 --steps 1000

A seed sets the initial weights, the batches, the noise, and the compressor's random numbers; the
held-out images, the noise of the evaluation and the directions of the metric are the same in all.
Prints one line a run and the differences, and writes a JSON file. Runs that are there already, with
as many steps, are read instead of repeated.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from horovod_qoda.monitor import read_lines

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ("distance", "distance_average")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--np", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--optimizer", default="qoda")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "seeds")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path, default=ROOT / "runs" / "wgan_seeds.json")
    args, more = parser.parse_known_args()

    runs = []
    for seed in args.seeds:
        name = f"{args.optimizer}-{args.np}-{seed}"
        if not finished(args.runs / f"{name}-none", args.steps):
            train(args, name, seed, more)
        for compression, folder in (("layerwise", name), ("none", f"{name}-none")):
            runs.append({"seed": seed, "compression": compression, **read(args.runs / folder)})

    result = {
        "command": ["benchmarks/wgan_seeds.py", *sys.argv[1:]],
        "machine": platform.machine(),
        "ranks": args.np,
        "steps": args.steps,
        "optimizer": args.optimizer,
        "runs": runs,
        "summary": summary(runs),
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=2) + "\n")
    show(runs, result["summary"])
    print(f"\nwritten: {args.json}")
    return 0


def train(args: argparse.Namespace, name: str, seed: int, more: list[str]) -> None:
    flags: list[object] = ["--np", args.np, "--steps", args.steps, "--name", name]
    flags += ["--runs", args.runs, "--optimizer", args.optimizer]
    flags += ["--model-seed", seed, "--seed", seed, *more]
    flags += [] if args.data is None else ["--data", args.data]
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), *map(str, flags)]
    subprocess.run(command, check=True)


def finished(folder: Path, steps: int) -> bool:
    lines = read_lines(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
    return bool(lines) and lines[-1]["event"] == "summary" and lines[-1]["step"] == steps


def read(folder: Path) -> dict[str, Any]:
    """What one run reached, from the lines of its monitor."""
    lines = read_lines(folder / "metrics.jsonl")
    evaluations = [line for line in lines if line["event"] == "eval"]
    sizes = ("raw_bytes", "wire_bytes", "ratio", "coded_bits", "entropy_bits", "hidden", "per_step")
    return {
        "data": lines[0]["data"],
        "start": evaluations[0]["distance"],
        "floor": evaluations[0]["floor"],
        **{name: evaluations[-1][name] for name in RESULTS},
        "curve": [[line["step"], *(line[name] for name in RESULTS)] for line in evaluations],
        **{name: lines[-1][name] for name in sizes},
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over seeds of each compression, and of the difference within a seed."""
    out: dict[str, Any] = {}
    for name in RESULTS:
        if any(run[name] is None for run in runs):
            continue
        ours, theirs = (
            [run[name] for run in runs if run["compression"] == compression]
            for compression in ("layerwise", "none")
        )
        out[name] = {
            "layerwise": _spread(ours),
            "none": _spread(theirs),
            "difference": _spread([a - b for a, b in zip(ours, theirs, strict=True)]),
            "worst_share_of_start": max(run[name] / run["start"] for run in runs),
        }
    return out


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def show(runs: list[dict[str, Any]], totals: dict[str, Any]) -> None:
    print(f"\n{'seed':>4} {'compression':>12} {'start':>8} {'last':>8} {'average':>8} {'ratio':>7}")
    for run in runs:
        average = "-" if run["distance_average"] is None else f"{run['distance_average']:.4f}"
        print(
            f"{run['seed']:>4} {run['compression']:>12} {run['start']:>8.4f} "
            f"{run['distance']:>8.4f} {average:>8} {run['ratio']:>7.2f}"
        )
    for name, of in totals.items():
        print(f"\n{name}: mean ± standard deviation over seeds")
        for which in ("layerwise", "none", "difference"):
            print(f"  {which:12} {of[which]['mean']:+.4f} ± {of[which]['deviation']:.4f}")
        print(f"  largest share of the start that is left: {of['worst_share_of_start']:.3f}")


if __name__ == "__main__":
    raise SystemExit(main())

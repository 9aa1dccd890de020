"""Steps of whole jobs on emulated hosts: Horovod, PyTorch's DDP hooks and this package.

    sudo python benchmarks/end_to_end.py end_to_end.json                 the full grid, an hour
    sudo python benchmarks/end_to_end.py x.json --workloads exchange-16 --rates 1gbit --steps 5
    sudo python benchmarks/end_to_end.py two.json --hosts 2 --ranks-per-host 2 --methods \\
        horovod-fp32 ours-allgather ours-scatter_reduce ours-two_level
    python benchmarks/end_to_end.py end_to_end.json --plot docs          table and plots of it

Workloads: gradients of 1, 16 and 64 MB alone, the demo's WGAN-GP, a plain transformer. Methods:
Horovod in float32 and float16, DDP over gloo with the float16 and PowerSGD hooks (rank 4), ours at
3 bits by all-gather, by scatter-reduce, by two levels, and "measured", which times 13 steps of its
warm-up with compression and without and stays with the faster. Each combination is a job of its
own, and what is in the file already is not run again: the grid can be stopped and resumed. Jobs
with the same workload and rate follow each other, so that a busy hour hits all methods alike; the
load is noted with each.

Bytes are read from the interfaces of the emulated hosts, less what they send in as long a time idle
(``idle_bytes`` in the file: Horovod's ranks ask each other for work, less often while they send);
"counted" is what was handed over for other ranks, without headers, which are 66 bytes in some 24 KB
because interfaces count what TCP gives them in one piece (docs/scaling.md).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

WORKLOADS = ("exchange-1", "exchange-16", "exchange-64", "wgan", "transformer")
METHODS = ("horovod-fp32", "horovod-fp16", "ddp-fp16", "ddp-powersgd", "ours-allgather",
           "ours-scatter_reduce", "ours-measured")  # fmt: skip
ON_DEMAND = ("ours-two_level",)
"""Needs hosts with several ranks."""
RATES = ("100mbit", "1gbit", "unlimited")
KEY = ("rate", "workload", "method", "seed")

# What the project aims at, at 1 Gbit/s and on unlimited links: workload, rate, rival, least gain.
TARGETS = (
    ("exchange-16", "1gbit", "horovod-fp32", 5.0),
    ("exchange-16", "1gbit", "horovod-fp16", 2.5),
    ("wgan", "1gbit", "horovod-fp32", 2.5),
    ("transformer", "1gbit", "horovod-fp32", 1.5),
    ("exchange-16", "unlimited", "horovod-fp32", 1 / 1.1),
)

Row = dict[str, Any]


def pieces(args: argparse.Namespace) -> Iterator[tuple[str, str, str, int]]:
    """Everything that was asked for, methods innermost."""
    for rate in args.rates:
        for workload in args.workloads:
            for seed in args.seeds:
                for method in args.methods:
                    yield rate, workload, method, seed


def run(piece: tuple[str, str, str, int], hosts: int, each: int, steps: int, timeout: float) -> Row:
    """A row of one job of ``each`` ranks a host, with ``failed`` where the job did not end well."""
    from launch import emulate

    rate, workload, method, seed = piece
    limit = None if rate == "unlimited" else rate
    row: Row = {"rate": rate, "workload": workload, "method": method, "seed": seed, "hosts": hosts}
    with tempfile.TemporaryDirectory() as folder, emulate.cluster(hosts, limit) as cluster:
        out = Path(folder) / "row.json"
        argv = ["python", str(ROOT / "benchmarks" / "_end_to_end_rank.py"), workload, method,
                "--steps", str(steps), "--seed", str(seed), "--out", str(out)]  # fmt: skip
        try:
            status = emulate.execute(
                emulate.command(cluster, each, argv, Path(folder) / "agent"), timeout
            )
        except subprocess.TimeoutExpired:
            return {**row, "failed": f"ran past {timeout:.0f} s"}
        if status or not out.exists():
            return {**row, "failed": f"ended with {status}"}
        return {**json.loads(out.read_text()), **row}


def table(rows: list[Row]) -> str:
    lines = [f"{'link':>10} {'workload':>12} {'method':>20} {'step, ms':>9} {'quartiles':>17} "
             f"{'x fp32':>7} {'MB sent':>8} {'counted':>8} {'quality':>8}"]  # fmt: skip
    for row in rows:
        head = f"{row['rate']:>10} {row['workload']:>12} {row['method']:>20}"
        if "failed" in row:
            lines.append(f"{head} {row['failed']}")
            continue
        gain = _gain(rows, row["workload"], row["rate"], row["method"], "horovod-fp32")
        spread = f"{1e3 * row['low']:.1f}..{1e3 * row['high']:.1f}"
        counted = row["counted_bytes"]
        lines.append(
            f"{head} {1e3 * row['seconds']:>9.1f} {spread:>17} {gain:>7.2f} "
            f"{row['interface_bytes'] / 1e6:>8.3f} "
            f"{'-' if counted is None else f'{counted / 1e6:.3f}':>8} {row['quality']:>8.3f}"
        )
    for workload, rate, rival, least in TARGETS:
        best = max(
            (_gain(rows, workload, rate, m, rival) for m in _methods(rows) if "ours" in m),
            default=math.nan,
        )
        if not math.isnan(best):
            lines.append(
                f"target: {workload} at {rate} over {rival}: {best:.2f}, wanted {least:.2f}"
            )
    for rate in RATES:
        exchange = max(
            (
                _gain(rows, "exchange-16", rate, m, "horovod-fp32")
                for m in _methods(rows)
                if "ours" in m
            ),
            default=math.nan,
        )
        bounds = [f"{gain:g}x up to {most_compute(exchange, gain):.2f}" for gain in (2.5, 1.5, 1.1)
                  if exchange > gain]  # fmt: skip
        if bounds:
            lines.append(
                f"{rate}: exchange and Adam's update gain {exchange:.2f}x, so a step gains "
                + ", ".join(bounds) + " of compute to float32 communication"
            )  # fmt: skip
    return "\n".join(lines)


def most_compute(exchange: float, gain: float) -> float:
    """Compute over float32's communication up to which a step gains ``gain`` times.

    With compute C that hides nothing, (C + T) / (C + T / exchange) >= gain.
    """
    return (1 - gain / exchange) / (gain - 1)


def _methods(rows: list[Row]) -> list[str]:
    """Those that occur, in the order of the table."""
    there = {row["method"] for row in rows}
    return [method for method in (*METHODS, *ON_DEMAND) if method in there]


def _gain(rows: list[Row], workload: str, rate: str, method: str, rival: str) -> float:
    """Mean over seeds of the rival's step time over the method's; nan where one is missing."""
    ratios = []
    for row in rows:
        if (row["workload"], row["rate"], row["method"]) != (workload, rate, method):
            continue
        for other in rows:
            same = all(other[k] == row[k] for k in ("workload", "rate", "seed"))
            if same and other["method"] == rival and "failed" not in other and "failed" not in row:
                ratios.append(other["seconds"] / row["seconds"])
    return sum(ratios) / len(ratios) if ratios else math.nan


def plot(rows: list[Row], folder: Path) -> None:
    """Writes end-to-end-steps.png and end-to-end-bytes.png: bars by workload and rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    good = [row for row in rows if "failed" not in row]
    for name, figure_of, label in (
        ("steps", lambda r: 1e3 * r["seconds"], "ms of a step (median)"),
        ("bytes", lambda r: r["interface_bytes"] / 1e6, "MB sent by a host in a step"),
    ):
        rates = [rate for rate in RATES if any(r["rate"] == rate for r in good)]
        if not rates:
            return
        figure, axes = plt.subplots(
            1, len(rates), figsize=(5 * len(rates), 4), squeeze=False, layout="constrained"
        )
        for axis, rate in zip(axes[0], rates, strict=True):
            here = [r for r in good if r["rate"] == rate and r["seed"] == good[0]["seed"]]
            shown = [w for w in WORKLOADS if any(r["workload"] == w for r in here)]
            for number, method in enumerate(_methods(rows)):
                own = {r["workload"]: figure_of(r) for r in here if r["method"] == method}
                at = [shown.index(w) + 0.12 * (number - 3) for w in own]
                axis.bar(at, list(own.values()), 0.12, label=method, color=f"C{number}")
            axis.set_xticks(range(len(shown)), shown, rotation=20)
            axis.set(title=rate, yscale="log")
            axis.grid(alpha=0.3, axis="y")
        axes[0, 0].set_ylabel(label)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
        figure.savefig(folder / f"end-to-end-{name}.png", dpi=110)
        plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="results, JSON; resumed where it exists")
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--ranks-per-host", type=int, default=1)
    parser.add_argument("--rates", nargs="+", default=list(RATES))
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS),
                        choices=METHODS + ON_DEMAND)  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--timeout", type=float, default=900, help="seconds a job")
    parser.add_argument("--again", action="store_true", help="repeat what failed before")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="plot, and run nothing")
    args = parser.parse_args()
    rows: list[Row] = json.loads(args.file.read_text()) if args.file.exists() else []
    if args.plot is not None:
        plot(rows, args.plot)
        print(table(rows))
        return 0
    if args.again:
        rows = [row for row in rows if "failed" not in row]
    done = {tuple(row[k] for k in KEY) for row in rows}
    wanted = [piece for piece in pieces(args) if piece not in done]
    for number, piece in enumerate(wanted):
        print(f"{number + 1} of {len(wanted)}: {' '.join(map(str, piece))}", flush=True)
        rows.append(run(piece, args.hosts, args.ranks_per_host, args.steps, args.timeout))
        args.file.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""How much of the exchange backward hides: one job with overlap and without, in turn.

    sudo python benchmarks/overlap.py --rates 100mbit 1gbit --timeline overlap.json

Trains the transformer of benchmarks/end_to_end.py on emulated hosts, one rank each. "hidden" is
what the monitor says: the share of an exchange's time that the training thread was not waiting.
"saved" needs no such accounting: the difference of the two step times over that same time.
``--timeline`` leaves Horovod's timeline of rank 0, for chrome://tracing or ui.perfetto.dev: a row
for each ``horovod_qoda.<optimizer>.buffer<i>.stage<j>``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Columns of milliseconds, and their widths.
FIGURES = {"step_s": 9, "compute_s": 8, "wait_s": 8, "busy_s": 9}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--rates", nargs="+", default=["100mbit", "1gbit"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    # Buffers of 1 MB: a model of a few megabytes has something to send while backward goes on.
    parser.add_argument("--fusion-mb", type=float, default=1.0)
    parser.add_argument("--timeline", type=Path, help="where Horovod's timeline goes")
    parser.add_argument("--rank", metavar="OVERLAP", choices=["on", "off"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        train(args.rank == "on", args.steps, args.fusion_mb, args.out)
        return 0

    print(f"{'link':>8} {'overlap':>8} {'step, ms':>9} {'compute':>8} {'waiting':>8} "
          f"{'exchange':>9} {'hidden':>7} {'saved':>6}")  # fmt: skip
    for rate in args.rates:
        found: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
        for _ in range(args.repeats):
            for overlap, results in found.items():
                results.append(run(args, rate, overlap))
        middle = {
            overlap: {key: statistics.median(r[key] for r in results) for key in results[0]}
            for overlap, results in found.items()
        }
        for overlap, row in middle.items():
            saved = (middle["off"]["step_s"] - row["step_s"]) / row["busy_s"]
            times = " ".join(f"{1e3 * row[key]:>{width}.1f}" for key, width in FIGURES.items())
            print(f"{rate:>8} {overlap:>8} {times} {row['hidden']:>7.0%} {saved:>6.0%}")
    return 0


def run(args: argparse.Namespace, rate: str, overlap: str) -> dict[str, float]:
    """One job; the monitor's mean times a step on rank 0, in seconds, and the share hidden."""
    from launch import emulate

    with tempfile.TemporaryDirectory() as folder, emulate.cluster(args.hosts, rate) as cluster:
        out = Path(folder) / "row.json"
        argv = ["python", str(Path(__file__).resolve()), "--rank", overlap, "--out", str(out),
                "--steps", str(args.steps), "--fusion-mb", str(args.fusion_mb)]  # fmt: skip
        if args.timeline and overlap == "on":
            argv = ["env", f"HOROVOD_TIMELINE={args.timeline.resolve()}", *argv]
        job = emulate.command(cluster, 1, argv, Path(folder) / "agent")
        job.env["OMP_NUM_THREADS"] = "1"
        status = emulate.execute(job, 600)
        if status:
            raise subprocess.CalledProcessError(status, job.argv)
        result: dict[str, float] = json.loads(out.read_text())
        return result


def train(overlap: bool, steps: int, fusion_mb: float, out: Path) -> None:
    import torch

    import horovod_qoda.torch as hvd
    from benchmarks import _workloads
    from horovod_qoda.monitor import Monitor

    torch.set_num_threads(1)
    hvd.init()
    workload = _workloads.make("transformer", hvd.rank(), 0)
    optimizer: Any = hvd.DistributedOptimizer(
        torch.optim.Adam(workload.module.parameters(), lr=workload.lr, betas=workload.betas),
        workload.module.named_parameters(),
        compression=hvd.Compression.layerwise(fusion_mb=fusion_mb),
        overlap=overlap,
    )
    hvd.broadcast_parameters(workload.module.state_dict(), root_rank=0)
    monitor = Monitor(skip_steps=6)
    optimizer.add_listener(monitor)
    for step in range(steps):
        with monitor.step():
            optimizer.zero_grad()
            workload.module(*workload.batch(step)).backward()
            optimizer.step()
    if hvd.rank() == 0:
        totals = monitor.totals
        out.write_text(json.dumps({**totals.per_step(), "hidden": totals.hidden}))


if __name__ == "__main__":
    raise SystemExit(main())

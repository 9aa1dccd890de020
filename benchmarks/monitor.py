"""What the monitor costs: blocks of steps with it and without it in turn, in one job.

    mpirun -np 2 ... python benchmarks/monitor.py --workload transformer

Blocks of ``--block`` steps, each with a monitor on rank 0 that writes lines and looks at layers, or
with no listener at all. The share is of whole blocks, since layers are looked at once in many
steps; it is the median over pairs of neighbouring blocks, so that a machine that slows down does it
to both. Beside it, what the monitor says of itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", default="transformer", help="of benchmarks/end_to_end.py")
    parser.add_argument("--block", type=int, default=50, help="steps")
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()

    import torch

    import horovod_qoda.torch as hvd
    from benchmarks import _workloads
    from horovod_qoda.monitor import Monitor

    hvd.init()
    work = _workloads.make(args.workload, hvd.rank(), 0)
    hvd.broadcast_parameters(work.module.state_dict(), root_rank=0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(work.module.parameters(), lr=work.lr, betas=work.betas),
        named_parameters=work.module.named_parameters(),
        compression=hvd.Compression.layerwise,
    )

    def block(monitor: Monitor | None) -> float:
        hvd.allreduce(torch.zeros(1), name="barrier")
        begin, cpu = time.perf_counter(), time.process_time()
        for step in range(args.block):
            with nullcontext({}) if monitor is None else monitor.step() as values:
                optimizer.zero_grad()
                loss = work.module(*work.batch(step))
                loss.backward()
                optimizer.step()
                values["loss"] = loss.item()
        spent.append(time.process_time() - cpu)
        return time.perf_counter() - begin

    spent: list[float] = []
    block(None)  # overlap is decided, tables have settled
    shares, cpu_shares, own, steps = [], [], [], []
    listeners = optimizer._gradients.listeners
    with tempfile.TemporaryDirectory() as folder:
        monitor = Monitor(Path(folder) / "metrics.jsonl", skip_steps=0)
        if hvd.rank() == 0:
            monitor.watch(optimizer)
        kept = list(listeners)
        for pair in range(args.pairs):
            seconds = {}
            for watched in (False, True) if pair % 2 else (True, False):
                listeners[:] = kept if watched else []
                before = monitor.totals.monitor_s
                seconds[watched] = block(monitor if watched and hvd.rank() == 0 else None)
                seconds[watched, "cpu"] = spent[-1]
                if watched:
                    own.append((monitor.totals.monitor_s - before) / seconds[True])
            shares.append(seconds[True] / seconds[False] - 1)
            cpu_shares.append(seconds[True, "cpu"] / seconds[False, "cpu"] - 1)
            steps.append(seconds[False] / args.block)
        monitor.close()
    if hvd.rank() == 0:
        row = {
            "workload": args.workload, "ranks": hvd.size(), "step_s": statistics.median(steps),
            "time": quartiles(shares), "cpu": quartiles(cpu_shares), "own": quartiles(own),
        }  # fmt: skip
        print(f"{args.workload}, {hvd.size()} ranks, steps of {1e3 * row['step_s']:.1f} ms")
        for name, what in (("time", "longer steps"), ("cpu", "more CPU time"),
                           ("own", "of the time, by the monitor's own account")):  # fmt: skip
            low, middle, high = (100 * x for x in row[name])
            print(f"{middle:6.2f} % {what} (quartiles {low:.2f} to {high:.2f})")
        if args.json:
            args.json.write_text(json.dumps(row) + "\n")


def quartiles(values: list[float]) -> tuple[float, ...]:
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


if __name__ == "__main__":
    main()

"""The exchange alone: mean of gradients over ranks, compressed and not, on links of given speeds.

    sudo python benchmarks/exchange.py --hosts 4 --rates 100mbit 1gbit unlimited --json out.json
    python launch/run.py -np 4 --mpirun -- python benchmarks/exchange.py --here

The first form runs the second on emulated hosts (launch/emulate.py), one job a rate. In a job, all
methods take turns in every round, so that whatever else the machine does hits all alike; figures
are medians over rounds with the quartiles. A round of ours is put, mean and finish: copying in,
encoding, both stages, decoding. Gradients are Gaussian, one layer a megabyte.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MEGABYTE = 2**20


def measure(sizes: list[int], bits: float, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Seconds and wire bytes of each method and size on this job's ranks; rank 0's view."""
    import numpy as np
    import torch

    import horovod_qoda.torch as hvd
    from horovod_qoda import layout
    from horovod_qoda.exchange import Exchange
    from horovod_qoda.settings import Settings
    from horovod_qoda.transport import HorovodTransport

    hvd.init()
    rows: list[dict[str, Any]] = []
    for size in sizes:
        generator = torch.Generator().manual_seed(hvd.rank())
        layers = [torch.randn(256, 1024, generator=generator) for _ in range(size)]
        flat = torch.cat([x.reshape(-1) for x in layers])
        methods: dict[str, Callable[[], int]] = {
            "fp32": partial(_stock, hvd, "fp32", hvd.Compression.none, flat),
            "fp16": partial(_stock, hvd, "fp16", hvd.Compression.fp16, flat),
        }
        for i, topology in enumerate(("allgather", "scatter_reduce")):
            settings = Settings(bits=bits, topology=topology, threads=threads)
            named = [(f"layer{j}", tuple(x.shape), str(x.dtype)) for j, x in enumerate(layers)]
            plan = layout.build(named, settings)
            exchange = Exchange(plan, settings, HorovodTransport(), 10 * size + i)
            exchange.agree()
            methods[topology] = partial(_ours, exchange, layers)
        times: dict[str, list[float]] = {name: [] for name in methods}
        sent: dict[str, int] = {}
        # The first five exchanges are where tables and capacities settle.
        for turn in range(5 + rounds):
            for name, call in methods.items():
                hvd.barrier()
                begin = time.perf_counter()
                sent[name] = call()
                if turn >= 5:
                    times[name].append(time.perf_counter() - begin)
        for name in methods:
            low, middle, high = np.percentile(times[name], [25, 50, 75])
            rows.append(
                {"megabytes": size, "method": name, "bits": bits, "ranks": hvd.size(),
                 "seconds": middle, "low": low, "high": high, "wire_bytes": sent[name]}
            )  # fmt: skip
    return rows if hvd.rank() == 0 else []


def _stock(hvd: Any, name: str, compression: Any, flat: Any) -> int:
    hvd.allreduce(flat, name=name, compression=compression)
    return compression.compress(flat[:1])[0].element_size() * flat.numel()


def _ours(exchange: Any, layers: list[Any]) -> int:
    for j, gradient in enumerate(layers):
        exchange.put(j, gradient)
    for j in range(len(layers)):
        exchange.mean(j)
    return exchange.finish()[0].wire_bytes


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'link':>10} {'MB':>4} {'method':>15} {'ms':>9} {'quartiles':>17} {'wire MB':>8} "
             f"{'x fp32':>7} {'x fp16':>7}"]  # fmt: skip
    for row in rows:
        same = {r["method"]: r["seconds"] for r in rows
                if (r["rate"], r["megabytes"]) == (row["rate"], row["megabytes"])}  # fmt: skip
        spread = f"{1e3 * row['low']:.1f}..{1e3 * row['high']:.1f}"
        lines.append(
            f"{row['rate']:>10} {row['megabytes']:>4} {row['method']:>15} "
            f"{1e3 * row['seconds']:>9.1f} {spread:>17} {row['wire_bytes'] / MEGABYTE:>8.2f} "
            f"{same['fp32'] / row['seconds']:>7.2f} {same['fp16'] / row['seconds']:>7.2f}"
        )
    return "\n".join(lines)


def emulated(args: argparse.Namespace) -> list[dict[str, Any]]:
    from launch import emulate

    rows: list[dict[str, Any]] = []
    for rate in args.rates:
        limit = None if rate == "unlimited" else rate
        with tempfile.TemporaryDirectory() as folder, emulate.cluster(args.hosts, limit) as hosts:
            result = Path(folder) / "rows.json"
            argv = ["python", str(Path(__file__).resolve()), "--here", "--json", str(result),
                    "--bits", str(args.bits), "--rounds", str(args.rounds),
                    "--threads", str(args.threads), "--sizes", *map(str, args.sizes)]  # fmt: skip
            job = emulate.command(hosts, 1, argv, Path(folder) / "agent")
            status = emulate.execute(job, timeout=1200)
            if status:
                raise SystemExit(f"the job at {rate} ended with {status}")
            rows += [{**row, "rate": rate} for row in json.loads(result.read_text())]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--here", action="store_true", help="measure among this job's ranks")
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rates", nargs="+", default=["100mbit", "1gbit", "unlimited"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 16, 64], help="megabytes")
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.here:
        rows = measure(args.sizes, args.bits, args.rounds, args.threads)
        rows = [{"rate": "here", **row} for row in rows]
    else:
        rows = emulated(args)
    if rows:
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))
        if not (args.here and args.json):
            print(table(rows))


if __name__ == "__main__":
    main()

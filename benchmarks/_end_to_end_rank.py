"""What every rank of benchmarks/end_to_end.py runs: one workload by one method, timed and counted.

    python benchmarks/_end_to_end_rank.py WORKLOAD METHOD --steps N --out FILE

Bytes are those that left this host's interface during the timed steps, less what leaves it in as
many idle seconds. Rank 0 writes the file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import _workloads  # noqa: E402
from horovod_qoda.cost import link_bytes  # noqa: E402

WARM_UP = 6  # three watched steps, then tables, capacities and DDP's buckets settle
DECIDED = 24  # steps after which topology="measured" has chosen


class Job:
    """The wrapped module and optimizer of a method, and the collectives that timing needs."""

    def __init__(self, workload: _workloads.Workload, method: str) -> None:
        self.module: Any = workload.module
        plain = torch.optim.Adam(self.module.parameters(), lr=workload.lr, betas=workload.betas)
        # What this host sends in a step by a ring; measured by the transport where it is ours.
        self.stock_bytes: float | None = None
        if method.startswith("ddp-"):
            self._ddp(plain, method.removeprefix("ddp-"))
        else:
            self._horovod(plain, method)

    def _ddp(self, plain: torch.optim.Optimizer, hook: str) -> None:
        import torch.distributed as dist
        from mpi4py import MPI
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power

        world = MPI.COMM_WORLD
        self.rank, self.size = world.rank, world.size
        os.environ["GLOO_SOCKET_IFNAME"] = "eth0" if Path("/sys/class/net/eth0").exists() else "lo"
        address = world.bcast(_address(), root=0)
        dist.init_process_group(
            "gloo", init_method=f"tcp://{address}:29511", rank=self.rank, world_size=self.size
        )
        # PowerSGD's hook sends from callbacks, which over gloo may run in different orders on
        # different ranks (seen: "Received data size doesn't match"): one bucket has one order.
        cap = {"bucket_cap_mb": 1024} if hook == "powersgd" else {}
        self.module = torch.nn.parallel.DistributedDataParallel(self.module, **cap)
        if hook == "fp16":
            self.module.register_comm_hook(None, default_hooks.fp16_compress_hook)
        elif hook == "powersgd":
            # Rank 4 and no warm-up: its bytes are those from the third step on.
            state = power.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2)
            self.module.register_comm_hook(state, power.powerSGD_hook)
        self.optimizer: Any = plain
        self.barrier = dist.barrier

    def _horovod(self, plain: torch.optim.Optimizer, method: str) -> None:
        if method.startswith("horovod-"):
            import horovod.torch as hvd

            compression = {"fp32": hvd.Compression.none, "fp16": hvd.Compression.fp16}
            chosen = compression[method.removeprefix("horovod-")]
        else:
            import horovod_qoda.torch as hvd

            chosen = hvd.Compression.layerwise(topology=method.removeprefix("ours-"))
        # Two levels need process sets of their own.
        hvd.init(**({"process_sets": "dynamic"} if method == "ours-two_level" else {}))
        self.rank, self.size = hvd.rank(), hvd.size()
        names = list(self.module.named_parameters())
        self.optimizer = hvd.DistributedOptimizer(plain, names, compression=chosen)
        hvd.broadcast_parameters(self.module.state_dict(), root_rank=0)
        if not method.startswith("ours-"):
            size = sum(p.numel() for _, p in names) * (
                2 if chosen.__name__ == "FP16Compressor" else 4
            )
            if os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1") == "1":
                self.stock_bytes = link_bytes("raw", size, self.size)
        self.barrier = hvd.barrier

    def counted(self) -> float:
        """Bytes this host has sent so far by our own accounting; 0 where there is none: with
        methods that are not ours, and where ranks share the host's link."""
        gradients = getattr(self.optimizer, "_gradients", None)
        alone = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1") == "1"
        return gradients.transport.link_bytes if gradients is not None and alone else 0.0

    def step(self, batch: Any) -> float:
        self.optimizer.zero_grad()
        loss = self.module(*batch)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def _address() -> str:
    """This host's address on eth0; the loopback where there is none."""
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            packed = struct.pack("256s", b"eth0")
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), 0x8915, packed)[20:24])
        except OSError:
            return "127.0.0.1"


def interface_bytes() -> int:
    """Bytes that left eth0 so far, headers of all layers included; 0 without such an interface."""
    try:
        return int(Path("/sys/class/net/eth0/statistics/tx_bytes").read_text())
    except OSError:
        return 0


def measure(name: str, method: str, steps: int, seed: int) -> dict[str, Any] | None:
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.rank
    torch.set_num_threads(1)
    workload = _workloads.make(name, rank, seed)
    job = Job(workload, method)
    warm_up = DECIDED if method == "ours-measured" else WARM_UP
    times, quality = [], None
    for step in range(warm_up + steps):
        if step == warm_up:
            job.barrier()
            before, counted, begun = interface_bytes(), job.counted(), time.perf_counter()
        if step == WARM_UP + steps:
            quality = workload.quality()  # after as many steps with every method
        batch = workload.batch(step)
        start = time.perf_counter()
        job.step(batch)
        if step >= warm_up:
            times.append(time.perf_counter() - start)
    job.barrier()
    sent, seconds = interface_bytes() - before, time.perf_counter() - begun
    counted = (job.counted() - counted) / steps
    # Idle, as long as needed to see what background traffic there is.
    idle_s = min(max(seconds, 1.0), 5.0)
    before = interface_bytes()
    time.sleep(idle_s)
    idle = (interface_bytes() - before) * seconds / idle_s
    quality = workload.quality() if quality is None else quality
    everything = MPI.COMM_WORLD.gather((sent - idle, idle, counted * steps), root=0)
    if rank:
        return None
    low, middle, high = np.percentile(times, [25, 50, 75])
    sent, idle, counted = np.mean(everything, axis=0) / steps
    return {
        "workload": name, "method": method, "ranks": job.size, "steps": steps, "seed": seed,
        "seconds": middle, "low": low, "high": high, "quality": quality,
        "interface_bytes": sent, "idle_bytes": idle, "counted_bytes": counted or job.stock_bytes,
        "parameters": sum(p.numel() for p in workload.module.parameters()),
        "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workload", choices=_workloads.NAMES)
    parser.add_argument("method")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    row = measure(args.workload, args.method, args.steps, args.seed)
    if row is not None:
        text = json.dumps(row, indent=1)
        print(text) if args.out is None else args.out.write_text(text)


if __name__ == "__main__":
    main()

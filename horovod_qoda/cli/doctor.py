"""``horovod-qoda doctor``: what is installed, what is broken, how fast it is, whether it will pay.

    horovod-qoda doctor                                                  this process alone
    mpirun -np 4 --bind-to none --map-by slot horovod-qoda doctor        between the ranks of a job
    srun --mpi=pmix ... horovod-qoda doctor --json doctor.json           and kept, for `model`

Start it the way the job will be started: what it measures, and most of what can be wrong, depends
on that. It ends with status 1 where something is broken, each with the command that repairs it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from horovod_qoda.cli import installation, mpi
from horovod_qoda.cli.findings import BROKEN, NOTE, Finding, broken
from horovod_qoda.cli.verdict import (
    automatic,
    codec_speed,
    measured_exchange,
    network_speed,
    verdict,
)

HOW_TO_START = (
    "mpirun -np 2 --bind-to none --map-by slot horovod-qoda doctor, or any script of launch/jobs"
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="horovod-qoda doctor", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--json", type=Path, help="also write everything there, on rank 0")
    parser.add_argument("--quick", action="store_true", help="measure no whole exchange")
    options = parser.parse_args(argv)
    report = Report(mpi.promised()[0] == 0)
    try:
        examine(report, options.quick)
    finally:
        report.close(options.json)
    return 1 if broken(report.findings) else 0


class Report:
    """Collects findings and prints each at once, on the one rank that speaks."""

    def __init__(self, speaks: bool) -> None:
        self.findings: list[Finding] = []
        self.measured: dict[str, Any] = {}
        self._speaks = speaks

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.findings.append(finding)
            if self._speaks:
                print(finding, flush=True)

    def close(self, path: Path | None) -> None:
        bad = broken(self.findings)
        if self._speaks:
            print(f"\n{len(bad)} broken" if bad else "\nnothing is broken", flush=True)
        if self._speaks and path is not None:
            found = [asdict(finding) for finding in self.findings]
            path.write_text(json.dumps({"findings": found, **self.measured}, indent=1) + "\n")


def examine(report: Report, quick: bool) -> None:
    """All checks, in the order in which one failure makes the next ones pointless."""
    report.add(installation.versions())
    report.add(installation.codec())
    report.add(installation.horovod())
    stack = not any(f.area == "horovod" for f in broken(report.findings))
    coded = not any(f.area == "codec" for f in broken(report.findings))
    if coded:
        from horovod_qoda.cli import devices  # needs the native codec, which may be what is broken

        report.add(devices.cuda(*devices.found_here()))
    if not stack:
        if coded:
            _codec_alone(report)
        return
    hvd = sys.modules["horovod.torch"]
    if coded:
        report.add(devices.payloads(devices.found_here()[0], hvd))
    library = mpi.Library()
    hvd.init()
    report.add(installation.mpi_library(library, mpi.launcher()))
    report.add(alone(hvd.size(), mpi.promised()[1], library))
    if broken(report.findings) and hvd.size() == 1:
        return
    from horovod_qoda.transport import HorovodTransport

    # Before anything else is sent: do all ranks get that far?
    transport = HorovodTransport()
    rows = hvd.allgather_object(here(), name="horovod_qoda.doctor") if hvd.size() > 1 else [here()]
    report.add(hosts(rows))
    if not all(row["codec"] for row in rows):
        return
    if hvd.size() == 1:
        _codec_alone(report)
        report.add([Finding("network", "one rank: nothing to measure", NOTE,
                            f"start it as the job will be started: {HOW_TO_START}")])  # fmt: skip
        return
    _between_ranks(report, transport, hvd, quick)


def here() -> dict[str, Any]:
    """What the other ranks should know of this one."""
    import torch

    found = list(installation.codec())
    usable = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if usable else os.cpu_count() or 1
    return {
        "host": socket.gethostname(),
        "cores": cores,
        "of": os.cpu_count() or 1,
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "codec": not broken(found),
        "simd": found[0].text,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "horovod": installation.version("horovod"),
        "horovod_qoda": installation.version("horovod_qoda"),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def alone(size: int, promised: int, library: mpi.Library) -> Iterator[Finding]:
    """Whether ranks that were started together know of each other."""
    if size == 1 and promised > 1:
        yield Finding(
            "ranks",
            f"the launcher started {promised} processes and each believes it is alone: it is of "
            f"another MPI than the one that Horovod loads ({library.path})",
            BROKEN,
            f"export PATH={installation.beside(library.path)}:$PATH and start with the mpirun that "
            "is found there",
        )


def hosts(rows: list[dict[str, Any]]) -> Iterator[Finding]:
    """Ranks and cores of each host, and whether all ranks have the same programs."""
    count = Counter(row["host"] for row in rows)
    listed = ", ".join(f"{host}: {n}" for host, n in list(count.items())[:8])
    more = f", and {len(count) - 8} more" if len(count) > 8 else ""
    plural = "s" if len(rows) > 1 else ""
    yield Finding("ranks", f"{len(rows)} rank{plural} on {len(count)} host(s): {listed}{more}")
    for key in ("horovod_qoda", "horovod", "torch", "python", "capability"):
        kinds = Counter(row[key] for row in rows)
        if len(kinds) > 1:
            what = ", ".join(f"{value or 'none'} on {n}" for value, n in kinds.items())
            hard = key in ("horovod_qoda", "horovod", "torch")
            yield Finding(
                "ranks",
                f"ranks differ in {key.replace('_', ' ') if key == 'capability' else key}: {what}"
                + ("" if hard else "; parameters may drift apart in the last bits"),
                BROKEN if hard else NOTE,
                "one environment for all hosts (a shared folder, or the same container image)"
                if hard
                else "ATEN_CPU_CAPABILITY=avx2 on all ranks, replica_check_steps=1000 to watch",
            )
    missing = [i for i, row in enumerate(rows) if not row["codec"]]
    if missing:
        first = rows[missing[0]]
        yield Finding("codec", f"rank {missing[0]} on {first['host']}: {first['simd']}", BROKEN,
                      installation.REBUILD_CODEC)  # fmt: skip
    bound = [row for row in rows if row["cores"] < row["of"] and row["cores"] == 1]
    if bound:
        yield Finding(
            "cores",
            f"{len(bound)} ranks are bound to one core of {bound[0]['of']}: Horovod's thread and "
            "the codec's share it with the training thread",
            NOTE,
            "--bind-to none (mpirun), --cpu-bind=none (srun), I_MPI_PIN=0 (Intel MPI)",
        )
    busy = [row for row in rows if row["load"] > row["of"]]
    if busy:
        one = max(busy, key=lambda row: row["load"] / row["of"])
        yield Finding(
            "load",
            f"{one['host']} is busy with other work (load {one['load']:.0f} on {one['of']} cores): "
            "speeds below are too low",
            NOTE,
            "measure again when it is quiet",
        )
    for host, ranks in count.items():
        row = next(row for row in rows if row["host"] == host)
        if ranks * row["threads"] > row["of"]:
            best = max(1, row["of"] // ranks)
            crowded = f"{ranks} ranks on {row['of']} cores"
            if best == row["threads"]:
                yield Finding("cores", f"{host}: {crowded}, which wait for each other", NOTE,
                              "fewer ranks; with Open MPI --mca mpi_yield_when_idle 1")  # fmt: skip
            else:
                text = f"{host}: {crowded} with {row['threads']} compute threads each"
                yield Finding("cores", text, NOTE, f"OMP_NUM_THREADS={best}")
            break


def _codec_alone(report: Report) -> None:
    from horovod_qoda.cli import speed

    report.add(codec_speed(speed.codec()))


def _between_ranks(report: Report, transport: Any, hvd: Any, quick: bool) -> None:
    from horovod_qoda.cli import devices, speed
    from horovod_qoda.settings import Settings
    from horovod_qoda.torch.hosts import find_hosts

    # All ranks at once, since that is how they will code; the slowest counts.
    transport.allreduce("horovod_qoda.doctor.begin", _zero()).wait()
    codecs = hvd.allgather_object(speed.codec(), name="horovod_qoda.doctor.codec")
    slowest = max(codecs, key=lambda one: one.encode + one.decode)
    report.add(codec_speed(slowest))
    network = speed.network(transport)
    report.add(network_speed(network, transport.size))
    machine = speed.machine(slowest, network, transport.size)
    report.measured["ranks"] = transport.size
    report.measured["machine"] = asdict(machine)
    leave = devices.leave_device(devices.found_here()[0], hvd)
    hosts = find_hosts(hvd.global_process_set, transport, Settings.resolve(), leave)
    picked = automatic(transport.size, hosts)
    seconds: dict[str, float] = {}
    if not quick:
        # About a second for the slowest of the four ways, at most 16 MB.
        size = int(min(16, max(1, network.bandwidth / 2 / 2**20)))
        seconds = speed.exchange(transport, size)
        report.measured["exchange"] = {"megabytes": size, "seconds": seconds}
        report.add(measured_exchange(size, seconds, picked))
    each = hosts.inside.size if hosts else 1
    report.add(verdict(machine, transport.size, picked, seconds, each))


def _zero() -> Any:
    import numpy as np

    return np.zeros(1, np.float32)

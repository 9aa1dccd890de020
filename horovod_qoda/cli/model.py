"""``horovod-qoda model``: the step time that other ranks, links, models and bits would have.

    horovod-qoda model --mb 64 --gbit 1 --cores 8
    horovod-qoda model --machine doctor.json --parameters 192e6 --compute-ms 300 --ranks 8 64 512

    horovod-qoda model --ranks-per-host 8 --gbit 25 --low-rank 8

For each number of ranks: an exchange by each topology, the fastest, the step with it, and for each
compressed one the link speed from which float32 and float16 are as fast (``docs/scaling.md`` has
the formulas). PowerSGD is biased, so it is shown and never called the fastest. Speeds come from
``horovod-qoda doctor --json``, single ones from flags.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from horovod_qoda.cost import (
    RAW,
    TOPOLOGIES,
    UNBIASED,
    Exchange,
    Machine,
    crossover,
    seconds,
    step,
)

RANKS = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]

OURS = tuple(name for name in TOPOLOGIES if name not in RAW)

NAMES = {"allgather": "all-gather", "scatter_reduce": "scatter", "two_level": "two-level",
         "powersgd": "PowerSGD"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Prediction for one number of ranks. Times in seconds, bandwidths in bytes a second."""

    ranks: int
    exchange: dict[str, float]
    step: dict[str, float]
    fastest: str
    ours: str
    """The fastest of the compressed ones that are unbiased."""
    crossover: dict[str, dict[str, float]]
    """By compressed topology and uncompressed rival: from which bandwidth that is as fast."""


def predict(
    template: Exchange,
    machine: Machine,
    ranks: Sequence[int],
    compute: float,
    hidden: float,
    ranks_per_host: int = 1,
) -> list[Row]:
    """One row for each number of ranks; the template's own ranks and topology are replaced."""
    rows = []
    for count in ranks:
        ways = {
            name: replace(template, ranks=count, topology=name, ranks_per_host=ranks_per_host)
            for name in TOPOLOGIES
        }
        # Horovod fuses up to 128 MB, its default; we exchange a buffer at a time.
        for name in RAW:
            ways[name] = replace(ways[name], buffer=128 * 2**20)
        times = {name: seconds(way, machine) for name, way in ways.items()}
        ours = min((name for name in OURS if name in UNBIASED), key=times.__getitem__)
        rows.append(
            Row(
                ranks=count,
                exchange=times,
                step={name: step(compute, value, hidden) for name, value in times.items()},
                fastest=min(UNBIASED, key=times.__getitem__),
                ours=ours,
                crossover={
                    name: {rival: crossover(ways[name], machine, rival) for rival in RAW}
                    for name in OURS
                },
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Milliseconds of an exchange, step times and gains."""
    head = "".join(f"{NAMES.get(name, name):>11}" for name in TOPOLOGIES)
    lines = [f"{'ranks':>6}{head}  {'fastest':<15}{'step':>9}{'of fp32':>8}"]
    for row in rows:
        times = "".join(f"{1e3 * row.exchange[name]:>11.2f}" for name in TOPOLOGIES)
        gain = row.step["fp32"] / row.step[row.fastest]
        lines.append(
            f"{row.ranks:>6}{times}  {row.fastest:<15}{1e3 * row.step[row.fastest]:>9.2f}"
            f"{gain:>7.2f}x"
        )
    return "\n".join([*lines, "milliseconds"])


def crossovers(rows: Sequence[Row]) -> str:
    """Links at which fp32 and fp16 are as fast as each compressed topology, in Gbit/s."""
    lines = [f"{'ranks':>6}" + "".join(f"{NAMES[name]:>18}" for name in OURS)]
    for row in rows:
        pairs = [" / ".join(_gbit(row.crossover[name][rival]) for rival in RAW) for name in OURS]
        lines.append(f"{row.ranks:>6}" + "".join(f"{pair:>18}" for pair in pairs))
    return "\n".join([*lines, f"Gbit/s below which it beats {' / '.join(RAW)}"])


def _gbit(bandwidth: float) -> str:
    if bandwidth == 0:
        return "never"
    return "always" if math.isinf(bandwidth) else f"{8e-9 * bandwidth:.3g}"


def machine_from(options: argparse.Namespace) -> Machine:
    """Defaults, then a doctor's file, then single flags.

    Raises:
        ValueError: the file is no doctor's, or lacks measured speeds.
    """
    machine = Machine()
    if options.machine is not None:
        try:
            machine = Machine(**json.loads(options.machine.read_text())["machine"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{options.machine} has no measured speeds ({error!r}); make it on two ranks or "
                "more: mpirun -np 2 horovod-qoda doctor --json FILE"
            ) from None
    given: dict[str, Any] = {
        "bandwidth": None if options.gbit is None else options.gbit * 1e9 / 8,
        "latency": None if options.latency_us is None else 1e-6 * options.latency_us,
        "cores": options.cores,
    }
    return replace(machine, **{k: v for k, v in given.items() if v is not None})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="horovod-qoda model", description=(__doc__ or "").splitlines()[0]
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--mb", type=float, default=16.0, help="float32 megabytes of gradients")
    size.add_argument("--parameters", type=float, help="their number instead")
    parser.add_argument("--bits", type=float, default=3.0, help="coded bits a coordinate")
    parser.add_argument("--layers", type=int, help="default: one a megabyte")
    parser.add_argument("--types", type=int, default=1, help="kinds of layers (code tables)")
    parser.add_argument("--fusion-mb", type=float, default=16.0)
    parser.add_argument("--low-rank", type=int, default=4, help="of PowerSGD's matrices")
    parser.add_argument(
        "--ranks", type=int, nargs="+", help="default: 2, 4, ... hosts, 4,096 ranks at most"
    )
    parser.add_argument("--ranks-per-host", type=int, default=1, help="they share a link")
    parser.add_argument("--machine", type=Path, metavar="FILE", help="of doctor --json")
    parser.add_argument("--gbit", type=float, help="speed of a host's link in Gbit/s")
    parser.add_argument("--latency-us", type=float, help="of one message, microseconds")
    parser.add_argument("--cores", type=float, help="cores of a rank, 0.5 where two share one")
    parser.add_argument("--compute-ms", type=float, default=0.0, help="a step without exchange")
    parser.add_argument(
        "--hidden", type=float, default=0.0, help="share of the exchange behind backward, 0 to 1"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows there too")
    options = parser.parse_args(argv)
    coordinates = round(options.parameters or options.mb * 2**18)
    try:
        machine = machine_from(options)
        template = Exchange(
            coordinates,
            2,
            "allgather",
            options.bits,
            options.layers or max(1, coordinates // 2**18),
            options.types,
            round(options.fusion_mb * 2**20),
            low_rank=options.low_rank,
        )
        each = options.ranks_per_host
        ranks = options.ranks or [each * n for n in RANKS if each * n <= RANKS[-1]]
        rows = predict(template, machine, ranks, 1e-3 * options.compute_ms, options.hidden, each)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(
        f"{coordinates:,} coordinates at {options.bits:g} bits, links of "
        f"{8e-9 * machine.bandwidth:.3g} Gbit/s, {machine.cores:g} core(s) a rank, "
        f"{each} rank(s) a host, {options.compute_ms:g} ms of compute, "
        f"{100 * options.hidden:.0f} % hidden, PowerSGD of rank {options.low_rank}\n"
    )
    print(table(rows) + "\n\n" + crossovers(rows))
    if options.json is not None:
        options.json.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")
    return 0

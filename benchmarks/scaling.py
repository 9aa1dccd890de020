"""The cost model against emulated clusters, and the plots of docs/scaling.md.

    sudo python benchmarks/scaling.py measure rows.json      2, 4 and 8 hosts, resumable
    python benchmarks/scaling.py validate rows.json          predicted beside measured
    python benchmarks/scaling.py plot docs --rows rows.json

`measure` runs benchmarks/exchange.py on emulated hosts, one job for each number of hosts and rate;
what is in the file already is not measured again. `validate` takes the codec's speeds from one
process, the network's from float32 between the fewest hosts, and what MPI's waiting loops leave of
cores that hosts share from one float32 row of more; it predicts all the rest.

Measure with OMPI_MCA_btl_tcp_eager_limit=8388608: Open MPI's default leaves up to 40 % of a link
unused, and how much depends on the number of hosts (docs/hpc.md).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from horovod_qoda import cost  # noqa: E402
from horovod_qoda.cli import model  # noqa: E402

HOSTS = (2, 4, 8)
RATES = {"100mbit": 100e6, "1gbit": 1e9, "unlimited": float("inf")}
NAMES = {"fp32": "Horovod fp32", "fp16": "Horovod fp16", "allgather": "all-gather, 3 bits",
         "scatter_reduce": "scatter-reduce, 3 bits"}  # fmt: skip


def measure(path: Path, sizes: list[int], rounds: int) -> None:
    """Fills the file, one job after the other."""
    from benchmarks import exchange

    done = json.loads(path.read_text()) if path.exists() else {"cores": os.cpu_count(), "rows": []}
    if "codec" not in done:
        from horovod_qoda.cli import speed

        done["codec"] = asdict(speed.codec())
    for hosts in HOSTS:
        for rate in RATES:
            if any((r["ranks"], r["rate"]) == (hosts, rate) for r in done["rows"]):
                continue
            args = argparse.Namespace(
                hosts=hosts, rates=[rate], sizes=sizes, bits=3.0, rounds=rounds, threads=1
            )
            load = os.getloadavg()[0]
            done["rows"] += [{**row, "load": load} for row in exchange.emulated(args)]
            path.write_text(json.dumps(done, indent=1) + "\n")
            print(f"{hosts} hosts, {rate}: measured (load before: {load:.1f})", flush=True)


@dataclass(frozen=True)
class Fit:
    """Speeds, and the share of a link's nominal rate that Horovod's all-reduce reaches.

    Attributes:
        cores: that all hosts share.
        left: share of them that threads waiting inside MPI, which spin, leave to the others where
            there are more hosts than cores.
    """

    machine: cost.Machine
    efficiency: float
    cores: int
    left: float = 1.0


def predicted(row: dict[str, Any], fit: Fit) -> float:
    """Seconds that the model gives for a measured row."""
    way = cost.Exchange(
        row["megabytes"] * 2**18,
        row["ranks"],
        row["method"],
        row["bits"],
        layers=row["megabytes"],
        buffer=2**27 if row["method"] in cost.RAW else 16 * 2**20,
    )
    cores = fit.cores / row["ranks"]
    if cores < 1:
        cores *= fit.left
    bandwidth = fit.efficiency * RATES[row["rate"]] / 8
    return cost.seconds(way, replace(fit.machine, cores=cores, bandwidth=bandwidth))


def fitted(row: dict[str, Any], measured: dict[str, Any]) -> bool:
    """Whether a row is one of those that speeds are taken from: float32, not the slow link, between
    the fewest hosts; and the largest on the unlimited link between more hosts than cores."""
    if row["method"] != "fp32" or row["rate"] == "100mbit":
        return False
    return row["ranks"] == min(r["ranks"] for r in measured["rows"]) or row is _crowded(measured)


def _crowded(measured: dict[str, Any]) -> dict[str, Any] | None:
    rows = [r for r in measured["rows"] if r["ranks"] > measured["cores"]
            and (r["method"], r["rate"]) == ("fp32", "unlimited")]  # fmt: skip
    return min(rows, key=lambda r: (r["ranks"], -r["megabytes"]), default=None)


def calibrate(measured: dict[str, Any]) -> Fit:
    """The codec as measured in one process; the network from the rows that are `fitted`.

    On unlimited links 1 MB gives the start of a collective and the largest size the CPU time of a
    byte; the largest size at 1 Gbit/s gives the efficiency.
    """
    codec, cores, crowded = measured["codec"], measured["cores"], _crowded(measured)
    machine = cost.Machine(**{k: codec[k] for k in ("encode", "decode", "copy", "cast")})
    rows = [r for r in measured["rows"] if fitted(r, measured) and r is not crowded]
    by = {rate: sorted((r for r in rows if r["rate"] == rate), key=lambda r: r["megabytes"])
          for rate in RATES}  # fmt: skip
    fast, slow = by["unlimited"], by["1gbit"]
    fit = Fit(machine, efficiency=1.0, cores=cores)
    for _ in range(5):  # start and CPU time of a byte each change the other a little
        if len(fast) > 1:
            fit = _solve(fast[0], partial(_with_speed, fit, "start"))
        fit = _solve(fast[-1], partial(_with_speed, fit, "wire_cpu"))
    fit = _solve(slow[-1], lambda x: replace(fit, efficiency=1 / (1 + x)))
    if crowded is not None:
        fit = _solve(crowded, lambda x: replace(fit, left=1 / (1 + x)))
    return fit


def _with_speed(fit: Fit, name: str, seconds: float) -> Fit:
    return replace(fit, machine=replace(fit.machine, **{name: seconds}))


def _solve(row: dict[str, Any], fit_of: Callable[[float], Fit]) -> Fit:
    """The fit that predicts a row as it was measured, by bisection.

    Args:
        fit_of: a fit for a number from 0 to 100; the larger it is, the more seconds are predicted.
    """
    low, high = 0.0, 100.0
    for _ in range(70):
        middle = (low + high) / 2
        slower = predicted(row, fit_of(middle)) > row["seconds"]
        low, high = (low, middle) if slower else (middle, high)
    return fit_of(low)


def validate(measured: dict[str, Any]) -> str:
    """A table of measured beside predicted, and the errors of rows that were not fitted."""
    fit, rows = calibrate(measured), measured["rows"]
    speeds = ", ".join(f"{k} {v:.3g}" for k, v in asdict(fit.machine).items()
                       if k not in ("bandwidth", "cores"))  # fmt: skip
    lines = [f"{speeds}, efficiency {fit.efficiency:.2f}, left of shared cores {fit.left:.2f}",
             f"{'hosts':>5} {'link':>10} {'MB':>3} {'method':>15} {'measured':>9} {'predicted':>10}"
             f" {'error':>7}"]  # fmt: skip
    errors: dict[int, list[float]] = {}
    for row in rows:
        guess = predicted(row, fit)
        error = guess / row["seconds"] - 1
        used = fitted(row, measured)
        if not used:
            errors.setdefault(row["ranks"], []).append(abs(error))
        lines.append(
            f"{row['ranks']:>5} {row['rate']:>10} {row['megabytes']:>3} {row['method']:>15} "
            f"{1e3 * row['seconds']:>9.1f} {1e3 * guess:>10.1f} {100 * error:>6.0f}%"
            + (" (fitted)" if used else "")
        )
    for hosts, own in errors.items():
        lines.append(f"{hosts} hosts: median error {100 * statistics.median(own):.0f} %, "
                     f"largest {100 * max(own):.0f} %")  # fmt: skip
    return "\n".join(lines)


def plot(folder: Path, measured: dict[str, Any] | None) -> None:
    """Writes scaling-ranks.png, scaling-crossover.png and, with rows, scaling-validation.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Cores of their own for each rank, as on a cluster; docs/scaling.md says which speeds.
    machine = replace(cost.Machine(), cores=1.0)
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained", sharey=True)
    for axis, gbit in zip(axes, (1, 10, 100), strict=True):
        fast = replace(machine, bandwidth=gbit * 1e9 / 8)
        template = cost.Exchange(64 * 2**18, 2, "allgather", layers=64)
        rows = model.predict(template, fast, model.RANKS, 0.0, 0.0)
        for name, label in NAMES.items():
            axis.loglog(
                [r.ranks for r in rows], [1e3 * r.exchange[name] for r in rows], label=label,
                ls="--" if name in cost.RAW else "-",
            )  # fmt: skip
        axis.set(title=f"{gbit} Gbit/s", xlabel="ranks")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("ms of one exchange of 64 MB (predicted)")
    axes[0].legend(fontsize=8)
    figure.savefig(folder / "scaling-ranks.png", dpi=110)
    plt.close(figure)

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    for axis, rival in zip(axes, cost.RAW, strict=True):
        for megabytes in (1, 16, 64, 256):
            template = cost.Exchange(megabytes * 2**18, 2, "allgather", layers=megabytes)
            # The wire's CPU time left out: with it there are links on which raw never catches up.
            rows = model.predict(template, replace(machine, wire_cpu=0.0), model.RANKS, 0.0, 0.0)
            axis.loglog(
                [r.ranks for r in rows], [8e-9 * r.crossover[r.ours][rival] or None for r in rows],
                marker=".", label=f"{megabytes} MB",
            )  # fmt: skip
        axis.set(title=f"compression pays below, against {rival}", xlabel="ranks")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("Gbit/s of a host's link (predicted)")
    axes[0].legend(fontsize=8)
    figure.savefig(folder / "scaling-crossover.png", dpi=110)
    plt.close(figure)

    if measured is None:
        return
    fit = calibrate(measured)
    figure, axis = plt.subplots(figsize=(5.5, 5), layout="constrained")
    for number, (name, label) in enumerate(NAMES.items()):
        own = [r for r in measured["rows"] if r["method"] == name]
        axis.loglog(
            [1e3 * r["seconds"] for r in own], [1e3 * predicted(r, fit) for r in own],
            "o^sv"[number], label=label, alpha=0.7,
        )  # fmt: skip
    low, high = axis.get_xlim()
    axis.plot([low, high], [low, high], color="0.5", lw=1)
    axis.set(xlabel="measured, ms", ylabel="predicted, ms", title="emulated hosts")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3, which="both")
    figure.savefig(folder / "scaling-validation.png", dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=["measure", "validate", "plot"])
    parser.add_argument("path", type=Path, help="rows.json, or the folder of the plots")
    parser.add_argument("--rows", type=Path, help="measured rows, for the validation's plot")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 16], help="megabytes")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if args.action == "measure":
        measure(args.path, args.sizes, args.rounds)
    elif args.action == "validate":
        print(validate(json.loads(args.path.read_text())))
    else:
        plot(args.path, json.loads(args.rows.read_text()) if args.rows else None)


if __name__ == "__main__":
    main()

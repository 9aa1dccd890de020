"""Training runs of the examples as rows of a JSON Lines file; a row that is there is not run again.

So a table is completed piece by piece, and an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for launch/, which is no installed package

import launch.run  # noqa: E402
from horovod_qoda.monitor import read_lines  # noqa: E402

METRICS = {"transformer_xl": "nats", "wgan": "distance"}
"""What the examples' evaluations call the value to be compared; smaller is better."""

VALUES = ("loss", "ratio", "late_ratio", "late_payload_ratio")


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        config: name of the configuration; the row's key together with example, seed and steps.
        flags: of the example, besides seeds and steps.
        common: flags that all configurations share.
    """

    example: str
    config: str
    seed: int
    steps: int
    ranks: int
    flags: tuple[str, ...]
    common: tuple[str, ...]

    @property
    def key(self) -> list[Any]:
        wanted = [*self.flags, *self.common]
        return [self.example, self.config, self.seed, self.steps, self.ranks, wanted]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def complete(path: Path, runs: Sequence[Run], seconds: float) -> list[dict[str, Any]]:
    """Rows of the runs that could be made, in the order asked for; new ones are added to the file.

    A run that fails is reported and left out, so that it is tried again next time.

    Args:
        seconds: limit of one run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for run in runs:
        row = next((row for row in rows_of(path) if row["key"] == run.key), None)
        if row is None:
            print(f"{run.example} {run.config}, seed {run.seed} ...", flush=True)
            row = train(run, seconds)
            if row is None:
                continue
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        rows.append(row)
    return rows


def train(run: Run, seconds: float) -> dict[str, Any] | None:
    """Runs an example; None, with its last lines printed, where it does not end well in time."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = ["--model-seed", run.seed, "--seed", run.seed]
        flags: list[object] = ["--steps", run.steps, *seeds, *run.flags, *run.common]
        flags += ["--runs", folder, "--name", "run", "--progress", 1e6]
        program = [sys.executable, str(ROOT / "examples" / f"{run.example}.py"), *map(str, flags)]
        job = launch.run.command(run.ranks, program, launcher="mpirun", venv=Path(sys.prefix))
        try:
            done = subprocess.run(
                job.argv, env=job.env, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            print(f"  not ended after {seconds:.0f} s", flush=True)
            return None
        if done.returncode:
            print("  failed: " + (done.stdout + done.stderr)[-2000:], flush=True)
            return None
        return {"key": run.key, **results(run, Path(folder) / "run" / "metrics.jsonl")}


def results(run: Run, path: Path) -> dict[str, Any]:
    """What a run reached and sent.

    ``ratio`` is gradient bytes over bytes handed to Horovod in all steps, ``late_ratio`` the same
    in the second half, when everything has adapted. ``late_payload_ratio`` is over true payloads:
    with neither padding nor what update exchanges sum over ranks.
    """
    lines = read_lines(path)
    evaluations = [line for line in lines if line["event"] == "eval"]
    steps = [line for line in lines if line["event"] == "step"]
    late = steps[len(steps) // 2 :]
    metric = METRICS[run.example]
    return {
        "example": run.example,
        "config": run.config,
        "seed": run.seed,
        "start": evaluations[0][metric],
        "loss": evaluations[-1][metric],
        "ratio": lines[-1]["ratio"],
        "late_ratio": _ratio(late, "wire_bytes"),
        "late_payload_ratio": _ratio(late, "payload_bytes"),
        "coded_bits": lines[-1]["coded_bits"],
    }


def _ratio(steps: Sequence[Mapping[str, Any]], sent: str) -> float:
    return sum(x["raw_bytes"] for x in steps) / sum(x[sent] for x in steps)


def summarize(
    rows: Sequence[Mapping[str, Any]], example: str, baseline: str
) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over seeds of each configuration, in order of appearance.

    ``difference`` is the loss minus the baseline's with the same seed.
    """
    mine = [row for row in rows if row["example"] == example]
    base = {row["seed"]: row["loss"] for row in mine if row["config"] == baseline}
    out = {}
    for config in dict.fromkeys(row["config"] for row in mine):
        of = [row for row in mine if row["config"] == config]
        change = [row["loss"] - base[row["seed"]] for row in of if row["seed"] in base]
        out[config] = {
            "seeds": len(of),
            **{name: spread([row[name] for row in of]) for name in VALUES},
            "difference": spread(change),
        }
    return out


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; nan where there are too few values."""
    mean = statistics.fmean(values) if values else float("nan")
    return mean, statistics.stdev(values) if len(values) > 1 else float("nan")

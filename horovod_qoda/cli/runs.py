"""A finished or running job as its monitor wrote it down: columns of numbers, ready to be drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from horovod_qoda.exchange.records import ExchangeRecord
from horovod_qoda.monitor import read_lines

FILE = "metrics.jsonl"
# What the monitor adds to a line by itself; everything else is the script's own.
_OURS = {"event", "step", "time", "step_s"} | {f.name for f in dataclasses.fields(ExchangeRecord)}
PHASES = ("step_s", "wait_s", "encode_s", "exchange_s", "decode_s", "busy_s")


@dataclass(frozen=True)
class Run:
    """One run: its label and the lines of its file."""

    label: str
    lines: list[dict[str, Any]]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    def column(self, name: str, event: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a column, both [n]; lines without a number there are left out."""
        pairs = [
            (line["step"], line[name])
            for line in self.of(event)
            if isinstance(line.get(name), (int, float)) and not isinstance(line[name], bool)
        ]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(steps, float), np.array(values, float)

    def sent(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and bytes handed to Horovod up to and including each, both [n]."""
        steps, values = self.column("wire_bytes")
        return steps, np.cumsum(values)

    def own_columns(self, event: str) -> list[str]:
        """Names of the script's own numbers in lines of an event, in order of appearance."""
        names: dict[str, None] = {}
        for line in self.of(event):
            for name, value in line.items():
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                if number and name not in _OURS:
                    names[name] = None
        return list(names)

    def layers(self, figure: str) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Names [l], steps [n] and values [l, n] of a figure of the ``layers`` lines.

        Where the model has changed only the lines of the last one count.
        """
        models = [i for i, line in enumerate(self.lines) if line["event"] == "model"]
        if not models:
            return [], np.zeros(0), np.zeros((0, 0))
        rows = [line for line in self.lines[models[-1] :] if line["event"] == "layers"]
        names = self.lines[models[-1]]["names"]
        values = np.array([row[figure] for row in rows], float).reshape(len(rows), len(names))
        return names, np.array([row["step"] for row in rows], float), values.T

    def summary(self) -> dict[str, float]:
        """Totals over the steps that are there, a running job's too."""
        _, wire = self.column("wire_bytes")
        _, raw = self.column("raw_bytes")
        _, bits = self.column("coded_bits")
        steps, seconds = self.column("step_s")
        nan = float("nan")
        result = {
            "steps": float(len(steps)),
            "wire MB": wire.sum() / 1e6,
            "raw / wire": raw.sum() / wire.sum() if wire.sum() else nan,
            "bits a coordinate": float(bits.mean()) if bits.size else nan,
        }
        # Medians: the first steps, and those that a busy machine held up, say nothing.
        for name in PHASES:
            values = self.column(name)[1]
            shown = f"{name.removesuffix('_s')}, ms"
            result[shown] = 1e3 * float(np.median(values)) if values.size else nan
        return result

    def settings(self) -> dict[str, Any]:
        """Arguments that the script wrote into its line of event ``start``."""
        start = self.of("start")
        return dict(start[0].get("arguments", {})) if start else {}


def load(paths: Sequence[Path]) -> list[Run]:
    """Runs from their folders or files, labelled by the shortest names that differ.

    Raises:
        FileNotFoundError: no metrics there.
        ValueError: a file holds no steps.
    """
    files = [path / FILE if path.is_dir() else path for path in paths]
    runs = []
    for file, label in zip(files, _labels(files), strict=True):
        run = Run(label, read_lines(file))
        if not run.of("step"):
            raise ValueError(
                f"{file} has no steps: was it written by horovod_qoda.monitor.Monitor?"
            )
        runs.append(run)
    return runs


def _labels(files: Sequence[Path]) -> list[str]:
    parts = [f.resolve().parent.parts if f.name == FILE else f.resolve().parts for f in files]
    for depth in range(1, max(len(p) for p in parts) + 1):
        labels = ["/".join(p[-depth:]) for p in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{'/'.join(p[-1:])} ({i + 1})" for i, p in enumerate(parts)]


def different(runs: Sequence[Run]) -> list[str]:
    """Names of the settings in which runs differ; all of them for one run."""
    all_settings = [run.settings() for run in runs]
    names = dict.fromkeys(name for one in all_settings for name in one)
    if len(runs) == 1:
        return list(names)
    first = all_settings[0]
    return [n for n in names if any(one.get(n) != first.get(n) for one in all_settings[1:])]

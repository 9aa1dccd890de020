"""Figures of a run: samples beside real images, and curves of what the monitor wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

SIDE = 28
GRID = 8

Lines = Sequence[Mapping[str, Any]]


def samples(path: Path, panels: Mapping[str, Any]) -> None:
    """Writes a grid of 8x8 images for each title.

    Args:
        panels: title -> pixels [n >= 64, 784] in [-1, 1], array or CPU tensor.
    """
    figure = Figure(figsize=(3.6 * len(panels), 4.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (title, pixels) in zip(axes[0], panels.items(), strict=True):
        axis.imshow(_tiles(pixels), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=11)
        axis.axis("off")
    figure.savefig(path, dpi=120)


def curves(path: Path, runs: Mapping[str, Lines]) -> None:
    """Writes distance by step, distance by bytes, the critic's estimate, and time per step.

    Args:
        runs: label -> lines of its metrics.jsonl (``horovod_qoda.monitor.read_lines``).
    """
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    for number, (label, lines) in enumerate(runs.items()):
        color = f"C{number}"
        _distance_by_step(axes[0, 0], label, lines, color)
        _distance_by_bytes(axes[0, 1], label, lines, color)
        _critic(axes[1, 0], label, lines, color)
    start = next(iter(runs.values()))
    first = [line for line in start if line["event"] == "eval"][0]
    axes[0, 0].axhline(first["distance"] / 2, color="0.5", ls="--", lw=1)
    axes[0, 0].text(0, first["distance"] / 2, "half of the start", va="bottom", color="0.4")
    axes[0, 0].axhline(first["floor"], color="0.5", ls=":", lw=1)
    axes[0, 0].text(0, first["floor"], "real against real", va="bottom", color="0.4")
    axes[0, 0].set(xlabel="joint step", ylabel="sliced Wasserstein distance", ylim=(0, None))
    axes[0, 0].set_title("distance to held-out images")
    axes[0, 1].set(xlabel="megabytes handed to Horovod, one rank", xscale="log", ylim=(0, None))
    axes[0, 1].set_title("the same against what was sent")
    axes[1, 0].set(xlabel="joint step", ylabel="mean critic(real) − mean critic(fake)")
    axes[1, 0].set_title("critic's estimate of the distance")
    for axis in (axes[0, 0], axes[0, 1], axes[1, 0]):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    _times(axes[1, 1], runs)
    figure.savefig(path, dpi=120)


def _distance_by_step(axis: Any, label: str, lines: Lines, color: str) -> None:
    seen = [line for line in lines if line["event"] == "eval"]
    steps = [line["step"] for line in seen]
    axis.plot(steps, [line["distance"] for line in seen], color=color, label=f"{label}, last")
    averages = [line.get("distance_average") for line in seen]
    if any(value is not None for value in averages):
        axis.plot(steps, averages, color=color, ls="-.", label=f"{label}, average")


def _distance_by_bytes(axis: Any, label: str, lines: Lines, color: str) -> None:
    sent, at, distances = 0, [], []
    for line in lines:
        if line["event"] == "step":
            sent += line["wire_bytes"]
        elif line["event"] == "eval" and sent:
            at.append(sent / 1e6)
            distances.append(line["distance"])
    axis.plot(at, distances, color=color, marker=".", label=label)


def _critic(axis: Any, label: str, lines: Lines, color: str) -> None:
    values = np.array([line["critic_gap"] for line in lines if line["event"] == "step"], float)
    if not len(values):
        return
    width = max(1, len(values) // 50)
    mean = np.convolve(values, np.ones(width) / width, mode="valid")
    axis.plot(np.arange(len(values)) + 1, values, color=color, alpha=0.2, lw=0.7)
    axis.plot(np.arange(len(mean)) + 1 + (width - 1) / 2, mean, color=color, label=label)


def _times(axis: Any, runs: Mapping[str, Lines]) -> None:
    """Bars side by side, not stacked: encode, exchange and decode overlap with compute."""
    parts = ("step", "compute", "wait", "encode", "exchange", "decode")
    width = 0.8 / len(runs)
    for number, (label, lines) in enumerate(runs.items()):
        means = lines[-1]["per_step"] if lines[-1]["event"] == "summary" else {}
        values = [1e3 * (means.get(f"{part}_s") or 0.0) for part in parts]
        at = np.arange(len(parts)) + (number - (len(runs) - 1) / 2) * width
        axis.bar(at, values, width, color=f"C{number}", label=label)
    axis.set_xticks(range(len(parts)), parts)
    axis.set(ylabel="milliseconds a step", title="time on this machine (parts overlap)")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3, axis="y")


def _tiles(pixels: Any) -> np.ndarray:
    tiles = np.asarray(pixels)[: GRID * GRID].reshape(GRID, GRID, SIDE, SIDE)
    # One black pixel between images, so that dark edges do not merge.
    framed = np.pad(tiles, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=-1.0)
    return framed.transpose(0, 2, 1, 3).reshape(GRID * (SIDE + 1), GRID * (SIDE + 1))

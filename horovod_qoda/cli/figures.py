"""The figures of ``horovod-qoda plot``, each a function of runs; matplotlib without a display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from horovod_qoda.cli.runs import PHASES, Run

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

MOST_PANELS = 6


def losses(runs: Sequence[Run]) -> Any | None:
    """What the script wrote, by step and by bytes sent: losses, distances, evaluations."""
    wanted: dict[tuple[str, str], None] = {}
    for run in runs:
        for event in ("eval", "step"):
            for name in run.own_columns(event):
                values = run.column(name, event)[1]
                if len(values) == 1 or np.ptp(values) > 0:  # constants are no curves
                    wanted[event, name] = None
    if not wanted:
        return None
    # Evaluations first, and of a step's numbers those that call themselves losses.
    order = sorted(wanted, key=lambda key: (key[0] != "eval", "loss" not in key[1]))[:MOST_PANELS]
    figure, axes = plt.subplots(
        len(order), 2, figsize=(11, 2.9 * len(order)), squeeze=False, layout="constrained"
    )
    for (event, name), (left, right) in zip(order, axes, strict=True):
        for number, run in enumerate(runs):
            steps, values = run.column(name, event)
            if not len(steps):
                continue
            at, sent = run.sent()
            megabytes = np.interp(steps, at, sent, left=0.0) / 1e6
            for axis, x in ((left, steps), (right, megabytes)):
                if event == "step":
                    axis.plot(x, values, color=f"C{number}", alpha=0.2, lw=0.7)
                axis.plot(x, _smooth(values, event), color=f"C{number}", label=run.label)
        left.set(xlabel="step", ylabel=name)
        right.set(xlabel="MB handed to Horovod by one rank", xscale="symlog")
        for axis in (left, right):
            axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    return figure


def sizes(runs: Sequence[Run]) -> Any:
    """Bytes sent so far, the ratio to raw gradients, and bits beside their entropy, by step."""
    figure, (total, ratio, bits) = plt.subplots(1, 3, figsize=(14, 3.6), layout="constrained")
    for number, run in enumerate(runs):
        color = f"C{number}"
        steps, sent = run.sent()
        total.plot(steps, sent / 1e6, color=color, label=run.label)
        at, wire = run.column("wire_bytes")
        raw = run.column("raw_bytes")[1]
        ratio.plot(at, raw / np.maximum(wire, 1), color=color, label=run.label)
        bits.plot(*run.column("coded_bits"), color=color, label=f"{run.label}, coded")
        seen, entropy = run.column("entropy_bits")
        bits.plot(seen, entropy, color=color, ls="", marker="+", label=f"{run.label}, entropy")
    total.set(xlabel="step", ylabel="MB handed to Horovod by one rank", yscale="log")
    ratio.set(xlabel="step", ylabel="raw / wire", ylim=(0, None))
    bits.set(xlabel="step", ylabel="bits a quantised coordinate")
    for axis in (total, ratio, bits):
        axis.grid(alpha=0.3)
    total.legend(fontsize=8)
    if bits.lines and any(len(line.get_xdata()) for line in bits.lines):
        bits.legend(fontsize=7)
    return figure


def layers(run: Run) -> Any | None:
    """Heat maps over layers and time: bits a coordinate, and relative error of the quantiser."""
    names, steps, bits = run.layers("bits")
    if not names or not len(steps):
        return None
    error = run.layers("error")[2]
    rows = len(names)
    figure, axes = plt.subplots(
        1, 2, figsize=(13, 1.4 + 0.2 * min(rows, 80)), layout="constrained", sharey=True
    )
    quantised = np.where(bits < 32, bits, np.nan)  # raw layers would wash out the rest
    shown = np.log10(np.where(error > 0, error, np.nan))
    panels = ((quantised, "bits a coordinate (blank: raw)"), (shown, "log10 of relative error"))
    for axis, (values, title) in zip(axes, panels, strict=True):
        image = axis.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis")
        figure.colorbar(image, ax=axis)
        ticks = np.unique(np.linspace(0, len(steps) - 1, 8).astype(int))
        axis.set_xticks(ticks, [f"{steps[i]:.0f}" for i in ticks])
        axis.set(xlabel="step", title=f"{run.label}: {title}")
    if rows <= 80:
        axes[0].set_yticks(range(rows), names, fontsize=6)
    return figure


def phases(runs: Sequence[Run]) -> Any:
    """Median milliseconds of the parts of a step, and the step by time. Parts overlap."""
    figure, (bars, curve) = plt.subplots(1, 2, figsize=(12, 3.8), layout="constrained")
    width = 0.8 / len(runs)
    names = [name.removesuffix("_s") for name in PHASES]
    for number, run in enumerate(runs):
        means = run.summary()
        heights = [means[f"{name}, ms"] for name in names]
        at = np.arange(len(names)) + (number - (len(runs) - 1) / 2) * width
        bars.bar(at, np.nan_to_num(heights), width, color=f"C{number}", label=run.label)
        steps, seconds = run.column("step_s")
        curve.plot(steps, 1e3 * seconds, color=f"C{number}", alpha=0.2, lw=0.7)
        curve.plot(steps, 1e3 * _smooth(seconds, "step"), color=f"C{number}", label=run.label)
    bars.set_xticks(range(len(names)), names)
    bars.set(ylabel="median ms of a step (parts overlap)")
    curve.set(xlabel="step", ylabel="ms of a step", yscale="log")
    for axis in (bars, curve):
        axis.grid(alpha=0.3)
    bars.legend(fontsize=8)
    return figure


def close(figure: Any) -> None:
    plt.close(figure)


def _smooth(values: np.ndarray, event: str) -> np.ndarray:
    """Running mean over a fiftieth of the steps; evaluations, which are few, as they are."""
    width = max(1, len(values) // 50) if event == "step" else 1
    if width == 1:
        return values
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")

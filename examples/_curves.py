"""Curves and table of a language model's run, from the lines its monitor wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

Lines = Sequence[Mapping[str, Any]]


def plot(path: Path, runs: Mapping[str, Lines]) -> None:
    """Writes training loss by step, and held-out loss by step and by megabytes sent.

    Args:
        runs: label -> lines of its metrics.jsonl (``horovod_qoda.monitor.read_lines``).
    """
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    for number, (label, lines) in enumerate(runs.items()):
        color = f"C{number}"
        steps = [line for line in lines if line["event"] == "step"]
        axes[0].plot(
            [line["step"] for line in steps],
            [line["loss"] for line in steps],
            color=color, lw=0.7, label=label,
        )  # fmt: skip
        sent, at, losses, megabytes = 0.0, [], [], []
        for line in lines:
            sent += line["wire_bytes"] / 1e6 if line["event"] == "step" else 0.0
            if line["event"] == "eval" and line["step"]:
                at.append(line["step"])
                losses.append(line["nats"])
                megabytes.append(sent)
        axes[1].plot(at, losses, color=color, marker=".", label=label)
        axes[2].plot(megabytes, losses, color=color, marker=".", label=label)
    axes[0].set(xlabel="step", ylabel="nats a symbol", title="training loss of rank 0")
    axes[1].set(xlabel="step", ylabel="nats a symbol", title="held-out loss")
    axes[2].set(xlabel="megabytes handed to Horovod, one rank", xscale="log")
    axes[2].set_title("held-out loss against what was sent")
    for axis in axes:
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(lines: Lines, symbols_per_step: int) -> str:
    """What the run reached, sent and took, as text.

    Args:
        symbols_per_step: of all ranks together.
    """
    summary = lines[-1]
    evaluations = [line for line in lines if line["event"] == "eval"]
    rows: list[tuple[str, Any, str]] = [("steps", summary["step"], "d")]
    for title, key in (
        ("held-out loss, nats a symbol", "nats"),
        ("held-out perplexity a symbol", "perplexity"),
        ("held-out bits per byte", "bits_per_byte"),
    ):
        if key in evaluations[0]:
            rows.append((f"{title}: start", evaluations[0][key], ".3f"))
            rows.append(("  end", evaluations[-1][key], ".3f"))
    step_s = summary["per_step"]["step_s"]
    rows += [
        ("gradients a step (raw), MB a rank", summary["raw_bytes"] / summary["step"] / 1e6, ".3f"),
        ("handed to Horovod, MB a rank", summary["wire_bytes"] / summary["step"] / 1e6, ".3f"),
        ("ratio raw / wire", summary["ratio"], ".2f"),
        ("coded bits per coordinate", summary["coded_bits"], ".3f"),
        ("symbols a second, all ranks", symbols_per_step / step_s if step_s else None, ".0f"),
    ]
    cells = ((title, "-" if value is None else format(value, form)) for title, value, form in rows)
    return "\n".join(f"{title:44}{cell:>14}" for title, cell in cells)

"""The demo's table: two runs side by side, from the lines their monitors wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from horovod_qoda.monitor import link_bytes, predict

Lines = Sequence[Mapping[str, Any]]
LINKS = (("1 Gbit/s", 1e9), ("100 Mbit/s", 1e8))


def compare(compressed: Lines, plain: Lines) -> str:
    """The table and what it does and does not show, as text.

    Args:
        compressed, plain: lines of metrics.jsonl; each must end with its summary.

    Raises:
        ValueError: a run has no summary, so it did not end properly.
    """
    runs = [_figures(compressed), _figures(plain)]
    # The players compute the same in both runs. Where ranks share cores the codec's threads make
    # computing seem longer, so the smaller of the two measurements is nearer to the truth.
    compute_s = min(run["compute_s"] for run in runs)
    for run in runs:
        for label, rate in LINKS:
            run[label] = 1e3 * predict(
                run["topology"],
                run["ranks"],
                run["wire"],
                rate,
                compute_s=compute_s,
                encode_s=run["encode_s"],
                decode_s=run["decode_s"],
            )
    rows = [_row(*spec, runs) for spec in ROWS]
    ours, theirs = runs
    ranks = ours["ranks"]
    more = ours["step"] - theirs["step"]
    verdict = (
        f"costs {more:.0f} ms a step here"
        if more > 0
        else f"cost no time here ({-more:.0f} ms a step less)"
    )
    notes = (
        f"\nAll {ranks} ranks are on one machine, where there is no slow wire: compression\n"
        f"{verdict}. Predicted step = compute ({1e3 * compute_s:.0f} ms, the smaller of both\n"
        "runs) + encode + wire + decode: nothing hidden, no latency, one rank a host. The parts\n"
        "are measured with ranks sharing this machine's cores; encode, exchange and decode\n"
        "overlap with compute, so they do not add up to the step. Wasserstein distances are\n"
        "sliced, to held-out images."
    )
    head = f"{'':44}{'layerwise':>14}{'none':>14}"
    return "\n".join(["", head, *rows, notes])


def _figures(lines: Lines) -> dict[str, Any]:
    summary = lines[-1]
    if summary["event"] != "summary":
        raise ValueError("metrics.jsonl has no summary as its last line: the run was cut short")
    evaluations = [line for line in lines if line["event"] == "eval"]
    first, last = evaluations[0], evaluations[-1]
    times = {name: value or 0.0 for name, value in summary["per_step"].items()}
    count = summary["exchanges"]
    wire = summary["wire_bytes"] / count
    return {
        **{name: summary[name] for name in ("ratio", "topology", "ranks", "coded_bits", "hidden")},
        **{name: times[name] for name in ("compute_s", "encode_s", "decode_s")},
        **{name.removesuffix("_s"): 1e3 * value for name, value in times.items()},
        "steps": summary["step"],
        "raw_mb": summary["raw_bytes"] / count / 1e6,
        "wire": wire,
        "wire_mb": wire / 1e6,
        "link_mb": link_bytes(summary["topology"], wire, summary["ranks"]) / 1e6,
        "sampled_coded": summary["sampled_coded_bits"],
        "entropy": summary["entropy_bits"],
        "sampled": summary["sampled"],
        "start": first["distance"],
        "last": last["distance"],
        "average": last["distance_average"],
        "floor": last["floor"],
        "hidden_percent": None if summary["hidden"] is None else 100 * summary["hidden"],
    }


ROWS: tuple[tuple[str, str, str], ...] = (
    ("joint steps", "steps", "d"),
    ("gradients a step (raw), MB a rank", "raw_mb", ".3f"),
    ("handed to Horovod (wire), MB a rank", "wire_mb", ".3f"),
    ("ratio raw / wire", "ratio", ".2f"),
    ("over a rank's link, MB each way", "link_mb", ".3f"),
    ("topology", "topology", "s"),
    ("coded bits per coordinate", "coded_bits", ".3f"),
    ("  the same in exchanges that were sampled", "sampled_coded", ".3f"),
    ("  entropy of their symbols, buffers pooled", "entropy", ".3f"),
    ("  exchanges sampled", "sampled", "d"),
    ("step, ms", "step", ".1f"),
    ("  compute", "compute", ".1f"),
    ("  blocked by the exchange", "wait", ".1f"),
    ("  encode", "encode", ".1f"),
    ("  exchange (collectives under way)", "exchange", ".1f"),
    ("  decode", "decode", ".1f"),
    ("  exchange hidden behind backward, %", "hidden_percent", ".0f"),
    ("Wasserstein distance at the start", "start", ".4f"),
    ("  at the end, last iterate", "last", ".4f"),
    ("  at the end, ergodic average", "average", ".4f"),
    ("  of real images (floor)", "floor", ".4f"),
    *((f"step predicted at {label}, ms", label, ".0f") for label, _ in LINKS),
)


def _row(title: str, key: str, form: str, runs: Sequence[Mapping[str, Any]]) -> str:
    cells = ["-" if run[key] is None else format(run[key], form) for run in runs]
    return f"{title:44}" + "".join(f"{cell:>14}" for cell in cells)

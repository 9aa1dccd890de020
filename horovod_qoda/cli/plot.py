"""``horovod-qoda plot RUN...``: curves of runs, compared; PNG files and one page of HTML.

    horovod-qoda plot runs/demo runs/demo-none
    horovod-qoda plot runs/a/metrics.jsonl --out /tmp/plots

A RUN is a folder with a metrics.jsonl, or such a file, as ``horovod_qoda.monitor`` writes it; a job
that is still running will do. The page holds its figures within itself.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from horovod_qoda.cli import runs as reading

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="horovod-qoda plot", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, help="folder; default: plots, beside the first run")
    options = parser.parse_args(argv)
    try:
        found = reading.load(options.runs)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        from horovod_qoda.cli import figures
    except ImportError:
        print("horovod-qoda plot needs matplotlib: pip install matplotlib", file=sys.stderr)
        return 1
    first = options.runs[0] if options.runs[0].is_dir() else options.runs[0].parent
    folder = options.out or first / "plots"
    folder.mkdir(parents=True, exist_ok=True)

    made: dict[str, Any] = {
        "loss": figures.losses(found),
        "bytes": figures.sizes(found),
        "phases": figures.phases(found),
    }
    for number, run in enumerate(found):
        made[f"layers-{number + 1}" if len(found) > 1 else "layers"] = figures.layers(run)
    images = {}
    for name, figure in made.items():
        if figure is None:
            continue
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format="png")
        figures.close(figure)
        images[name] = buffer.getvalue()
        (folder / f"{name}.png").write_bytes(images[name])
    (folder / "index.html").write_text(page(found, images), encoding="utf-8")
    print(f"{folder / 'index.html'} and {', '.join(f'{name}.png' for name in images)}")
    return 0


def page(found: Sequence[reading.Run], images: dict[str, bytes]) -> str:
    """One page of HTML: totals, the settings that differ, and the figures, nothing outside it."""
    title = html.escape(" / ".join(run.label for run in found))
    labels = [run.label for run in found]
    totals = [run.summary() for run in found]
    body = [f"<h1>{title}</h1>", _table("", labels, {
        name: [_number(one[name]) for one in totals] for name in totals[0]
    })]  # fmt: skip
    body.append("<p>Times are medians over steps; parts overlap.</p>")
    settings = {
        name: [str(run.settings().get(name, "")) for run in found]
        for name in reading.different(found)
    }
    if settings:
        heading = "Settings" if len(found) == 1 else "Settings that differ"
        body += [f"<h2>{heading}</h2>", _table("", labels, settings)]
    for name, data in images.items():
        code = base64.b64encode(data).decode()
        body += [f"<h2>{name}</h2>", f'<img alt="{name}" src="data:image/png;base64,{code}">']
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style>\n" + "\n".join(body) + "\n</html>\n"
    )


def _table(corner: str, columns: Sequence[str], rows: dict[str, list[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in [corner, *columns])
    lines = [f"<tr>{head}</tr>"]
    for name, cells in rows.items():
        text = "".join(f"<td>{html.escape(cell)}</td>" for cell in [name, *cells])
        lines.append(f"<tr>{text}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"

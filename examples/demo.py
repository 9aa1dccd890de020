"""Trains examples/wgan.py twice, compressed and not, and prints both side by side.

    python examples/demo.py --np 4 --steps 1000          # what `make demo` runs
    python examples/demo.py --np 2 --steps 200 --bits 2 --topology allgather

Flags that are not listed here go to examples/wgan.py. Results are in runs/NAME (compressed, and the
figures of both) and runs/NAME-none.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for launch/, which is no installed package

import _data  # noqa: E402
import _plots  # noqa: E402
import _progress  # noqa: E402
import _table  # noqa: E402
import torch  # noqa: E402

import launch.run  # noqa: E402
from horovod_qoda.monitor import read_lines  # noqa: E402
from launch.errors import SetupError  # noqa: E402

# What Horovod's launcher writes before each line of a rank.
_TAG = re.compile(r"^\[\d+,\d+\]<std(?:out|err)>: ?")


class JobFailed(Exception):
    pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--np", type=int, default=4, help="ranks")
    parser.add_argument("--steps", type=int, default=1000, help="joint steps of each run")
    parser.add_argument("--optimizer", default="qoda")
    parser.add_argument("--name", default="demo")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST, or: digits")
    args, more = parser.parse_known_args()
    if any(flag.split("=")[0] == "--compression" for flag in more):
        parser.error("--compression: the demo runs layerwise and none; use examples/wgan.py")

    try:
        # Before the launch, so that no rank waits for a download with a collective open.
        folder = _data.locate(args.data) or _data.DIGITS
        common = ["--steps", args.steps, "--optimizer", args.optimizer]
        common += ["--runs", args.runs, "--data", folder]
        for name, compression in ((args.name, "layerwise"), (f"{args.name}-none", "none")):
            wanted = ["--name", name, "--compression", compression]
            run(args.np, [str(word) for word in [*wanted, *common, *more]])
    except (JobFailed, SetupError, ValueError, FileNotFoundError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1

    compressed, plain = args.runs / args.name, args.runs / f"{args.name}-none"
    lines = {
        "layerwise": read_lines(compressed / "metrics.jsonl"),
        "none": read_lines(plain / "metrics.jsonl"),
    }
    _plots.curves(compressed / "curves.png", lines)
    _plots.samples(compressed / "samples.png", both_samples(compressed, plain))
    print(_table.compare(lines["layerwise"], lines["none"]))
    print(
        f"\nresults: {compressed} (samples.png, curves.png, metrics.jsonl, checkpoint.pt), {plain}"
    )
    return 0


def run(ranks: int, flags: list[str]) -> None:
    """Runs examples/wgan.py on `ranks` ranks, passing its output on without the launcher's tags.

    Raises:
        JobFailed: it ended with another status than 0.
    """
    # On a terminal the bar moves twice a second; in a log file a line every ten seconds is enough.
    pause = "0.5" if sys.stdout.isatty() else "10"
    program = [sys.executable, str(ROOT / "examples" / "wgan.py"), "--progress", pause, *flags]
    job = launch.run.command(ranks, program, venv=Path(sys.prefix))
    print(f"\ndemo: {shlex.join(['wgan.py', *flags])}  ({'; '.join(job.notes) or 'no notes'})")
    sys.stdout.flush()
    process = subprocess.Popen(
        job.argv,
        env=job.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    screen = _progress.Screen(sys.stdout)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            screen.line(_TAG.sub("", line.rstrip("\n")))
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        screen.end()
    if process.wait() != 0:
        raise JobFailed(
            f"the job ended with status {process.returncode}; its output is above. The command: "
            f"{shlex.join(job.argv)}"
        )


def both_samples(compressed: Path, plain: Path) -> dict[str, Any]:
    """Panels of the compressed run, and the last ones of the other before the held-out images."""
    panels = torch.load(compressed / "checkpoint.pt", weights_only=True)["samples"]
    other = torch.load(plain / "checkpoint.pt", weights_only=True)["samples"]
    heldout = panels.pop("held-out")
    last = [title for title in other if title.startswith("step ")][0]
    return {**panels, f"{last}, uncompressed": other[last], "held-out images": heldout}


if __name__ == "__main__":
    raise SystemExit(main())

"""A progress bar that survives a launcher.

mpirun and horovodrun hold back what a rank writes until a line ends, and a bar that redraws itself
with carriage returns has one line only: it would appear when the job is over. So each update is a
line of its own, and whoever started the job on a terminal puts them on top of each other again.
"""

from __future__ import annotations

import re
import sys
from typing import IO

from tqdm import tqdm

_BAR = re.compile(r"^.*: +\d+%\|.*\|")


def progress(steps: int, label: str, seconds: float, *, shown: bool) -> tqdm:
    """A bar over `steps`, redrawn every `seconds`; on a terminal of its own an ordinary one."""
    stream: IO[str] = sys.stderr
    if not stream.isatty():
        stream = _Lines(stream)  # type: ignore[assignment]
    return tqdm(
        total=steps, desc=label, disable=not shown, mininterval=seconds, file=stream, ncols=100
    )


class _Lines:
    """Turns every redraw into a line."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


class Screen:
    """Passes lines on to a stream; on a terminal a bar overwrites the bar before it."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._bar_before = stream, False

    def line(self, text: str) -> None:
        """Writes one line, given without its end."""
        if not self._stream.isatty():
            self._stream.write(text + "\n")
        else:
            is_bar = _BAR.match(text) is not None
            clear = "\r\x1b[K" if is_bar and self._bar_before else "\n" * self._bar_before
            self._stream.write(clear + text + ("" if is_bar else "\n"))
            self._bar_before = is_bar
        self._stream.flush()

    def end(self) -> None:
        """Ends the line that a last bar left open."""
        if self._bar_before:
            self._stream.write("\n")
            self._bar_before = False

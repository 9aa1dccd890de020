"""Run a program, keep everything it prints in the log, and tell what failed."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class CommandFailed(Exception):
    """A program ended with another status than 0.

    Attributes:
        command: as it could be typed.
        output: what it printed, standard error included.
    """

    def __init__(self, command: str, output: str) -> None:
        super().__init__(f"{command}\n{tail(output)}")
        self.command = command
        self.output = output


def run(
    command: Sequence[str | os.PathLike[str]],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> str:
    """Run `command`, append its output to `log`, and return it.

    Raises:
        CommandFailed: it could not be started, ended with another status than 0, or ran past
            `timeout` seconds.
    """
    line = shlex.join(os.fspath(part) for part in command)
    try:
        done = subprocess.run(
            command,
            env=env,
            cwd=cwd,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        output, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as expired:
        # Python gives bytes here even where text was asked for.
        printed = expired.stdout or ""
        output = printed if isinstance(printed, str) else printed.decode(errors="replace")
        output, status = f"{output}\nran past {timeout} s", -1
    except OSError as error:
        output, status = str(error), -1
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        stream.write(f"$ {line}\n{output}\n")
    if status != 0:
        raise CommandFailed(line, output)
    return output


def tail(output: str, lines: int = 12) -> str:
    """The last lines of an output that say something."""
    return "\n".join([line for line in output.splitlines() if line.strip()][-lines:])

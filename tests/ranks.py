"""Start a program on real MPI ranks, and never leave one of them behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from launch import run as launcher

ROOT = Path(__file__).resolve().parents[1]

PATIENCE_S = 400.0
"""Limit of a job that ought to take seconds: on two cores that others use too, the start of a few
ranks alone has taken 80 s. Only a job that hangs comes near it."""


@dataclass(frozen=True)
class Finished:
    """What a job printed, all ranks together, and how it ended."""

    stdout: str
    stderr: str
    returncode: int


class Runner(Protocol):
    def __call__(
        self,
        np: int,
        target: str | os.PathLike[str],
        *args: object,
        timeout: float = ...,
        check: bool = ...,
        with_horovodrun: bool = ...,
        env: dict[str, str] | None = ...,
        cwd: Path = ...,
    ) -> Finished: ...


def run(
    np: int,
    target: str | os.PathLike[str],
    *args: object,
    timeout: float = PATIENCE_S,
    check: bool = True,
    with_horovodrun: bool = False,
    env: dict[str, str] | None = None,
    cwd: Path = ROOT,
) -> Finished:
    """Run a Python file or module on `np` ranks.

    Args:
        target: a file ending in ".py" (relative to the checkout), or the name of a module.
        args: its arguments, turned into strings.
        timeout: seconds; when they have passed every process of the job is killed.
        check: fail the test, with all output, where the job does not end with 0.
        with_horovodrun: start with horovodrun; mpirun adds no prefix to the lines printed.
        env: variables on top of the test's own.
        cwd: working directory of the ranks; the checkout is on their PYTHONPATH.
    """
    name = os.fspath(target)
    program = [str(ROOT / name)] if name.endswith(".py") else ["-m", name]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    job = launcher.command(
        np,
        [sys.executable, *program, *map(str, args)],
        launcher="horovodrun" if with_horovodrun else "mpirun",
        venv=Path(sys.prefix),
        environ={**os.environ, "PYTHONPATH": path, **(env or {})},
    )
    return start(job.argv, job.env, timeout=timeout, check=check, cwd=cwd)


def start(
    argv: list[str], env: dict[str, str], *, timeout: float, check: bool = True, cwd: Path = ROOT
) -> Finished:
    """Run any command in a session of its own; arguments as for `run`."""
    process = subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    timed_out = False
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        timed_out = True
        _end_session(process)
        stdout, stderr = process.communicate()
    except BaseException:
        _end_session(process)
        raise
    finished = Finished(stdout, stderr, process.returncode)
    if timed_out or (check and process.returncode != 0):
        how = f"ran past {timeout} s" if timed_out else f"ended with {process.returncode}"
        pytest.fail(
            f"the job {how}: {' '.join(argv)}\n--- stdout\n{stdout}\n--- stderr\n{stderr}",
            pytrace=False,
        )
    return finished


def _end_session(process: subprocess.Popen[str]) -> None:
    """End every process of the session that `process` leads.

    The launcher puts each rank into a process group of its own, so its group alone is not enough;
    asked first, it takes its ranks along and removes its files.
    """
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        pass
    deadline = time.monotonic() + 10
    while (members := _session_members(process.pid)) and time.monotonic() < deadline:
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.poll()
        time.sleep(0.05)


def _session_members(session: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The program's name, in parentheses, may hold spaces: fields count from the last one.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        state, member_of = fields[0], int(fields[3])
        if member_of == session and state not in "ZX":
            members.append(int(entry.name))
    return members

"""The proof at the end of set-up: Horovod says what it was built with, and two ranks find each
other."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from launch import run as launcher
from launch.errors import SetupError
from launch.shell import CommandFailed, run, tail

RANKS = 2
_PROGRAM = Path(__file__).with_name("allgather.py")


def check_build(environment: Path, log: Path, *needed: str) -> None:
    """``horovodrun --check-build`` names PyTorch, MPI and what else is ``needed``."""
    path = os.pathsep.join([str(environment / "bin"), os.environ.get("PATH", "")])
    try:
        command = [*launcher.horovodrun(environment, path), "--check-build"]
        printed = run(command, log, env={**os.environ, "PATH": path})
    except CommandFailed as failed:
        raise library_error(failed.output) from failed
    for what in ("PyTorch", "MPI", *needed):
        if not re.search(rf"\[X\] {what}\b", printed):
            raise SetupError(
                f"Horovod was built without {what}:\n{tail(printed, 20)}",
                "build it anew: make setup ARGS=--rebuild",
            )


def two_ranks(environment: Path, log: Path, *, timeout: float = 180) -> None:
    """Two ranks gather each other's bytes.

    Args:
        timeout: seconds. Two Python processes that import PyTorch take 60 s on a slow shared disk.
    """
    python = str(environment / "bin" / "python")
    job = launcher.command(RANKS, [python, str(_PROGRAM)], venv=environment)
    try:
        printed = run(job.argv, log, env=job.env, timeout=timeout)
    except CommandFailed as failed:
        raise job_error(failed.output) from failed
    check_gathered(printed)


def check_gathered(printed: str) -> None:
    """What the ranks printed is what `RANKS` ranks that see each other print.

    Raises:
        SetupError: they do not see each other, or a rank gathered something else.
    """
    said = [json.loads(found) for found in re.findall(r"\{.*?\}", printed)]
    if said and all(one["size"] == 1 for one in said):
        raise SetupError(
            f"{len(said)} ranks were started and each believes it is alone: "
            "mpirun is of another MPI than the one Horovod was built with",
            "put the MPI that Horovod was built with first on PATH, or build Horovod for this one: "
            "make setup ARGS=--rebuild",
        )
    expected = [rank + 1 for rank in range(RANKS) for _ in range(rank + 1)]
    right = [one for one in said if one["size"] == RANKS and one["gathered"] == expected]
    if len(right) != RANKS:
        raise SetupError(
            f"an all-gather on {RANKS} ranks gave something else than was sent:\n{tail(printed)}",
            "build Horovod anew: make setup ARGS=--rebuild",
        )


def job_error(output: str) -> SetupError:
    """Why a job did not start or did not end, from what it printed."""
    if "run as root" in output or "run-as-root" in output:
        return SetupError(
            "mpirun refuses to run as root",
            "run as another user, or allow it: export OMPI_ALLOW_RUN_AS_ROOT=1 "
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
        )
    if "not enough slots" in output:
        return SetupError(
            f"mpirun has fewer than {RANKS} slots here",
            "inside a batch allocation ask for more tasks; elsewhere check a hostfile's slots",
        )
    if "ran past" in output:
        return SetupError(
            f"{RANKS} ranks on this machine did not finish an all-gather:\n{tail(output)}",
            "often a firewall on, or a VPN's interface among, those that MPI tries: "
            "export OMPI_MCA_btl_tcp_if_include=lo and run make setup again",
        )
    return library_error(output)


def library_error(output: str) -> SetupError:
    """Why Horovod's library does not load, from what was printed."""
    if "undefined symbol" in output:
        return SetupError(
            "Horovod was built for another PyTorch than the one that is installed "
            f"({tail(output, 1)})",
            "build it for this one: make setup ARGS=--rebuild",
        )
    if re.search(r"libmpi\S*: cannot open shared object", output):
        return SetupError(
            "the MPI that Horovod was built with is gone: its library is not found",
            "put it back (on a cluster: module load), or build Horovod for another: "
            "make setup ARGS=--rebuild",
        )
    return SetupError(f"Horovod does not run:\n{tail(output)}", "the log has all of it")

"""The command line that starts N ranks on this machine, right for the MPI that is there.

As a program:   python launch/run.py -np 4 [--mpirun] [--print] -- python examples/wgan.py
From Python:    job = launch.run.command(4, ["python", "examples/wgan.py"])
                subprocess.run(job.argv, env=job.env)

Horovod's own launcher is the default; ``--mpirun`` skips it (no `[1,0]<stdout>:` before each line).
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: the checkout, not launch/, belongs on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch import stamp
from launch.cores import physical_cores
from launch.errors import SetupError
from launch.mpi import Mpi, search
from launch.paths import bin_dir, default_venv

# Ranks that wait spin by default; where ranks share cores the spinning takes the core from the rank
# that is waited for, which costs a factor of 2 to 40.
_YIELD = ("--mca", "mpi_yield_when_idle", "1")


@dataclass(frozen=True)
class Job:
    """A launcher's command line and environment; `notes` are what the user should be told."""

    argv: list[str]
    env: dict[str, str]
    notes: tuple[str, ...]


def command(
    np: int,
    argv: Sequence[str],
    *,
    launcher: str = "horovodrun",
    venv: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Job:
    """The job that runs `argv` on `np` ranks of this machine.

    Args:
        np: number of ranks, at least 1.
        argv: program and arguments; the environment's programs come first on PATH, so "python" is
            its Python.
        launcher: "horovodrun" or "mpirun".
        venv: the virtual environment; the checkout's by default.
        environ: variables that the job starts from.

    Raises:
        ValueError: `np`, `launcher` or `argv` makes no job.
        SetupError: there is no MPI, or not the one that Horovod was built with.
    """
    if isinstance(np, bool) or not isinstance(np, int) or np < 1:
        raise ValueError(f"np must be a whole number of ranks, at least 1, not {np!r}")
    if launcher not in ("horovodrun", "mpirun"):
        raise ValueError(f"launcher must be 'horovodrun' or 'mpirun', not {launcher!r}")
    if not argv:
        raise ValueError("argv is empty: nothing to start")
    venv = default_venv() if venv is None else venv
    env = dict(environ)
    env["PATH"] = os.pathsep.join([str(bin_dir(venv)), env.get("PATH", os.defpath)])
    mpi = _checked_mpi(env["PATH"], venv)
    notes = []

    cores = physical_cores()
    if "OMP_NUM_THREADS" not in env:
        # More compute threads than cores make every rank slower.
        env["OMP_NUM_THREADS"] = str(max(1, cores // np))
    if os.geteuid() == 0 and mpi.family == "Open MPI" and not _root_allowed(env):
        env["OMPI_ALLOW_RUN_AS_ROOT"] = env["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
        notes.append("running as root: OMPI_ALLOW_RUN_AS_ROOT set for this job")
    if np > cores:
        notes.append(f"{np} ranks share {cores} cores")

    if launcher == "mpirun":
        start = [mpi.mpirun, "-np", str(np), *_mpirun_flags(mpi, np > cores)]
    else:
        start = [
            *horovodrun(venv, env["PATH"]),
            "-np",
            str(np),
            *_horovodrun_flags(mpi, np > cores),
        ]
    return Job([*start, *argv], env, tuple(notes))


def horovodrun(venv: Path, path: str) -> list[str]:
    """How to start Horovod's launcher."""
    found = shutil.which("horovodrun", path=path)
    if found is not None:
        return [found]
    if "horovod" not in stamp.read(venv):
        raise SetupError("horovodrun is not installed", "make setup")
    # Horovod is the calling Python's, whose programs are not on PATH.
    return [str(bin_dir(venv) / "python"), "-m", "horovod.runner.launch"]


def _mpirun_flags(mpi: Mpi, crowded: bool) -> list[str]:
    if mpi.family != "Open MPI":
        return []  # the others neither bind nor count slots on one machine by default
    return [*_binding(mpi, crowded), *_YIELD]


def _horovodrun_flags(mpi: Mpi, crowded: bool) -> list[str]:
    if mpi.family != "Open MPI":
        return []
    # Horovod writes `-bind-to none`, which Open MPI 5 refuses: both dashes are needed there.
    return [
        f"--binding-args={shlex.join(_binding(mpi, crowded))}",
        f"--mpi-args={shlex.join(_YIELD)}",
    ]


def _binding(mpi: Mpi, crowded: bool) -> list[str]:
    # Ranks are not bound to cores: each also has Horovod's thread and the codec's.
    if mpi.major >= 5:
        return ["--bind-to", "none", "--map-by", "slot:OVERSUBSCRIBE" if crowded else "slot"]
    return ["--bind-to", "none", "--map-by", "slot", *(["--oversubscribe"] if crowded else [])]


def _checked_mpi(path: str, venv: Path) -> Mpi:
    mpi = search(path, inside=venv)
    built = stamp.read(venv).get("mpi")
    if mpi is None:
        wanted = f"put {built} first on PATH, or run: make setup" if built else "make setup"
        raise SetupError("no MPI launcher (mpirun) found on PATH", wanted)
    if built and built != mpi.identity:
        raise SetupError(
            f"Horovod was built with {built}, but the mpirun found first is of {mpi.identity}; "
            "started by it every rank would believe it is alone",
            f"put {built} first on PATH, or build Horovod for this one: make setup",
        )
    return mpi


def _root_allowed(env: Mapping[str, str]) -> bool:
    return env.get("OMPI_ALLOW_RUN_AS_ROOT") == "1" == env.get("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")


def main() -> int:
    parser = argparse.ArgumentParser(prog="launch/run.py", description=__doc__.splitlines()[0])
    parser.add_argument("-np", type=int, required=True, help="number of ranks")
    parser.add_argument("--mpirun", action="store_true", help="use mpirun, not horovodrun")
    parser.add_argument("--print", action="store_true", help="print the command and do not run it")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ARGS")
    options = parser.parse_args()
    program = options.program[1:] if options.program[:1] == ["--"] else options.program
    try:
        job = command(options.np, program, launcher="mpirun" if options.mpirun else "horovodrun")
    except (SetupError, ValueError) as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2
    if options.print:
        print(shlex.join(job.argv))
        return 0
    for note in job.notes:
        print(f"launch: {note}", file=sys.stderr)
    sys.stderr.flush()
    os.execvpe(job.argv[0], job.argv, job.env)


if __name__ == "__main__":
    raise SystemExit(main())

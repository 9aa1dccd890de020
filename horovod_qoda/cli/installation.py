"""Checks of one process: versions, Horovod and its MPI, the codec. None of them needs ranks."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import horovod_qoda
from horovod_qoda import _horovod
from horovod_qoda.cli import mpi
from horovod_qoda.cli.findings import BROKEN, NOTE, Finding

REBUILD_CODEC = (
    "in a checkout: make setup; elsewhere, with a C++17 compiler: pip install --no-build-isolation "
    "--force-reinstall --no-deps horovod_qoda"
)
THREAD_LEVELS_TOO_LOW = ("SINGLE", "FUNNELED")
# What each code path of the codec needs, as /proc/cpuinfo names it (native/dispatch.cpp).
AVX2 = {"avx2", "bmi2"}
AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512_vbmi2", "bmi2"}


def versions() -> Iterator[Finding]:
    """Of Python and of the packages that a job uses."""
    python = platform.python_version()
    text = f"Python {python}, horovod_qoda {horovod_qoda.__version__}"
    for name in ("torch", "horovod", "numpy"):
        text += f", {name} {version(name) or 'missing'}"
    yield Finding("versions", f"{text}; {sys.executable}")


def version(package: str) -> str:
    """Installed version, empty where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def horovod() -> Iterator[Finding]:
    """Whether Horovod loads, was built for this PyTorch, and with what."""
    try:
        hvd = _horovod.require()
    except ImportError as error:
        problem, _, command = str(error).partition(":\n")
        yield Finding("horovod", problem, BROKEN, command.strip() or "make setup")
        return
    import torch

    built = built_for()
    if built and built != torch.__version__:
        yield Finding(
            "horovod",
            f"built for PyTorch {built}, and {torch.__version__} is installed: it loads, but their "
            "C++ interfaces may differ",
            NOTE,
            "\n" + _horovod.install_command(),
        )
    flags = {
        "MPI": hvd.mpi_built(),
        "Gloo": hvd.gloo_built(),
        "NCCL": hvd.nccl_built(),
        "CUDA": hvd.cuda_built(),
        "ROCm": hvd.rocm_built(),
        "oneCCL": hvd.ccl_built(),
    }
    yes = ", ".join(name for name, flag in flags.items() if flag)
    no = ", ".join(name for name, flag in flags.items() if not flag)
    yield Finding("horovod", f"built with {yes}; without {no}; for PyTorch {built or 'unknown'}")


def built_for() -> str:
    """The PyTorch that Horovod's build wrote down; empty where it wrote none."""
    package = importlib.import_module("horovod")
    try:
        text = (Path(package.__file__ or "").parent / "metadata.json").read_text()
        return str(json.loads(text).get("pytorch", ""))
    except (OSError, ValueError):
        return ""


def mpi_library(library: mpi.Library, launcher: tuple[str, str]) -> Iterator[Finding]:
    """The MPI that Horovod loads against the launcher that is found first.

    Args:
        library: of this process, after Horovod was imported.
        launcher: path and ``--version`` text of mpirun.
    """
    if not library.path:
        yield Finding(
            "mpi",
            "Horovod was built with an MPI, and no MPI library is loaded in this process",
            NOTE,
            "start a job of two ranks; if each is alone, build Horovod anew: make setup",
        )
        return
    family, number = mpi.parse(library.version)
    level = library.thread_level()
    text = f"{family or library.version[:60]} {number} ({library.path})"
    if level:
        text += f"; thread level {level}"
    yield Finding("mpi", text)
    if level in THREAD_LEVELS_TOO_LOW:
        # Horovod calls MPI from a thread of its own.
        yield Finding(
            "mpi",
            f"MPI gives thread level {level}, and Horovod calls it from its own thread",
            BROKEN,
            "an MPI built with thread support (Open MPI: --enable-mpi-thread-multiple before 3.0)",
        )
    path, printed = launcher
    if not path:
        yield Finding("launcher", "no mpirun on PATH: jobs start with srun or jsrun here")
        return
    theirs = mpi.parse(printed)
    same = theirs[0] == family and theirs[1].split(".")[:2] == number.split(".")[:2]
    if theirs[0] and not same:
        yield Finding(
            "launcher",
            f"mpirun is of {' '.join(theirs)} ({path}), Horovod was built with {family} {number}: "
            "started by it every rank would believe that it is alone",
            BROKEN,
            f"export PATH={beside(library.path)}:$PATH, or build Horovod for the other:\n"
            + _horovod.install_command(),
        )
        return
    yield Finding("launcher", f"{' '.join(theirs) or 'unknown'} ({path})")


def beside(library: str) -> str:
    """The folder of programs of the MPI that a library belongs to, as far as it can be guessed."""
    for folder in Path(library).parents:
        if (folder / "bin" / "mpirun").exists():
            return str(folder / "bin")
    return "THE_BIN_FOLDER_OF_THAT_MPI"


def codec() -> Iterator[Finding]:
    """Whether the native codec loads, and which code path this CPU runs."""
    try:
        coding = importlib.import_module("horovod_qoda.coding")
        path = coding.simd()
    except Exception as error:  # an ImportError, or the C++ side refusing HOROVOD_QODA_SIMD
        yield Finding("codec", f"the native codec does not load: {error}", BROKEN, REBUILD_CODEC)
        return
    flags = cpu_flags()
    has = [n for n, wanted in (("AVX2", AVX2), ("AVX-512", AVX512)) if wanted <= flags]
    text = f"{path} path; CPU has {' and '.join(has) or 'neither AVX2 nor AVX-512'}"
    chosen = os.environ.get("HOROVOD_QODA_SIMD")
    fastest = "avx512" if "AVX-512" in has else "avx2" if "AVX2" in has else "portable"
    if chosen:
        yield Finding("codec", f"{text}; HOROVOD_QODA_SIMD={chosen} asks for it")
    elif path != fastest and platform.machine() == "x86_64":
        yield Finding("codec", f"{text}: the extension was built without the faster path", NOTE,
                      f"a newer compiler (GCC 9, Clang 9), then {REBUILD_CODEC}")  # fmt: skip
    else:
        yield Finding("codec", text)


def cpu_flags() -> set[str]:
    """Feature names of the first CPU; empty where the system does not list them."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()

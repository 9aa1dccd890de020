"""Where things are: the checkout, its virtual environment, the user's cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def default_venv() -> Path:
    """The checkout's environment, or ``HOROVOD_QODA_VENV``."""
    return Path(os.environ.get("HOROVOD_QODA_VENV") or ROOT / ".venv").absolute()


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's cache folder for this project, by the XDG base directory specification."""
    # The specification says to ignore a relative XDG_CACHE_HOME.
    base = environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "horovod_qoda"


def bin_dir(venv: Path) -> Path:
    """The environment's programs; those of the running Python where there is no environment."""
    folder = venv / "bin"
    return folder if (folder / "python").exists() else Path(sys.executable).parent


def build_jobs(environ: Mapping[str, str] = os.environ) -> int:
    """Compilers to run side by side: ``HOROVOD_QODA_BUILD_JOBS``, or up to 8 (each takes 2 GB)."""
    wanted = environ.get("HOROVOD_QODA_BUILD_JOBS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) else min(8, os.cpu_count() or 1)

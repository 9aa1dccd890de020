"""Debian's packages, for ``--system`` only: nothing else in set-up touches the machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from launch.errors import SetupError
from launch.shell import CommandFailed, run, tail


def missing(packages: Sequence[str], log: Path) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in packages if not _is_installed(name, log)]


def install(packages: Sequence[str], log: Path) -> None:
    """Install packages with apt-get, through sudo where not root.

    Raises:
        SetupError: this is no Debian, apt-get may not be used, or it failed.
    """
    apt = shutil.which("apt-get")
    if apt is None:
        raise SetupError(
            "--system is for Debian and its descendants: there is no apt-get here",
            f"install what {' '.join(packages)} are called here, then run make setup without it",
        )
    prefix = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        run([*prefix, apt, "update", "-q"], log, env=env)
        run(
            [*prefix, apt, "install", "-q", "-y", "--no-install-recommends", *packages],
            log,
            env=env,
        )
    except CommandFailed as failed:
        raise SetupError(
            f"apt-get could not install {' '.join(packages)}:\n{tail(failed.output, 4)}",
            f"sudo apt-get install {' '.join(packages)}, then run make setup again",
        ) from failed


def _is_installed(package: str, log: Path) -> bool:
    try:
        status = run(["dpkg-query", "--show", "--showformat=${db:Status-Status}", package], log)
    except CommandFailed:
        return False
    return status.strip() == "installed"

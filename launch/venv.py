"""The project's own virtual environment, and pip inside it."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from launch.errors import SetupError
from launch.shell import CommandFailed, run, tail

_NO_NETWORK = (
    "NewConnectionError",
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Name or service not known",
    "Network is unreachable",
    "Max retries exceeded",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
)


def ensure(venv: Path, *, system_site: bool, log: Path) -> str:
    """Make the environment if it is not there, broken, or of another Python; say what was done.

    Args:
        system_site: let it see the packages of the calling Python, whose PyTorch is to be kept.
    """
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if venv.exists():
        if not (venv / "pyvenv.cfg").exists() and any(venv.iterdir()):
            raise SetupError(
                f"{venv} is there and is not a virtual environment", "remove it, or choose another"
            )
        if _version(venv, log) == version:
            return "kept"
    try:
        flags = ["--system-site-packages"] if system_site else []
        run([sys.executable, "-m", "venv", "--clear", *flags, venv], log)
    except CommandFailed as failed:
        raise SetupError(
            f"the virtual environment could not be made: {tail(failed.output, 3)}",
            "Debian, Ubuntu: sudo apt-get install python3-venv (or: make setup ARGS=--system)",
        ) from failed
    if system_site and sys.prefix != sys.base_prefix:
        # Called from inside another environment: "system" would be what that one was made from.
        outer = sysconfig.get_path("purelib")
        (site_packages(venv) / "horovod_qoda_calling_python.pth").write_text(f"{outer}\n")
    return "made"


def site_packages(venv: Path) -> Path:
    """The environment's folder of packages."""
    base = {"base": str(venv), "platbase": str(venv)}
    return Path(sysconfig.get_path("purelib", "posix_prefix", vars=base))


def versions(venv: Path, names: Iterable[str], log: Path) -> dict[str, str | None]:
    """Versions of the packages that the environment's Python sees; None for those it does not."""
    program = (
        "import importlib.metadata as m, json, sys\n"
        "def v(n):\n"
        "    try: return m.version(n)\n"
        "    except m.PackageNotFoundError: return None\n"
        "print(json.dumps({n: v(n) for n in sys.argv[1:]}))"
    )
    printed = run([python(venv), "-c", program, *names], log)
    return json.loads(printed.splitlines()[-1])


def python(venv: Path) -> Path:
    return venv / "bin" / "python"


def pip_install(
    venv: Path, *arguments: str | Path, log: Path, env: dict[str, str] | None = None
) -> None:
    """``pip install`` in the environment.

    Raises:
        SetupError: nothing could be installed, with the reason pip gave turned into a remedy.
    """
    variables = {**os.environ, **(env or {}), "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        run([python(venv), "-m", "pip", "install", *arguments], log, env=variables)
    except CommandFailed as failed:
        raise pip_error(failed) from failed


def pip_error(failed: CommandFailed) -> SetupError:
    """What a failed pip means, from what it printed."""
    what = failed.command.partition(" -m ")[2] or failed.command
    if any(sign in failed.output for sign in _NO_NETWORK):
        return SetupError(
            f"no network: pip could not reach its package index ({what})",
            "check the connection and the proxy (https_proxy); where packages come from a mirror, "
            "name it (pip config set global.index-url URL); then run make setup again",
        )
    if "(from versions: none)" in failed.output:
        return SetupError(
            f"pip found no version at all ({what}): no network, or an index that lacks the package",
            "check the connection and the proxy (https_proxy), and what `pip config list` names as "
            "index-url; then run make setup again",
        )
    if "No matching distribution found" in failed.output:
        return SetupError(
            f"the package index has no version that fits this Python and machine ({what})",
            "try another Python: make setup PYTHON=python3.12",
        )
    if "No space left on device" in failed.output:
        return SetupError(f"the disk is full ({what})", "free some space and run make setup again")
    return SetupError(f"{what} failed:\n{tail(failed.output)}", "the log has all of it")


def _version(venv: Path, log: Path) -> str | None:
    try:
        program = "import sys; print('%d.%d' % sys.version_info[:2])"
        return run([python(venv), "-c", program], log).strip()
    except CommandFailed:
        return None

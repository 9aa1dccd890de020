"""This package: installed in place, its native extension built beside its sources."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from launch import paths, venv
from launch.errors import SetupError
from launch.shell import CommandFailed, run, tail

_METADATA = ("setup.py", "setup.cfg", "pyproject.toml")


def native_sources(root: Path) -> list[Path]:
    folder = root / "horovod_qoda" / "native"
    return sorted([*folder.glob("*.cpp"), *folder.glob("*.h*")])


def metadata_key(root: Path) -> str:
    """Changes when the installed metadata may have."""
    return content_hash(root / name for name in _METADATA)


def native_key(root: Path) -> str:
    """Changes when the extension must be built anew."""
    return content_hash([root / "setup.py", *native_sources(root)])


def content_hash(files: Iterable[Path]) -> str:
    """Hash over names and contents of files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:20]


def has_native(root: Path, suffix: str) -> bool:
    """Whether the extension lies beside its sources, or there are none to build it from."""
    built = root / "horovod_qoda" / "native" / f"_codec{suffix}"
    return built.exists() or not any(p.suffix == ".cpp" for p in native_sources(root))


def install(environment: Path, root: Path, log: Path) -> None:
    """Install the package in place; its extension is built by `build_native`."""
    venv.pip_install(
        environment,
        *("--no-build-isolation", "--no-deps", "--editable", str(root)),
        log=log,
        env={"HOROVOD_QODA_WITHOUT_NATIVE": "1"},
    )


def build_native(environment: Path, root: Path, log: Path) -> str:
    """Build the extension and import it; say what it was built for."""
    if not any(path.suffix == ".cpp" for path in native_sources(root)):
        return "no native sources"
    env = {**os.environ, "HOROVOD_QODA_BUILD_JOBS": str(paths.build_jobs())}
    env.pop("HOROVOD_QODA_WITHOUT_NATIVE", None)
    python = venv.python(environment)
    # --force links again even where only a file was removed; objects that are current stay.
    command: list[str | Path] = [python, "setup.py", "build_ext", "--inplace", "--force"]
    try:
        output = run(command, log, env=env, cwd=root)
    except CommandFailed as failed:
        raise SetupError(
            f"the native extension did not build:\n{tail(failed.output, 20)}",
            "a compiler of C++17 is needed (GCC 8, Clang 7 or newer); name another: CXX=...",
        ) from failed
    try:
        run([python, "-c", "import horovod_qoda.native._codec"], log, cwd=root)
    except CommandFailed as failed:
        raise SetupError(
            f"the native extension was built but cannot be imported:\n{tail(failed.output, 4)}",
            "was it compiled by another compiler than its C++ library is of? make clean setup",
        ) from failed
    refused = [line for line in output.splitlines() if line.startswith("setup.py: ")]
    return "built" + "".join(f"; {line.removeprefix('setup.py: ')}" for line in refused)

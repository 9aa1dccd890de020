"""Horovod as a wheel: built once for each combination of versions, then taken from the cache."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from launch import find, horovod_source, mpi, paths, pins, venv
from launch.cuda import Toolchain
from launch.errors import SetupError
from launch.mpi import Mpi
from launch.shell import CommandFailed, run

# MPI only: Gloo needs CMake older than 4, and the other frameworks are not there.
_BUILD = {
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITHOUT_GLOO": "1",
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
}
# GCC 13 and newer include less by themselves (horovod/horovod#3957).
_INCLUDES = "-include cstdint -include stdexcept -include string"


def key(environment: Path, used: Mpi, log: Path, toolchain: str | None = None) -> str:
    """Name of the cache folder: everything that the compiled library depends on.

    Args:
        toolchain: identity of what the CUDA operations are built with; None for a build without.
    """
    program = (
        "import json, sys, sysconfig, torch; print(json.dumps([torch.__version__, "
        "str(torch.version.cuda), torch.compiled_with_cxx11_abi(), "
        "sysconfig.get_config_var('SOABI'), sysconfig.get_platform()]))"
    )
    try:
        printed = run([venv.python(environment), "-c", program], log)
    except CommandFailed as failed:
        raise SetupError(
            f"the PyTorch that was found cannot be imported:\n{failed.output.strip()[-600:]}",
            "install one that works in that Python, or call set-up with another: "
            "make setup PYTHON=...",
        ) from failed
    torch_version, cuda, cxx11, soabi, platform = json.loads(printed.splitlines()[-1])
    parts = [
        f"horovod-{pins.HOROVOD}-r{horovod_source.RECIPE}",
        f"torch-{torch_version}-{'cpu' if cuda == 'None' else cuda}{'' if cxx11 else '-oldabi'}",
        f"{soabi}-{platform}",
        used.identity,
        *([toolchain] if toolchain else []),
    ]
    return "_".join(re.sub(r"[^\w.+]+", "-", part).strip("-") for part in parts)


def ensure(
    environment: Path,
    used: Mpi,
    torch_version: str,
    installed_key: str | None,
    log: Path,
    say: Callable[[str], None],
    *,
    gpu: Toolchain | str | None = None,
    rebuild: bool = False,
) -> tuple[str, str]:
    """Have Horovod in the environment; return its key and where it came from.

    Args:
        used: the MPI to build with.
        gpu: what to build the CUDA operations with; None for a build without. Its identity alone
            where it is not there now: then the wheel must be installed already, or in the cache.
        installed_key: key of the wheel that set-up installed here before, or None.
        rebuild: take neither the installed nor a cached one.
    """
    wanted = key(environment, used, log, gpu.identity if isinstance(gpu, Toolchain) else gpu)
    there = venv.versions(environment, ["horovod"], log)["horovod"]
    own = any(venv.site_packages(environment).glob("horovod-*.dist-info"))
    if there == pins.HOROVOD and not rebuild:
        if own and installed_key == wanted:
            return wanted, "kept"
        if not own and _works(environment, log, gpu is not None):
            nccl = " and NCCL" if gpu else ""
            return wanted, f"kept: the calling Python's own, built with MPI{nccl}"
    wheel, how = _wheel(environment, used, gpu, torch_version, wanted, log, say, rebuild)
    venv.pip_install(environment, *pins.HOROVOD_REQUIRES, log=log)
    venv.pip_install(environment, "--no-deps", "--force-reinstall", wheel, log=log)
    return wanted, how


def _works(environment: Path, log: Path, nccl: bool) -> bool:
    needed = "hvd.mpi_built() and hvd.nccl_built()" if nccl else "hvd.mpi_built()"
    program = f"import horovod.torch as hvd, sys; sys.exit(not ({needed}))"
    try:
        run([venv.python(environment), "-c", program], log)
    except CommandFailed:
        return False
    return True


def _wheel(
    environment: Path,
    used: Mpi,
    gpu: Toolchain | str | None,
    torch_version: str,
    wanted: str,
    log: Path,
    say: Callable[[str], None],
    rebuild: bool,
) -> tuple[Path, str]:
    folder = paths.cache_dir() / wanted
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"the cache folder cannot be made: {error}", "name another: XDG_CACHE_HOME=..."
        ) from error
    with locked(folder / "lock", lambda: say("horovod: another set-up is building it; waiting")):
        cached = sorted(folder.glob("horovod-*.whl"))
        if cached and not rebuild:
            return cached[0], f"from the cache, {folder.parent}"
        if isinstance(gpu, str):
            raise SetupError(
                f"Horovod must be built anew, and what it was built with ({gpu}) is not there",
                "load its modules (on a cluster: module load cuda) or name its folder: "
                f"CUDA_HOME=...; or set up without NCCL: rm -r {environment}; make setup",
            )
        nccl = " and NCCL" if gpu else ""
        say(f"horovod: building it with MPI{nccl} against this PyTorch (2 to 5 minutes)")
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="horovod-build-") as scratch:
            built = _build(environment, used, gpu, torch_version, Path(scratch), log)
            wheel = folder / built.name
            shutil.copyfile(built, folder / "unfinished")
            os.replace(folder / "unfinished", wheel)
        return wheel, f"built in {time.monotonic() - began:.0f} s, kept in {folder.parent}"


def _build(
    environment: Path,
    used: Mpi,
    gpu: Toolchain | None,
    torch_version: str,
    scratch: Path,
    log: Path,
) -> Path:
    if used.mpicxx is None:
        raise SetupError(
            f"{used.mpirun} has no mpicxx beside it: its development part is missing",
            "Debian, Ubuntu: sudo apt-get install libopenmpi-dev (or: make setup ARGS=--system)",
        )
    path = _path(Path(used.mpicxx).parent, environment, gpu)
    tools = list(pins.HOROVOD_REQUIRES)
    if not find.has_cmake(path):
        tools.append(pins.CMAKE)
    venv.pip_install(environment, *tools, log=log)
    sdist = horovod_source.download(environment, scratch, log)
    source = horovod_source.unpack(sdist, scratch)
    horovod_source.edit(source, torch_version, _rpath(used, gpu))
    # What an outer make left in these would reach the inner one.
    outer = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    variables = {
        **outer,
        **_BUILD,
        **(gpu.variables(scratch) if gpu else {}),
        "PATH": path,
        "MAKEFLAGS": f"-j{paths.build_jobs()}",
        "CXXFLAGS": f"{os.environ.get('CXXFLAGS', '')} {_INCLUDES}".strip(),
    }
    command: list[str | Path] = [
        venv.python(environment),
        "-m",
        "pip",
        "wheel",
        source,
        "--wheel-dir",
        scratch,
    ]
    try:
        # No pip cache: it would hand out a wheel that was built for another MPI or PyTorch.
        run([*command, "--no-deps", "--no-build-isolation", "--no-cache-dir"], log, env=variables)
    except CommandFailed as failed:
        raise horovod_source.failure(failed.output) from failed
    return next(scratch.glob("horovod-*.whl"))


def _path(mpi_programs: Path, environment: Path, gpu: Toolchain | None) -> str:
    """Search path of the build: the toolkit's nvcc, this mpicxx, the environment's CMake first."""
    folders = [mpi_programs, environment / "bin"]
    if gpu:
        own = gpu.home / "bin"
        # Where a toolkit lies among other programs (/usr, conda), its MPI must not come first.
        folders.insert(1 if (own / "mpicxx").exists() else 0, own)
    return os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])


def _rpath(used: Mpi, gpu: Toolchain | None = None) -> list[str]:
    # From site-packages/horovod/torch: PyTorch's libraries, and those of an MPI in the environment.
    # NCCL's wheel lies beside them; PyTorch, imported before, has loaded it in most cases.
    near = ["$ORIGIN/../../torch/lib"]
    if gpu:
        near += ["$ORIGIN/../../nvidia/nccl/lib", str(gpu.library.parent)]
    return [*near, "$ORIGIN/../../../.."] if used.relocatable else [*near, *mpi.library_dirs(used)]


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a file lock; `waiting` is called once if somebody else has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            waiting()
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield

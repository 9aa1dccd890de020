"""Set-up on a machine that lacks something: what it says, and that it stops before it does harm.

Each test runs the real thing: the program itself with a poorer environment, or real ranks.
"""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import horovod_source, mpi, pytorch, stamp, venv, verify
from launch import run as launcher
from launch.errors import SetupError
from launch.shell import CommandFailed, run

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = Path(sys.prefix)
# The Python that `make setup` is called with, not the environment's.
CALLER = getattr(sys, "_base_executable", sys.executable)


def set_up(environment: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CALLER, "-m", "launch.setup", "--venv", str(environment), *flags],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def failed(done: subprocess.CompletedProcess[str], *says: str) -> None:
    """The run ended with 1 and named a problem and a remedy, each holding its part of `says`."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for part in ("set-up failed: ", "remedy: ", *says):
        assert part in done.stderr, done.stderr


def only(folder: Path, *names: str) -> str:
    """A search path that has these programs and no others."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return str(folder)


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_no_compiler(tmp_path):
    done = set_up(tmp_path / "venv", PATH=only(tmp_path / "bin", "make"), CXX="")
    failed(done, "no C++ compiler found (looked for c++, g++, clang++", "apt-get install g++")
    assert not (tmp_path / "venv").exists()


def test_a_compiler_that_does_not_compile(tmp_path):
    script(tmp_path / "broken", "echo 'cannot find crt1.o' >&2; exit 1")
    done = set_up(tmp_path / "venv", CXX=str(tmp_path / "broken"))
    failed(done, "does not compile a C++17 program", "cannot find crt1.o", "apt-get install g++")


def test_no_make(tmp_path):
    compilers = [name for name in ("c++", "as", "ld") if shutil.which(name)]
    done = set_up(tmp_path / "venv", PATH=only(tmp_path / "bin", *compilers), CXX="")
    failed(done, "make is not installed", "apt-get install make")


def test_no_python_headers(tmp_path):
    # A Python whose prefix has its library and nothing else, as where python3-dev is missing.
    prefix = tmp_path / "python"
    prefix.mkdir()
    (prefix / "lib").symlink_to(Path(sys.base_prefix) / "lib")
    done = set_up(tmp_path / "venv", PYTHONHOME=str(prefix))
    failed(done, "no Python.h in", str(prefix), "apt-get install python3-dev", "PYTHON=")


def test_no_cuda_toolkit_and_then_no_pytorch_for_it(tmp_path):
    done = set_up(tmp_path / "venv", "--gpu", CUDA_HOME=str(tmp_path), HOROVOD_CUDA_HOME="")
    failed(done, "no CUDA toolkit found", str(tmp_path), "module load cuda")
    for folder in ("bin", "include"):
        (tmp_path / folder).mkdir()
    # A major version that no PyTorch here can be built for.
    script(tmp_path / "bin" / "nvcc", "echo Cuda compilation tools, release 1.0, V1.0.1")
    (tmp_path / "include" / "cuda_runtime.h").touch()
    done = set_up(tmp_path / "venv", "--gpu", CUDA_HOME=str(tmp_path), HOROVOD_CUDA_HOME="")
    failed(done, "PyTorch", "built for CUDA", "--index-url", "/cu10")
    assert not (tmp_path / "venv").exists()


def test_a_cuda_toolkit_that_is_gone_stops_only_those_who_ask_for_it(tmp_path):
    environment, gone = tmp_path / "venv", {"CUDA_HOME": str(tmp_path), "HOROVOD_CUDA_HOME": ""}
    environment.mkdir()
    stamp.write(environment, {"toolchain": "nccl-2.27.3-cuda-12.8"})
    failed(set_up(environment, "--gpu", **gone), "no CUDA toolkit found")
    done = set_up(environment, **gone)
    assert "keeping what was built with nccl-2.27.3-cuda-12.8: no CUDA toolkit" in done.stdout
    failed(done, "is not a virtual environment")  # which is the next step


def test_no_network(tmp_path):
    # Port 9 of this machine refuses connections at once.
    nowhere = "http://127.0.0.1:9"
    done = set_up(
        tmp_path / "venv",
        PIP_INDEX_URL=f"{nowhere}/simple",
        PIP_EXTRA_INDEX_URL="",
        PIP_FIND_LINKS="",
        PIP_NO_INDEX="",
        PIP_CONFIG_FILE=os.devnull,
        PIP_RETRIES="1",
        PIP_NO_CACHE_DIR="1",
        https_proxy=nowhere,
        no_proxy="",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )
    failed(done, "no network: pip could not reach its package index", "https_proxy")


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path):
    precious = tmp_path / "venv" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years of work")
    failed(set_up(tmp_path / "venv"), "is not a virtual environment")
    assert precious.read_text() == "years of work"


def test_a_second_run_has_nothing_to_do():
    began = time.monotonic()
    done = set_up(ENVIRONMENT)
    seconds = time.monotonic() - began
    print(f"\nset-up where all is there: {seconds:.2f} s")
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("python", "compiler", "mpi", "torch", "horovod", "package", "checked"):
        assert f"\n  {part} " in done.stdout
    assert len(done.stdout.splitlines()) < 25  # one screen


def test_a_launcher_of_another_mpi_is_refused_before_ranks_start(tmp_path):
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    script(environment / "bin" / "python", f'exec {ENVIRONMENT / "bin" / "python"} "$@"')
    script(environment / "bin" / "mpirun", "echo 'HYDRA build details:'; echo 'Version: 4.2.1'")
    stamp.write(environment, {"mpi": "Open MPI 5.0.11 (wheel)"})
    with pytest.raises(SetupError) as caught:
        launcher.command(2, ["python", "train.py"], venv=environment)
    assert "MPICH 4.2.1" in caught.value.problem
    assert "Open MPI 5.0.11" in caught.value.problem
    assert "first on PATH" in caught.value.remedy


def test_ranks_that_each_believe_to_be_alone_are_told_apart_from_a_job(tmp_path):
    # What mpirun of another MPI does: it starts the processes, and they know nothing of each other.
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    program = f"{ENVIRONMENT / 'bin' / 'python'} {ROOT / 'launch' / 'allgather.py'}"
    for name in ("python", "horovodrun"):
        script(environment / "bin" / name, f'exec {ENVIRONMENT / "bin" / name} "$@"')
    script(
        environment / "bin" / "mpirun",
        '[ "$1" = --version ] && echo "mpirun (Open MPI) 5.0.11" && exit 0\n'
        f"{program} & {program} & wait",
    )
    with pytest.raises(SetupError) as caught:
        verify.two_ranks(environment, tmp_path / "log")
    assert "2 ranks were started and each believes it is alone" in caught.value.problem
    assert "first on PATH" in caught.value.remedy and "--rebuild" in caught.value.remedy


def test_mpirun_that_refuses_root_is_explained(tmp_path):
    found = mpi.search(f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if os.geteuid() != 0 or found is None or found.family != "Open MPI":
        pytest.skip("needs to be root with Open MPI")
    env = {name: value for name, value in os.environ.items() if "RUN_AS_ROOT" not in name}
    with pytest.raises(CommandFailed) as caught:
        run([found.mpirun, "-np", "1", "true"], tmp_path / "log", env=env)
    error = verify.job_error(caught.value.output)
    assert error.problem == "mpirun refuses to run as root"
    assert "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1" in error.remedy


@pytest.mark.parametrize(
    ("printed", "problem", "remedy"),
    [
        ("mpi_lib_v2.so: undefined symbol: _ZN3c10", "another PyTorch", "--rebuild"),
        ("libmpi.so.40: cannot open shared object file", "is gone", "module load"),
        ("There are not enough slots available", "fewer than 2 slots", "allocation"),
        ("ran past 180 s", "did not finish", "btl_tcp_if_include"),
    ],
)
def test_what_a_failed_check_printed_becomes_a_remedy(printed, problem, remedy):
    error = verify.job_error(printed)
    assert problem in error.problem
    assert remedy in error.remedy


def test_two_ranks_find_each_other(tmp_path):
    verify.check_build(ENVIRONMENT, tmp_path / "log")
    verify.two_ranks(ENVIRONMENT, tmp_path / "log")


def test_a_build_without_nccl_is_none_where_it_is_needed(tmp_path):
    import horovod.torch as hvd

    if hvd.nccl_built():
        pytest.skip("Horovod here has NCCL")
    with pytest.raises(SetupError, match="built without NCCL") as caught:
        verify.check_build(ENVIRONMENT, tmp_path / "log", "NCCL")
    assert "--rebuild" in caught.value.remedy


def test_sources_that_are_not_the_released_ones_are_refused(tmp_path):
    (tmp_path / "horovod" / "torch").mkdir(parents=True)
    (tmp_path / "horovod" / "torch" / "CMakeLists.txt").write_text("set(CMAKE_CXX_STANDARD 17)\n")
    with pytest.raises(SetupError, match="does not hold 'set\\(CMAKE_CXX_STANDARD 14\\)'"):
        horovod_source.edit(tmp_path, "2.13.0", [])


def test_an_environment_is_kept_and_a_broken_one_made_anew(tmp_path):
    log, environment = tmp_path / "log", tmp_path / "venv"
    assert venv.ensure(environment, system_site=False, log=log) == "made"
    assert venv.ensure(environment, system_site=False, log=log) == "kept"
    assert venv.versions(environment, ["pip", "no-such-package"], log)["no-such-package"] is None
    (environment / "bin" / "python").unlink()
    assert venv.ensure(environment, system_site=False, log=log) == "made"


def test_an_index_is_reachable_or_it_is_not():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert pytorch.reachable(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not pytorch.reachable("http://127.0.0.1:9")

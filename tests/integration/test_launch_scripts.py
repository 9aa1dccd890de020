"""The scripts to copy and edit: sound shell, the right flags, and the same command when run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch import mpi
from tests import ranks

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted((ROOT / "launch" / "jobs").glob("*.sh"))
BIN = Path(sys.prefix) / "bin"

FORWARDED = {
    "LD_LIBRARY_PATH": "/opt/mpi/lib",
    "PYTHONPATH": "/opt/code",
    "OMP_NUM_THREADS": "3",
    "HOROVOD_QODA_BITS": "2.5",
    "HOROVOD_QODA_RULES": "embed*=6;*.bias=raw",
}

OPEN_MPI = ["--bind-to none", "--map-by slot"]
# What the printed command must contain, beside the program and the forwarded variables; the
# second list where INTERFACES=ib0.
WANTED = {
    "one_machine": ([*OPEN_MPI, "-np 2"], []),
    "horovodrun": (["-np 2 -H localhost:2", *OPEN_MPI], ["--network-interfaces ib0"]),
    "openmpi4": (
        ["-np 2 -H localhost:2", *OPEN_MPI, "--mca pml ob1 --mca btl ^openib"],
        ["--mca btl_tcp_if_include ib0", "--mca oob_tcp_if_include ib0"],
    ),
    "openmpi5": (
        ["-np 2 -H localhost:2", *OPEN_MPI, "--mca pml ob1"],
        ["--mca btl_tcp_if_include ib0", "--prtemca prte_if_include ib0"],
    ),
    "mpich": (
        ["-n 2 -ppn 2 -hosts localhost", "-bind-to none"],
        ["-iface ib0", "-genv FI_TCP_IFACE ib0"],
    ),
    "intel_mpi": (
        ["-n 2 -ppn 2 -hosts localhost", "-genv I_MPI_PIN 0"],
        ["-iface ib0", "-genv FI_TCP_IFACE ib0"],
    ),
    "slurm_srun": (
        ["srun --mpi=pmix --export=ALL", "--cpu-bind=none --distribution=block"],
        ["env OMPI_MCA_btl_tcp_if_include=ib0 srun"],
    ),
    "slurm_mpirun": ([*OPEN_MPI, "-np 8"], ["--mca btl_tcp_if_include ib0"]),
    "pbs": ([*OPEN_MPI, "--hostfile"], ["--mca btl_tcp_if_include ib0"]),
    "lsf_jsrun": (
        ["--nrs 8 --rs_per_host 4 --tasks_per_rs 1", "--launch_distribution packed --bind none"],
        ["--smpiargs -tcp -mca btl_tcp_if_include ib0"],
    ),
    "apptainer": (
        [*OPEN_MPI, "apptainer exec horovod_qoda.sif python train.py"],
        ["--mca btl_tcp_if_include ib0"],
    ),
}


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HOROVOD_", "SLURM_", "PBS_"))}
    return {**kept, **more}


def run(name: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "launch" / "jobs" / f"{name}.sh"), *words],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


def dry(name: str, *program: str, **variables: str) -> list[str]:
    done = run(name, "--dry-run", *(program or ("python", "train.py")), **variables)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def test_every_script_is_known_here():
    assert {path.stem for path in JOBS} == set(WANTED)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_shell_accepts_it_and_so_does_shellcheck(path):
    for command in (["bash", "-n"], [str(BIN / "shellcheck"), "--shell=bash"]):
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    assert os.access(path, os.X_OK)
    assert len(path.read_text().splitlines()) < 60  # short enough to be read before it is edited


@pytest.mark.parametrize("name", WANTED)
def test_the_command_has_what_the_launcher_needs(name):
    always, with_interface = WANTED[name]
    printed = " ".join(dry(name, **FORWARDED))
    for part in always:
        assert part in printed
    assert "ib0" not in printed and printed.endswith("python train.py")
    printed = " ".join(dry(name, INTERFACES="ib0", **FORWARDED))
    for part in with_interface:
        assert part in printed


@pytest.mark.parametrize("name", WANTED)
def test_variables_are_forwarded_by_name(name):
    words = dry(name, HOROVOD_QODA_BITS="2.5", PYTHONPATH="/opt/code", OMP_NUM_THREADS="3")
    names = {"PATH", "PYTHONPATH", "OMP_NUM_THREADS", "HOROVOD_QODA_BITS"}
    if name in ("mpich", "intel_mpi"):
        found = set(words[words.index("-genvlist") + 1].split(","))
    elif name == "lsf_jsrun":
        pairs = [words[i + 1] for i, word in enumerate(words) if word == "--env"]
        assert "HOROVOD_QODA_BITS=2.5" in pairs
        found = {pair.partition("=")[0] for pair in pairs}
    elif name in ("slurm_srun", "horovodrun"):
        return  # they forward all that is exported; see the test that runs the command
    else:
        found = {words[i + 1] for i, word in enumerate(words) if word == "-x"}
    # LD_LIBRARY_PATH only where it is set: launchers complain about variables that are not.
    assert found - {"LD_LIBRARY_PATH"} == names
    assert ("LD_LIBRARY_PATH" in found) == ("LD_LIBRARY_PATH" in os.environ)


@pytest.mark.parametrize("name", WANTED)
def test_what_runs_is_what_was_printed(name, tmp_path):
    """With launchers that print their command line and environment instead of starting ranks."""
    for launcher in ("mpirun", "mpiexec", "horovodrun", "srun", "jsrun"):
        stub = tmp_path / launcher
        stub.write_text(f'#!/bin/bash\nprintf "%q " {launcher} "$@"; echo; env\n')
        stub.chmod(0o755)
    variables = {**FORWARDED, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    del variables["LD_LIBRARY_PATH"]  # of no MPI: bash itself would look there
    program = ("python", "train.py", "--name", "two words", "a*b")
    printed = dry(name, *program, **variables)
    done = run(name, *program, **variables)
    assert done.returncode == 0, done.stderr
    line, *env = done.stdout.splitlines()
    assert shlex.split(line) == (printed[2:] if printed[0] == "env" else printed)
    assert printed[-len(program) :] == list(program)
    for variable in ("PYTHONPATH", "OMP_NUM_THREADS", "HOROVOD_QODA_BITS", "HOROVOD_QODA_RULES"):
        assert f"{variable}={FORWARDED[variable]}" in env


@pytest.mark.parametrize("name", WANTED)
def test_compute_threads_are_limited_where_nobody_says_how_many(name, tmp_path):
    """The script's own default reaches the launcher's environment, and by name the ranks."""
    for launcher in ("mpirun", "mpiexec", "horovodrun", "srun", "jsrun"):
        stub = tmp_path / launcher
        stub.write_text('#!/bin/bash\necho "threads=$OMP_NUM_THREADS"\n')
        stub.chmod(0o755)
    variables = environment(PATH=f"{tmp_path}:{os.environ['PATH']}")
    variables.pop("OMP_NUM_THREADS", None)
    argv = [str(ROOT / "launch" / "jobs" / f"{name}.sh"), "python", "train.py"]
    done = subprocess.run(argv, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.strip().removeprefix("threads=")) >= 1


def test_sizes_come_from_the_batch_system(tmp_path):
    words = dry("slurm_srun", SLURM_NTASKS="12", SLURM_CPUS_PER_TASK="5")
    assert "--ntasks=12" in words and "--cpus-per-task=5" in words
    words = dry("slurm_mpirun", SLURM_NTASKS="12")
    assert words[1:3] == ["-np", "12"]
    hosts = tmp_path / "nodes"
    hosts.write_text("a\na\nb\nb\nb\n")
    words = dry("pbs", PBS_NODEFILE=str(hosts), PBS_O_WORKDIR=str(tmp_path))
    assert words[1:5] == ["-np", "5", "--hostfile", str(hosts)]
    assert dry("mpich", HOSTS="a,b,c", PER_HOST="4")[1:3] == ["-n", "12"]


def test_pbs_takes_the_program_from_a_variable():
    done = run("pbs", "--dry-run", PROGRAM="python train.py --epochs 3")
    assert shlex.split(done.stdout)[-4:] == ["python", "train.py", "--epochs", "3"]


def test_a_container_gets_the_hosts_mpi_where_asked():
    words = dry("apptainer", MPI_HOME="/opt/openmpi", IMAGE="x.sif", APPTAINER="singularity")
    start = words.index("singularity")
    assert words[start : start + 4] == ["singularity", "exec", "--bind", "/opt/openmpi"]
    assert "PREPEND_PATH=/opt/openmpi/bin" in words and "x.sif" in words


@pytest.mark.parametrize("name", WANTED)
def test_no_program_is_an_error_with_the_usage(name):
    done = run(name)
    assert done.returncode == 2 and "usage: " in done.stderr and not done.stdout


def installed() -> mpi.Mpi | None:
    return mpi.search(f"{BIN}{os.pathsep}{os.environ['PATH']}", inside=Path(sys.prefix))


@pytest.mark.parametrize("name", ["one_machine", "horovodrun", "openmpi4", "openmpi5"])
def test_two_ranks_really_start(name):
    found = installed()
    if found is None or found.family != "Open MPI":
        pytest.skip("needs Open MPI")
    if name.startswith("openmpi") and name != f"openmpi{found.major}":
        pytest.skip(f"the Open MPI here is {found.version}")
    variables = environment(
        PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}",
        OMPI_ALLOW_RUN_AS_ROOT="1",
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
        # A machine with one core has one slot, and localhost:2 says otherwise.
        HOSTS="localhost:2",
    )
    argv = [str(ROOT / "launch" / "jobs" / f"{name}.sh"), str(BIN / "python")]
    done = ranks.start([*argv, "launch/allgather.py"], variables, timeout=180)
    said = [json.loads(text) for text in re.findall(r"\{.*?\}", done.stdout)]
    assert sorted(one["rank"] for one in said) == [0, 1]
    assert all(one["size"] == 2 and one["gathered"] == [1, 2, 2] for one in said)


HYDRA = {"mpich": "mpich==5.0.2", "intel_mpi": "impi-rt==2021.19.0"}
"""Wheels with the launcher of each; Horovod here is built for another MPI, so ranks only speak."""

# A file for each rank: launchers may mix what ranks print, in the middle of a line.
WRITE = """import os, pathlib, sys
names = ("PMI_RANK", "PMI_SIZE", "OMP_NUM_THREADS", "HOROVOD_QODA_RULES")
text = "|".join(os.environ[name] for name in names)
pathlib.Path(sys.argv[1], os.environ["PMI_RANK"]).write_text(text)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", HYDRA)
def test_two_ranks_really_start_with_hydra(name, tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", tmp_path / "mpi"]
    done = subprocess.run([*command, HYDRA[name]], capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        pytest.skip(f"pip cannot have {HYDRA[name]}: {done.stderr.strip().splitlines()[-1]}")
    program, said = tmp_path / "write.py", tmp_path / "said"
    program.write_text(WRITE)
    said.mkdir()
    path = f"{tmp_path / 'mpi' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = environment(PATH=path, HOROVOD_QODA_RULES="embed*=6;*.bias=raw")
    variables.pop("OMP_NUM_THREADS", None)
    argv = [str(ROOT / "launch" / "jobs" / f"{name}.sh"), sys.executable, str(program), str(said)]
    ranks.start(argv, variables, timeout=180)
    found = sorted(file.read_text() for file in said.iterdir())
    assert found == [f"{i}|2|1|embed*=6;*.bias=raw" for i in range(2)]

"""``horovod-qoda`` as it is started: alone, on ranks, and where something is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests import ranks

ROOT = Path(__file__).resolve().parents[2]

# Refuses the named module, as if it were not installed.
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r} or name.startswith({name!r} + "."):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
from horovod_qoda.cli import main
raise SystemExit(main(["doctor"]))
"""


def doctor(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "horovod_qoda.cli", "doctor", *words],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def blocked(name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(name=name)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def lines(printed: str, area: str) -> str:
    return "\n".join(line for line in printed.splitlines() if line.startswith(area))


def test_alone_it_says_how_to_start_it():
    done = doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "horovod 0.28" in lines(done.stdout, "versions")
    assert "built with MPI" in lines(done.stdout, "horovod")
    assert "thread level" in lines(done.stdout, "mpi")
    assert "encodes" in lines(done.stdout, "speed")
    assert "start it as the job will be started: mpirun -np 2" in done.stdout
    assert done.stdout.rstrip().endswith("nothing is broken")


def test_between_two_ranks_it_measures_and_decides(tmp_path):
    path = tmp_path / "doctor.json"
    job = ranks.run(2, "horovod_qoda.cli", "doctor", "--json", path, timeout=300)
    assert "2 ranks on 1 host(s)" in lines(job.stdout, "ranks")
    assert job.stdout.count("versions") == 1  # one rank speaks
    assert "Gbit/s each way" in lines(job.stdout, "network")
    assert "auto picks allgather for 2 ranks" in lines(job.stdout, "topology")
    assert "compression" in lines(job.stdout, "verdict")
    written = json.loads(path.read_text())
    assert written["ranks"] == 2
    assert written["machine"]["bandwidth"] > 1e6 and written["machine"]["encode"] > 1e-11
    assert set(written["exchange"]["seconds"]) == {"fp32", "fp16", "allgather", "scatter_reduce"}


def test_processes_that_do_not_know_of_each_other_are_told():
    # What mpirun of another MPI leaves in the environment of a process that knows no other.
    done = doctor(PMI_RANK="0", PMI_SIZE="4")
    assert done.returncode == 1
    assert "started 4 processes and each believes it is alone" in done.stdout
    assert "remedy: export PATH=" in done.stdout and "1 broken" in done.stdout
    assert not doctor(PMI_RANK="1", PMI_SIZE="4").stdout  # the other ranks keep quiet


def test_a_launcher_of_another_mpi_on_path(tmp_path):
    stub = tmp_path / "mpirun"
    stub.write_text("#!/bin/sh\necho 'HYDRA build details:'; echo '    Version: 4.2.1'\n")
    stub.chmod(0o755)
    done = doctor(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 1
    assert "mpirun is of MPICH 4.2.1" in done.stdout


def test_what_is_missing_is_broken_with_its_command():
    done = blocked("horovod")
    assert done.returncode == 1
    assert "Horovod is not installed" in done.stdout and "HOROVOD_WITH_MPI=1" in done.stdout
    assert "encodes" in done.stdout  # what can be measured still is
    done = blocked("torch")
    assert done.returncode == 1 and "needs PyTorch" in done.stdout
    assert "encodes" in done.stdout and "Traceback" not in done.stderr
    done = blocked("horovod_qoda.native._codec")
    assert done.returncode == 1
    assert "the native codec does not load" in done.stdout and "make setup" in done.stdout


def test_a_code_path_that_is_not_there_is_broken():
    done = doctor(HOROVOD_QODA_SIMD="avx9")
    assert done.returncode == 1
    assert "avx9" in lines(done.stdout, "codec")

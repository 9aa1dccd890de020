"""A process that is alone although the launcher has started several is told so, with a remedy."""

import os
import subprocess
import sys

import pytest

from horovod_qoda.torch.startup import alone
from tests.ranks import ROOT


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, "mpirun of that MPI"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "another MPI than the launcher's"),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"}, "srun --mpi=pmix"),
        ({"JSM_NAMESPACE_SIZE": "6", "JSM_NAMESPACE_RANK": "0"}, "jsrun started 6"),
        ({"HOROVOD_SIZE": "3", "HOROVOD_RANK": "0"}, "horovodrun --mpi"),
    ],
)
def test_every_launcher_has_its_remedy(variables, words):
    text = alone(variables)
    assert words in text and "TRAINS ALONE" in text
    assert "pip download horovod==0.28.1" in text and "make setup" in text


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"},
        # A batch script may run a single process: SLURM_NTASKS is what srun would start.
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
        {"PMI_SIZE": "many"},
    ],
)
def test_nothing_is_said_where_nothing_is_wrong_and_only_by_the_first_process(variables):
    assert alone(variables) == ""


def test_a_plain_python_under_a_launcher_of_another_mpi():
    """The real thing: Horovod's MPI starts as a single process and knows nothing of the others."""
    program = "import horovod_qoda.torch as hvd; hvd.init(); print('size', hvd.size())"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "SLURM_"))}
    env.update(PMI_SIZE="4", PMI_RANK="0", PYTHONPATH=str(ROOT))
    env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "size 1" in done.stdout
    assert done.stderr.count("EACH OF THEM TRAINS ALONE") == 1

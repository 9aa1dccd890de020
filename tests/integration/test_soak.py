"""A short soak; the long one is ``mpirun -np 4 python tests/integration/soak.py``."""

import json

import pytest


@pytest.mark.slow
def test_replicas_memory_and_threads_stay(mpi_run):
    finished = mpi_run(
        3,
        "tests/integration/soak.py",
        *("--steps", 300, "--every", 50, "--warm-up", 150, "--seed", 1),
        timeout=900,
    )
    lines = [json.loads(x) for x in finished.stdout.splitlines() if x.startswith("{")]
    assert [x["step"] for x in lines[:-1]] == [50, 100, 150, 200, 250, 300]
    assert all(x["same"] for x in lines[:-1])
    assert lines[-1]["growth"] <= 0.01 and lines[-1]["skipped"] > 0

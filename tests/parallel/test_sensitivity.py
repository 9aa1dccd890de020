"""Sensitivities are means over ranks, the same everywhere, and rules made of them are accepted."""

import json


def test_ranks_agree(mpi_run):
    finished = mpi_run(2, "tests/parallel/sensitivity.py", timeout=500)
    (got,) = [json.loads(x) for x in finished.stdout.splitlines() if x.startswith("{")]
    assert got == {"own differ": True, "shared agree": True, "mean": True}

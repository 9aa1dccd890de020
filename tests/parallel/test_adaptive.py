"""Levels, tables and bits that adapt are the same on all ranks, step by step."""

import json


def test_state_is_the_same_on_all_ranks(mpi_run):
    finished = mpi_run(3, "tests/parallel/adaptive.py", timeout=500)
    got = [json.loads(x) for x in finished.stdout.splitlines() if x.startswith("{")]
    assert len(got) == 3
    for x in got:
        assert x["same"] and x["replicas"], x
        assert x["states"] >= 5, "nothing adapted"

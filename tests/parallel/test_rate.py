"""The mean rate is the bits asked for, within 2 %, while gradients drift."""

import json

import pytest


def test_mean_rate_is_what_was_asked_for(mpi_run):
    finished = mpi_run(2, "tests/parallel/rate.py", timeout=500)
    got = [json.loads(x) for x in finished.stdout.splitlines() if x.startswith("{")]
    assert len(got) == 2
    for x in got:
        assert x["rate"] == pytest.approx(3, rel=0.02), x

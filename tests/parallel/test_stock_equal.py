"""Uncompressed, or as float16, the plugin gives what stock Horovod gives, to the bit."""

import json


def test_none_and_fp16_equal_stock_horovod(mpi_run):
    # On three ranks stock Horovod differs from itself: what it fuses, and with it the order of a
    # sum, depends on which gradients happen to be ready together.
    finished = mpi_run(2, "tests/parallel/stock_equal.py")
    runs = [json.loads(x) for x in finished.stdout.splitlines() if x.startswith("{")]
    assert len(runs) == 5
    for run in runs:
        assert run["largest"] == [0.0] * 20, run
        assert run["moved"] > 0.1, "nothing was learnt"

"""Limits of waiting, and what is said when the launcher ends a rank that waits."""

import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from horovod_qoda import waiting
from tests.ranks import ROOT


@pytest.mark.parametrize(
    ("variables", "limits"),
    [
        ({}, (60.0, 0.0)),
        ({"SHUTDOWN_TIME_SECONDS": "90"}, (60.0, 210.0)),
        ({"CHECK_TIME_SECONDS": "5", "SHUTDOWN_TIME_SECONDS": "10"}, (5.0, 20.0)),
        ({"CHECK_DISABLE": "1", "SHUTDOWN_TIME_SECONDS": "10"}, (0.0, 0.0)),
        ({"CHECK_TIME_SECONDS": "soon"}, (60.0, 0.0)),
    ],
)
def test_limits_are_horovods_with_room_for_its_own_shutdown(monkeypatch, variables, limits):
    for name in ("CHECK_TIME_SECONDS", "SHUTDOWN_TIME_SECONDS", "CHECK_DISABLE"):
        monkeypatch.delenv(f"HOROVOD_STALL_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"HOROVOD_STALL_{name}", value)
    assert waiting.stall_limits() == limits


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_ranks_0_and_1_warn_once_and_every_rank_ends(monkeypatch, caplog, rank):
    monkeypatch.setenv("HOROVOD_STALL_CHECK_TIME_SECONDS", "0.02")
    monkeypatch.setenv("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "0.2")
    registered = []
    monkeypatch.setattr(waiting.atexit, "register", registered.append)
    monkeypatch.setattr(logging.getLogger("horovod_qoda"), "propagate", True)
    with pytest.raises(waiting.StalledError, match=rf"rank {rank} .* for buffer 3"):
        with waiting.Waiting(rank, "buffer 3") as patience:
            while True:
                patience.check()
                time.sleep(0.01)
    assert registered == [waiting._leave]
    assert sum("has waited" in r.getMessage() for r in caplog.records) == (rank < 2)


PROGRAM = """
import signal, sys, time
from horovod_qoda.waiting import Waiting
if sys.argv[1] == "own":
    signal.signal(signal.SIGTERM, lambda *a: sys.exit(5))
with Waiting(2, "exchange 7"):
    print("waiting", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("handler", "code"), [("none", -signal.SIGTERM), ("own", 5)])
def test_a_waiting_rank_that_is_ended_says_what_it_waited_for(handler, code):
    """And leaves a script's own handler alone."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, handler],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == code
    assert ("rank 2 was told to end (SIGTERM) while it waited for exchange 7" in told) == (code < 0)


def test_the_handler_is_taken_back():
    with waiting.Waiting(0, "nothing"):
        pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

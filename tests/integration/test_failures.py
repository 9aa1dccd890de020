"""One rank fails: all others end soon, say what they were exchanging, and nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from launch import run as launcher
from tests import ranks

SCRIPT = "tests/integration/failing.py"
LIMIT = ranks.PATIENCE_S

MARK = "HOROVOD_QODA_TEST_JOB"

EXCHANGE = r"exchange 5 of horovod_qoda\.0, buffer 0 \('2\.weight'"
REMEDY = "every rank must take the same number of steps"


def processes_of(mark: str) -> list[int]:
    """Live processes that were started with this mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            marked = entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes()
            if marked and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def gone(mark: str) -> bool:
    deadline = time.monotonic() + 20
    while processes_of(mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def fail(np: int, what: str, culprit: int, **env: str) -> ranks.Finished:
    mark = uuid.uuid4().hex
    finished = ranks.run(
        np, SCRIPT, what, culprit, timeout=LIMIT, check=False, env={MARK: mark, **env}
    )
    assert gone(mark), f"processes of the job are left: {processes_of(mark)}"
    assert finished.returncode != 0, finished.stdout + finished.stderr
    return finished


def exceptions(finished: ranks.Finished) -> list[str]:
    return re.findall(r"^horovod\S*Error: .*|^\w+Error: .*", finished.stderr, re.MULTILINE)


def test_a_rank_that_raises_ends_the_others_with_an_error():
    finished = fail(3, "raise", 1)
    assert 'KeyError: "the script\'s own mistake"' in finished.stderr
    # The launcher may end the slower of the two others first, which says what it waited for too.
    told = re.findall(EXCHANGE, finished.stderr)
    assert told, finished.stderr
    assert "came to the end" not in finished.stdout


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_rank_that_is_killed(culprit):
    finished = fail(3, "kill", culprit)
    told = re.findall(rf"rank (\d) was told to end \(SIGTERM\).*{EXCHANGE}", finished.stderr)
    # One that had not come to its wait yet is ended without words.
    assert told and set(map(int, told)) <= {0, 1, 2} - {culprit}, finished.stderr
    assert re.search(rf"rank {culprit}\b.*signal 9", finished.stderr.replace("\n", " "))


def test_a_rank_that_hangs_in_backward_is_named_and_ended_by_horovods_stall_check():
    limits = {
        "HOROVOD_STALL_CHECK_TIME_SECONDS": "6",
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "12",
    }
    finished = fail(3, "hang", 1, **limits)
    assert re.search(EXCHANGE, finished.stderr), finished.stderr
    # Horovod's own words, from rank 0.
    assert re.search(r"^1!?: \[\S*horovod_qoda\.0\.buffer0\.stage0", finished.stderr, re.MULTILINE)


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_frozen_process_which_horovod_cannot_notice_is_noticed_here(culprit):
    finished = fail(3, "freeze", culprit)
    assert re.search(rf"StalledError: rank \d has waited \d+ s for {EXCHANGE}", finished.stderr)
    assert "came to the end" not in finished.stdout


def test_a_frozen_process_is_noticed_while_horovod_holds_its_lock():
    """Dynamic process sets: Horovod waits for the frozen rank with the lock of its table."""
    finished = fail(2, "alone", 1, HOROVOD_DYNAMIC_PROCESS_SETS="1")
    assert re.search(r"StalledError: rank 0 has waited \d+ s for .*'alone'", finished.stderr)


def test_an_error_in_the_worker_thread_surfaces_in_its_step_on_every_rank():
    finished = fail(2, "worker", 1)
    assert "rank 1 failed in step 5" in finished.stdout, finished.stdout + finished.stderr
    assert re.search(rf"ArithmeticError: {EXCHANGE}.*codec's own mistake", finished.stderr)


@pytest.mark.parametrize("np", [2, 3])
@pytest.mark.parametrize("what", ["stop", "join"])
def test_unequal_numbers_of_batches_are_explained(what, np):
    """With all-gather and with scatter-reduce; the rank ends, or waits in hvd.join()."""
    finished = fail(np, what, 1)
    errors = [e for e in exceptions(finished) if re.search(EXCHANGE, e)]
    assert errors and all(REMEDY in e for e in errors), finished.stderr
    assert ("hvd.join()" in errors[0]) and "rank 0 came to the end" not in finished.stdout


def test_leaving_in_the_middle_of_an_exchange_does_not_hang():
    finished = fail(2, "leave", 1)
    assert "rank 1 came to the end" not in finished.stdout
    # What rank 1 sent before it left may still complete exchange 5.
    either = EXCHANGE.replace("exchange 5", "exchange [56]")
    assert re.search(either, finished.stderr), finished.stderr


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("late", EXCHANGE),
        ("late_stock", r"the collective '[02]\.(weight|bias)' failed"),
        ("late_sparse", r"the collective '0\.weight\.values' failed"),
    ],
)
def test_a_tensor_that_horovod_forgot_at_its_end_is_noticed(what, named):
    finished = fail(2, what, 1)
    errors = [e for e in exceptions(finished) if re.search(named, e)]
    assert errors and all("had been shut down before" in e for e in errors), finished.stderr


def test_ctrl_c_ends_the_job_promptly():
    mark = uuid.uuid4().hex
    path = os.pathsep.join(filter(None, [str(ranks.ROOT), os.environ.get("PYTHONPATH")]))
    job = launcher.command(
        2,
        [sys.executable, str(ranks.ROOT / SCRIPT), "wait", "0"],
        launcher="mpirun",
        venv=Path(sys.prefix),
        environ={**os.environ, "PYTHONPATH": path, MARK: mark},
    )
    process = subprocess.Popen(
        job.argv, env=job.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        deadline = time.monotonic() + LIMIT
        assert process.stdout is not None
        while "stepped" not in process.stdout.readline():
            assert process.poll() is None and time.monotonic() < deadline, "the job did not start"
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        assert process.returncode != 0
        assert gone(mark), f"processes of the job are left: {processes_of(mark)}"
    finally:
        for pid in processes_of(mark):
            os.kill(pid, signal.SIGKILL)

"""Two levels by Horovod's process sets, on emulated hosts of two ranks each."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from launch import emulate

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "tests" / "integration" / "hosts_job.py"
emulated = pytest.mark.skipif(bool(emulate.usable()), reason=emulate.usable() or "usable")


def on_two_hosts(*words, ends_well=True):
    command = [sys.executable, "launch/emulate.py", "--hosts", "2", "--ranks-per-host", "2",
               "--timeout", "380", "--", sys.executable, str(JOB), *words]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert (done.returncode == 0) == ends_well, done.stdout + done.stderr
    return done


def reports(done):
    """(topology, wire bytes, whether all replicas are equal) of every rank."""
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("rank ")]
    assert len(rows) == 4, done.stdout + done.stderr
    return [(row[2], int(row[3]), row[4] == "True") for row in rows]


@emulated
def test_auto_sums_inside_hosts_and_sends_half_as_much():
    two = reports(on_two_hosts("auto", "dynamic"))
    flat = reports(on_two_hosts("allgather", "dynamic"))
    assert {t for t, _, _ in two} == {"two_level"} and {t for t, _, _ in flat} == {"allgather"}
    assert all(same for _, _, same in two + flat)
    assert sum(b for _, b, _ in two) < 0.6 * sum(b for _, b, _ in flat)


@emulated
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_gradients_on_devices_are_summed_by_hosts_where_they_need_not_leave():
    """Tensors in the CPU's memory stand for those of a device."""
    native = on_two_hosts("two_level", "dynamic", "native")
    tensors = on_two_hosts("auto", "dynamic", "device")
    asked = on_two_hosts("two_level", "dynamic", "host")
    for done in (native, tensors, asked):
        assert {(t, same) for t, _, same in reports(done)} == {("two_level", True)}
    assert last_words(native) == last_words(tensors) == last_words(asked)
    assert "payloads travel as tensors on their devices" in tensors.stderr
    assert "gradients on cpu are coded there by Triton kernels (all buffers)" in asked.stderr
    averse = on_two_hosts("auto", "dynamic", "host", "1")
    assert {t for t, _, _ in reports(averse)} == {"scatter_reduce"}
    assert "HOROVOD_QODA_PAYLOADS=device" in averse.stderr


def last_words(done):
    """The sums of all parameters, as ranks printed them."""
    return {line.partition("[")[2] for line in done.stdout.splitlines() if line.startswith("rank ")}


@emulated
def test_without_dynamic_process_sets_auto_says_what_is_missed():
    done = on_two_hosts("auto", "fixed")
    assert {t for t, _, _ in reports(done)} == {"scatter_reduce"}
    assert "HOROVOD_DYNAMIC_PROCESS_SETS=1" in done.stderr


@emulated
def test_asked_for_without_dynamic_process_sets_every_rank_refuses():
    out = on_two_hosts("two_level", "fixed").stdout
    assert all(f"refused on rank {r}: topology='two_level'" in out for r in range(4)), out
    assert "HOROVOD_DYNAMIC_PROCESS_SETS=1" in out


def test_on_one_host_every_rank_refuses(mpi_run):
    out = mpi_run(2, JOB, "two_level", "dynamic").stdout
    assert all(
        f"refused on rank {r}: topology='two_level' is not possible here: there is one host" in out
        for r in range(2)
    ), out


@emulated
def test_settings_changed_on_one_rank_alone_end_the_job_with_the_reason():
    done = on_two_hosts("two_level", "dynamic", "forgetful", ends_well=False)
    assert "MismatchError" in done.stderr and "set_compression() on every rank" in done.stderr

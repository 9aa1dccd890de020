"""Emulated hosts: real names and addresses, a real limit, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import emulate
from launch.errors import SetupError

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(bool(emulate.usable()), reason=emulate.usable() or "usable")


def ending_signals_end():
    """Also where tests run under nohup, or in the background of a script that ignores Ctrl-C."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_DFL)


def start_python(*words, **options):
    return subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, preexec_fn=ending_signals_end, **options,
    )  # fmt: skip


def start(*words, **options):
    return start_python("launch/emulate.py", *words, **options)


def leftovers(pid):
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    folder = Path("/etc/netns")
    return [x for x in spaces.split() if f"hq{pid}-" in x] + [
        str(x) for x in (folder.iterdir() if folder.exists() else []) if f"hq{pid}-" in x.name
    ]


PROGRAM = """
import socket
from mpi4py import MPI
comm = MPI.COMM_WORLD
import numpy as np, time
x = np.ones(500_000); y = np.empty_like(x)
comm.Barrier(); begin = time.time(); comm.Allreduce(x, y); took = time.time() - begin
print(comm.rank, comm.size, socket.gethostname(), y[0], took, flush=True)
"""


def test_ranks_on_hosts_with_limited_links(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    child = start("--hosts", 2, "--ranks-per-host", 2, "--rate", "100mbit", "--timeout", 380, "--",
                  sys.executable, program)  # fmt: skip
    out, err = child.communicate(timeout=400)
    assert child.returncode == 0, out + err
    rows = sorted(line.split() for line in out.splitlines())
    assert [r[:2] for r in rows] == [[str(i), "4"] for i in range(4)]
    assert len({r[2] for r in rows}) == 2 and all(r[3] == "4.0" for r in rows)
    # 4 MB through 100 Mbit/s cannot take less than 0.32 s; without the limit it takes a tenth.
    assert max(float(r[4]) for r in rows) > 0.3
    assert "bytes sent by each host" in err
    assert not leftovers(child.pid)


def running(word):
    """Processes with this word among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def start_job():
    """An emulation whose ranks sleep, and a word that their command lines have and no other."""
    word = f"0.{time.time_ns()}"  # sleep adds its arguments up
    child = start("--hosts", 2, "--", "sleep", "600", word, start_new_session=True)
    deadline = time.time() + 120
    while len(running(word)) < 4:  # this one, mpirun and two ranks
        assert time.time() < deadline and child.poll() is None
        time.sleep(0.1)
    return child, word


@pytest.mark.parametrize("sign", ["SIGINT", "SIGTERM", "SIGHUP", "job SIGKILL"])
def test_nothing_is_left_when_it_is_interrupted_or_the_job_is_killed(sign):
    child, word = start_job()
    if sign == "job SIGKILL":
        (job,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        os.kill(int(job), signal.SIGKILL)
    else:
        os.kill(child.pid, signal.Signals[sign])
    child.communicate(timeout=120)
    wanted = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "job SIGKILL": 137}
    assert child.returncode == wanted[sign]
    assert not leftovers(child.pid) and not running(word)


@pytest.mark.parametrize("moment", ["at once", "while the job ends", "while hosts are removed"])
@pytest.mark.parametrize("signs", [("SIGINT", "SIGINT"), ("SIGTERM", "SIGHUP")])
def test_a_second_signal_does_not_interrupt_the_removal(signs, moment):
    child, word = start_job()
    switch = Path(f"/run/netns/hq{child.pid}-switch")  # the first to go
    os.kill(child.pid, signal.Signals[signs[0]])
    if moment == "while the job ends":
        time.sleep(0.1)  # of 0.2 to 0.4
    while moment == "while hosts are removed" and switch.exists():
        assert child.poll() is None
    os.kill(child.pid, signal.Signals[signs[1]])
    child.communicate(timeout=120)
    assert child.returncode != 0
    assert not leftovers(child.pid) and not running(word)


@pytest.mark.parametrize("seconds", [0, 0.01, 0.03, 0.1])
def test_a_signal_while_namespaces_are_made_or_tried_out_leaves_none(seconds):
    child = start("--hosts", 8, "--", "sleep", "600")
    deadline = time.time() + 60
    while not leftovers(child.pid):
        assert time.time() < deadline and child.poll() is None
    time.sleep(seconds)
    child.terminate()
    child.communicate(timeout=120)
    assert child.returncode in (143, -signal.SIGTERM) and not leftovers(child.pid)


@pytest.mark.parametrize("where", ["/run/netns", "/etc/netns"])
def test_what_another_program_made_is_refused_and_left_alone(where):
    name = f"hq{os.getpid()}-2"
    path = Path(where) / name
    path.parent.mkdir(exist_ok=True)
    if where == "/run/netns":
        subprocess.run(["ip", "netns", "add", name], check=True)
    else:
        path.mkdir()
    try:
        with pytest.raises(SetupError, match=f"{path} is there already"), emulate.cluster(2, None):
            pytest.fail("it started")
        assert path.exists()
        assert [x for x in leftovers(os.getpid()) if name not in x] == []
    finally:
        if where == "/run/netns":
            subprocess.run(["ip", "netns", "delete", name], check=True)
        else:
            path.rmdir()


HOLDER = """
from launch import emulate
import time
with emulate.cluster(2, None):
    print("up", flush=True)
    time.sleep(600)
"""


def test_nothing_is_left_of_a_cluster_that_another_program_made_when_it_is_ended():
    child = start_python("-c", HOLDER)
    assert child.stdout.readline() == "up\n" and leftovers(child.pid)
    child.terminate()
    child.communicate(timeout=120)
    assert child.returncode == 143
    assert not leftovers(child.pid)


def test_bad_arguments_are_refused():
    for words, said in ((("--hosts", 0), "--hosts"), (("--rate", "fast"), "--rate")):
        child = start(*words, "--", "true")
        _, err = child.communicate(timeout=120)
        assert child.returncode == 2 and said in err
        assert not leftovers(child.pid)

"""The worker: order of starting, no blocking between jobs, errors where they are asked for."""

import os
import random
import signal
import threading
import time

import numpy as np
import pytest

from horovod_qoda.exchange.worker import Job, Worker
from horovod_qoda.transport import Handle, local_transports
from tests.threads import in_threads


def job(transport, name, started, delay=0.0):
    started.append(name)
    first = yield transport.allgather(name, np.array([transport.rank], np.uint8))
    time.sleep(delay)
    second = yield transport.allgather(name + "/2", first)
    assert len(second) == transport.size**2


def test_jobs_submitted_in_different_orders_do_not_block_each_other():
    seed = random.randrange(2**32)
    print("seed", seed)

    def run(transport):
        worker, started = Worker("w"), []
        names = [f"job{i}" for i in range(20)]
        random.Random(seed + transport.rank).shuffle(names)
        jobs = [worker.submit(job(transport, n, started, 0.001)) for n in names]
        for j in jobs:
            j.wait()
        worker.stop()
        assert started == names
        return worker.collective_s

    assert all(s > 0 for s in in_threads(local_transports(3), run))


def test_an_exception_surfaces_in_wait_and_the_worker_goes_on():
    (transport,) = local_transports(1)
    worker = Worker("w")

    def broken():
        yield transport.allgather("x", np.zeros(1, np.uint8))
        raise ValueError("bad payload of rank 7")

    failed, fine = worker.submit(broken()), worker.submit(job(transport, "y", []))
    with pytest.raises(ValueError, match="rank 7"):
        failed.wait()
    fine.wait()
    worker.stop()


def test_a_failed_collective_ends_its_job():
    class Broken(Handle):
        def done(self):
            raise OSError("link down")

        def result(self):
            raise OSError("link down")

    def run():
        yield Broken()

    worker = Worker("w")
    with pytest.raises(OSError, match="link down"):
        worker.submit(run()).wait()


def test_waiting_for_gradients_is_no_time_of_collectives():
    class Slow(Handle):
        def __init__(self, collective):
            self.collective, self.until = collective, time.perf_counter() + 0.2

        def done(self):
            return time.perf_counter() > self.until

        def result(self):
            return None

    def run(collective):
        yield Slow(collective)

    worker = Worker("w")
    worker.submit(run(False)).wait()
    assert worker.collective_s == 0.0
    begin = time.perf_counter()
    jobs = [worker.submit(run(True)), worker.submit(run(True)), worker.submit(run(False))]
    for each in jobs:
        each.wait()
    worker.stop()
    took = time.perf_counter() - begin
    assert 0.15 < worker.collective_s <= took, "two at once count once"


def test_the_thread_ends_when_stopped_and_starts_again():
    (transport,) = local_transports(1)
    worker = Worker("only-one")
    for _ in range(3):
        worker.submit(job(transport, "z", [])).wait()
        assert sum(t.name == "only-one" for t in threading.enumerate()) == 1
        worker.stop()
        deadline = time.time() + 10
        while any(t.name == "only-one" for t in threading.enumerate()):
            assert time.time() < deadline, "the thread does not end"
            time.sleep(0.01)


def test_a_forked_child_gets_a_thread_of_its_own():
    """Also where its parent held the worker's lock at that moment, and had jobs in its queue."""
    (transport,) = local_transports(1)
    worker, parents = Worker("w"), []
    worker.submit(job(transport, "before", [])).wait()
    with worker._wake:
        worker._new.append(Job(job(transport, "the parent's", parents), 0, "a job"))
        child = os.fork()
        if not child:
            signal.alarm(60)
            code = 1
            try:
                worker.stop()
                worker.submit(job(transport, "after", [])).wait()
                code = 2 if parents else 0
            finally:
                os._exit(code)
        worker._wake.notify()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    worker.stop()

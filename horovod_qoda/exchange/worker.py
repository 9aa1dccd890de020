"""The thread that moves exchanges forward while the training thread computes.

A job is a generator: it encodes, yields the handle of a collective, is resumed with its result,
and so on. Jobs start in the order they are submitted; all that are there are started before any
is waited for, so ranks whose gradients arrive in different orders cannot block each other.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Generator
from typing import Any

import numpy as np

from horovod_qoda.transport import POLL_S, Handle
from horovod_qoda.waiting import Waiting

Steps = Generator[Handle, Any, None]


class Job:
    """One submitted generator and how it ended.

    Args:
        rank, what: for messages: this rank, and what the job exchanges.
    """

    def __init__(self, steps: Steps, rank: int, what: str) -> None:
        self._steps = steps
        self._rank, self._what = rank, what
        self._ended = threading.Event()
        self.handle: Handle | None = None
        self.error: BaseException | None = None

    def advance(self) -> bool:
        """Takes the result of the last collective, if any, and runs to the next one.

        Returns False when the job has ended, by itself or by an error.
        """
        try:
            value = None if self.handle is None else self.handle.result()
            self.handle = self._steps.send(value)
            return True
        except StopIteration:
            pass
        except BaseException as e:  # reported by wait() in the thread that asked
            if e.args and isinstance(e.args[0], str):
                e.args = (f"{self._what}: {e.args[0]}", *e.args[1:])
            self.error = e
        self.handle = None
        self._ended.set()
        return False

    def wait(self) -> None:
        """Blocks until the job has ended; raises what it raised."""
        if not self._ended.is_set():
            with Waiting(self._rank, self._what) as waiting:
                # A plain wait() cannot be interrupted by Ctrl-C everywhere; a timed one can.
                while not self._ended.wait(1.0):
                    waiting.check()
        if self.error is not None:
            raise self.error


class Worker:
    """One daemon thread, started with the first job and again in a forked child."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begin()
        self.collective_s = 0.0
        """Seconds during which at least one collective was under way."""

    def _begin(self) -> None:
        self._wake = threading.Condition()
        self._new: deque[Job] = deque()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._stopping = False
        self._under_way = 0
        self._since = 0.0

    def submit(self, steps: Steps, rank: int = 0, what: str = "a job") -> Job:
        if self._pid != os.getpid():
            # A forked child: the lock may be held by a thread it does not have, the jobs are its
            # parent's.
            self._begin()
        job = Job(steps, rank, what)
        with self._wake:
            self._new.append(job)
            if self._thread is None or not self._thread.is_alive():
                self._stopping = False
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._wake.notify()
        return job

    def stop(self) -> None:
        """Ends the thread once its jobs have ended."""
        if self._pid != os.getpid():
            return
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def _run(self) -> None:
        # Gradients that overflow or are not finite reach every rank as what they are; numpy's
        # warning would name neither layer nor rank, and come from a thread nobody knows.
        with np.errstate(over="ignore", invalid="ignore"):
            self._advance_jobs()

    def _advance_jobs(self) -> None:
        active: list[Job] = []
        pause = POLL_S / 16
        while True:
            with self._wake:
                while not (self._new or active):
                    if self._stopping:
                        self._thread = None
                        return
                    self._wake.wait()
                fresh = list(self._new)
                self._new.clear()
            progress = bool(fresh)
            for job in fresh:
                if job.advance():
                    self._began(job)
                    active.append(job)
            for job in list(active):
                if job.handle is not None and _done(job.handle):
                    progress = True
                    self._came(job)
                    if job.advance():
                        self._began(job)
                    else:
                        active.remove(job)
            if progress:
                pause = POLL_S / 16
            elif active:
                with self._wake:
                    if not self._new:
                        self._wake.wait(pause)
                pause = min(pause * 2, POLL_S)

    def _began(self, job: Job) -> None:
        if job.handle is not None and job.handle.collective:
            if not self._under_way:
                self._since = time.perf_counter()
            self._under_way += 1

    def _came(self, job: Job) -> None:
        if job.handle is not None and job.handle.collective:
            self._under_way -= 1
            if not self._under_way:
                self.collective_s += time.perf_counter() - self._since


def _done(handle: Handle) -> bool:
    try:
        return handle.done()
    except Exception:  # result() raises it where it is reported
        return True

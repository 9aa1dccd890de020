"""Waiting for other ranks: within Horovod's stall limits, and never without saying for what.

Horovod's coordinator, rank 0, logs which ranks have not submitted a tensor and gives up on it
after ``HOROVOD_STALL_SHUTDOWN_TIME_SECONDS``. Where the coordinator itself has died, or a whole
process is frozen, Horovod's thread waits inside MPI for ever; then the limit here ends the rank.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from typing import Any

from horovod_qoda.logs import logger

EQUAL_BATCHES = (
    "every rank must take the same number of steps: DistributedSampler gives equal shares, or stop "
    "on all ranks after hvd.allreduce(torch.tensor(len(loader)), op=hvd.Min) batches; hvd.join() "
    "cannot stand in for a rank that has run out"
)


class StalledError(RuntimeError):
    """Other ranks did not take part in a collective, and Horovod did not end it."""


def stall_limits() -> tuple[float, float]:
    """Seconds until it is said that ranks are missing, and until this rank ends; 0 is never.

    Horovod looks once in ``HOROVOD_STALL_CHECK_TIME_SECONDS`` (60), so its own shutdown comes at
    most that much after ``HOROVOD_STALL_SHUTDOWN_TIME_SECONDS`` (0: never). Twice leaves it first.
    """
    warn = _seconds("HOROVOD_STALL_CHECK_TIME_SECONDS", 60.0)
    end = _seconds("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", 0.0)
    if os.environ.get("HOROVOD_STALL_CHECK_DISABLE", "0") not in ("", "0"):
        return 0.0, 0.0
    return warn, end + 2 * warn if end else 0.0


class Waiting:
    """Context in which one waits for other ranks, calling :meth:`check` now and then.

    A launcher that loses a rank ends the others by SIGTERM; where the script has no handler of its
    own, this says what was being waited for before it ends the process as before.

    Args:
        rank: this rank.
        what: what is waited for, as in "rank 1 has waited 60 s for <what>".
    """

    def __init__(self, rank: int, what: str) -> None:
        self._rank, self._what = rank, what
        self._since = time.monotonic()
        self._warn_s, self._end_s = stall_limits()
        # Two speak for all, in case one of them is who is missing: Horovod's own warning comes from
        # rank 0 alone, and does not come for ranks that wait in hvd.join().
        self._warned = not self._warn_s or rank > 1
        self._restore = False

    def __enter__(self) -> Waiting:
        if threading.current_thread() is threading.main_thread():
            self._restore = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if self._restore:
            signal.signal(signal.SIGTERM, self._ended)
        return self

    def __exit__(self, *error: object) -> None:
        if self._restore:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def check(self) -> None:
        """Warns, once, and raises StalledError when the limits of :func:`stall_limits` pass."""
        waited = time.monotonic() - self._since
        if not self._warned and waited > self._warn_s:
            self._warned = True
            logger().warning(
                f"rank {self._rank} has waited {waited:.0f} s for {self._what}; the log of rank 0 "
                f"names the ranks that are missing. Has one died, does it hang, or is it at "
                f"another place of the script? {EQUAL_BATCHES}"
            )
        if self._end_s and waited > self._end_s:
            # Horovod's shutdown at exit would join a thread that is stuck inside MPI.
            atexit.register(_leave)
            raise StalledError(
                f"rank {self._rank} has waited {waited:.0f} s for {self._what}, and Horovod has "
                "not ended it (HOROVOD_STALL_SHUTDOWN_TIME_SECONDS has passed): the process of "
                "another rank has died or is frozen (the launcher or the log of rank 0 names it), "
                f"or waits in hvd.join(): {EQUAL_BATCHES}"
            )

    def _ended(self, number: int, frame: Any) -> None:
        text = (
            f"horovod_qoda: rank {self._rank} was told to end (SIGTERM) while it waited for "
            f"{self._what}; the launcher says which rank ended first\n"
        )
        os.write(2, text.encode())
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _leave() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # a closed pipe, or no stream at all
        os._exit(1)


def _seconds(variable: str, default: float) -> float:
    try:
        return float(os.environ.get(variable, default))
    except ValueError:
        return default

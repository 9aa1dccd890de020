"""What has to be undone is undone, whatever signal ends the program meanwhile."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def afterwards(clean: Callable[[], None]) -> Iterator[None]:
    """Calls ``clean`` when the context ends, however it ends; no signal interrupts that.

    The first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt or SystemExit, and those that
    follow are ignored until ``clean`` is done. A first one that comes while ``clean`` runs is
    raised after it. A handler that the program has set stays until ``clean`` starts, and what nohup
    ignores stays ignored. Only the main thread can set handlers, and only there do they raise.
    """
    inside = threading.current_thread() is threading.main_thread()
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if inside else ()
    before = {s: handler for s in ending if (handler := signal.getsignal(s)) is not None}
    first: list[int] = []
    late: list[int] = []

    def end(number: int, _: object) -> None:
        if not first:
            first.append(number)
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            sys.exit(128 + number)

    def hold() -> None:
        for s in before:
            signal.signal(s, lambda number, _: late.append(number))

    try:
        try:
            for s, handler in before.items():
                if handler in (signal.SIG_DFL, signal.default_int_handler):
                    signal.signal(s, end)
            yield
        finally:
            hold()  # where a first signal comes in between, `end` raises once and no more
    finally:
        clean()
        for s, handler in before.items():
            signal.signal(s, handler)
        if late and not first:
            signal.raise_signal(late[0])

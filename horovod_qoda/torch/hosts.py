"""Which ranks share hosts, as process sets of Horovod."""

from __future__ import annotations

import os
from typing import Any

import horovod.torch as hvd
import numpy as np

from horovod_qoda.logs import logger
from horovod_qoda.settings import Settings
from horovod_qoda.transport import HorovodTransport, Hosts, Transport

_sets: dict[tuple[int, ...], Any] = {}
"""Process sets made here, by their ranks: Horovod refuses to make one twice."""

_ENABLE = "set HOROVOD_DYNAMIC_PROCESS_SETS=1, or call hvd.init(process_sets='dynamic')"


def find_hosts(process_set: Any, transport: Transport, settings: Settings) -> Hosts | None:
    """The hosts of all ranks, where two levels are wanted or worth it; a collective call.

    Args:
        process_set: the optimizer's.
        transport: the same ranks'.
        settings: ``topology`` "two_level" wants them; "auto" and "measured" take them where
            several hosts have several ranks each and Horovod may make process sets.

    Raises:
        ValueError: ``topology="two_level"`` is not possible here; says why.
    """
    if settings.topology not in ("auto", "measured", "two_level"):
        return None
    try:
        return _hosts(process_set, transport)
    except _Impossible as why:
        if settings.topology == "two_level":
            raise ValueError(f"topology='two_level' is not possible here: {why}") from None
        return None


class _Impossible(Exception):
    """Why ranks are not to be grouped by hosts."""


def _hosts(process_set: Any, transport: Transport) -> Hosts:
    if transport.size == 1:
        raise _Impossible("there is one rank")
    if int(process_set.process_set_id) != 0:
        raise _Impossible("the optimizer has a process set of its own")
    mine = np.array([hvd.cross_rank(), hvd.local_rank(), hvd.local_size()], np.int64)
    table = transport.allgather("horovod_qoda.hosts", mine).wait().reshape(-1, 3)
    hosts, places, sizes = table.T
    each = int(sizes[0])
    if each == 1:
        raise _Impossible("every host has one rank")
    if len(set(hosts.tolist())) == 1:
        raise _Impossible("there is one host")
    if (sizes != each).any():
        raise _Impossible(f"hosts have from {sizes.min()} to {sizes.max()} ranks")
    if os.environ.get("HOROVOD_DYNAMIC_PROCESS_SETS", "0") in ("", "0"):
        if transport.rank == 0:
            logger().info(
                f"{each} ranks share each host; summing there first would send 1/{each} of the "
                f"bytes across: {_ENABLE}"
            )
        raise _Impossible(f"Horovod makes no process sets: {_ENABLE}")
    # Every rank makes every set, in one order.
    for values in (hosts, places):
        for value in sorted(set(values.tolist())):
            _make(tuple(np.flatnonzero(values == value).tolist()))
    inside, across = (
        HorovodTransport(_sets[tuple(np.flatnonzero(of == of[transport.rank]).tolist())])
        for of in (hosts, places)
    )
    return Hosts(inside, across)


def _make(ranks: tuple[int, ...]) -> None:
    known = _sets.get(ranks)
    # After hvd.shutdown() Horovod has forgotten its sets.
    if (
        known is None
        or known.process_set_id not in hvd.mpi_ops._basics._get_process_set_ids_and_ranks()
    ):
        _sets[ranks] = hvd.add_process_set(list(ranks))

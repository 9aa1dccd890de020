"""Which ranks share hosts, as process sets of Horovod."""

from __future__ import annotations

import os
import socket
import zlib
from typing import Any

import horovod.torch as hvd
import numpy as np

from horovod_qoda.logs import logger
from horovod_qoda.settings import Settings
from horovod_qoda.transport import HorovodTransport, Hosts, Transport

_sets: dict[tuple[int, ...], Any] = {}
"""Process sets in use, by their ranks: Horovod refuses to make one twice."""

_ENABLE = (
    "set HOROVOD_DYNAMIC_PROCESS_SETS=1 on every host, or call hvd.init(process_sets='dynamic')"
)


def find_hosts(
    process_set: Any, transport: Transport, settings: Settings, leave_device: bool = False
) -> Hosts | None:
    """The hosts of all ranks, where two levels are wanted or worth it; a collective call.

    Args:
        process_set: the optimizer's.
        transport: the same ranks'.
        settings: ``topology`` "two_level" wants them; "auto" and "measured" take them where
            several hosts have several ranks each, Horovod may make process sets, and no rank's
            gradients would have to leave their device as float32.
        leave_device: whether this rank's would, to be summed on their host: they are on a device,
            and nothing travels as tensors on it.

    Raises:
        ValueError: ``topology="two_level"`` is not possible here; says why.
    """
    if settings.topology not in ("auto", "measured", "two_level"):
        return None
    try:
        if settings.allocation != "none":
            raise _Impossible("allocation='lgreco' weighs whole layers, not shards of them")
        return _hosts(process_set, transport, leave_device and settings.topology != "two_level")
    except _Impossible as why:
        if settings.topology == "two_level":
            raise ValueError(f"topology='two_level' is not possible here: {why}") from None
        return None


class _Impossible(Exception):
    """Why ranks are not to be grouped by hosts."""


def _hosts(process_set: Any, transport: Transport, averse: bool) -> Hosts:
    if transport.size == 1:
        raise _Impossible("there is one rank")
    if int(process_set.process_set_id) != 0:
        raise _Impossible("the optimizer has a process set of its own")
    dynamic = os.environ.get("HOROVOD_DYNAMIC_PROCESS_SETS", "0") not in ("", "0")
    mine = np.array([zlib.crc32(socket.gethostname().encode()), dynamic, averse], np.int64)
    table = transport.allgather("horovod_qoda.hosts", mine).wait().reshape(-1, 3)
    hosts = table[:, 0]
    sizes = np.unique(hosts, return_counts=True)[1]
    places = np.array([np.count_nonzero(hosts[:r] == hosts[r]) for r in range(len(hosts))])
    each = int(sizes[0])
    if len(sizes) == 1:
        raise _Impossible("there is one host")
    if (sizes != each).any():
        raise _Impossible(f"hosts have from {sizes.min()} to {sizes.max()} ranks")
    if each == 1:
        raise _Impossible("every host has one rank")
    if table[:, 2].any():
        why = "gradients on devices would pass the host's memory as float32"
        if transport.rank == 0:
            logger().info(
                f"{each} ranks share each host; summing there first would send 1/{each} of the "
                f"bytes across, but {why}: with HOROVOD_QODA_PAYLOADS=device and NCCL they stay, "
                "with topology='two_level' they pass"
            )
        raise _Impossible(why)
    if not table[:, 1].all():
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
    """Makes a process set, or takes the one that the script has made of the same ranks."""
    basics = hvd.mpi_ops._basics
    known = {tuple(r): number for number, r in basics._get_process_set_ids_and_ranks().items()}
    if ranks not in known:  # also after hvd.shutdown(), which forgets all sets
        _sets[ranks] = hvd.add_process_set(list(ranks))
    elif ranks not in _sets or _sets[ranks].process_set_id != known[ranks]:
        _sets[ranks] = hvd.ProcessSet(list(ranks))
        _sets[ranks].process_set_id = known[ranks]

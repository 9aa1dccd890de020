"""The first exchange is preceded by one question: do all ranks mean the same thing?

Hashes travel first; only where they differ do descriptions follow, so that the error can name the
setting, the layer and the ranks, on every rank.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from horovod_qoda.layout import Layout, describe, first_difference
from horovod_qoda.settings import Settings
from horovod_qoda.transport import POLL_S, Handle, Hosts, Transport
from horovod_qoda.waiting import Waiting

CALL = b"horovod_qoda: a rank asks for a handshake"
"""What a rank sends, behind a length as payloads do, before ranks agree (again)."""

_CALL_BYTES = 64

PROTOCOL = 2
"""Number of what travels around payloads (docs/wire-format.md), and of what ranks tell each other
before them; raised where either changes."""


NOT_EVERYWHERE = (
    "some ranks have changed compression settings or loaded state and others have not: call "
    "set_compression() on every rank between the same two steps, and load_state_dict() on every "
    "rank or on rank 0 followed by hvd.broadcast_optimizer_state()"
)


class MismatchError(RuntimeError):
    """Ranks disagree about settings, model or parameters."""


def roll_call(transport: Transport, name: str, hosts: Hosts | None = None) -> None:
    """Do all ranks want a handshake? Asked under the name of an exchange's first collective.

    Settings may change and state may be loaded during training. A rank where that was forgotten
    goes on with its next exchange; under its name it receives this call instead of payloads, or a
    sum of another shape, and both sides end with an error instead of waiting for each other.
    Horovod tells collectives apart by kind and name, so the call goes out as each kind; where hosts
    are known it goes out inside this one too, which is where two levels begin.

    Raises:
        MismatchError: this rank changed something and another did not.
    """
    mine = np.zeros(_CALL_BYTES, np.uint8)
    mine[:8] = np.frombuffer(_CALL_BYTES.to_bytes(8, "little"), np.uint8)
    mine[8 : 8 + len(CALL)] = np.frombuffer(CALL, np.uint8)
    everyone, count = np.tile(mine, transport.size), transport.size
    expected: list[tuple[Handle, np.ndarray]] = [
        (transport.allgather(name, mine), everyone),
        (transport.alltoall(name, everyone, np.full(count, _CALL_BYTES, np.int32)), everyone),
        (transport.allreduce(name, np.ones(1, np.float32)), np.full(1, count, np.float32)),
    ]
    if hosts is not None:
        inside = np.tile(mine, hosts.inside.size)
        splits = np.full(hosts.inside.size, _CALL_BYTES, np.int32)
        expected.append((hosts.inside.alltoall(name + ".host", inside, splits), inside))
    with Waiting(transport.rank, f"the other ranks' handshake ({name})") as waiting:
        while expected:
            here = [x for x in expected if x[0].done()]
            for handle, want in here:
                _check_call(handle, want)
            expected = [x for x in expected if all(x is not y for y in here)]
            if not here:
                time.sleep(POLL_S)
                waiting.check()


def _check_call(handle: Handle, want: np.ndarray) -> None:
    try:
        result = handle.result()
    except RuntimeError as e:  # Horovod's, where another rank sums its gradients
        raise MismatchError(f"{NOT_EVERYWHERE}, or a rank has ended: {e}") from e
    received = result[0] if isinstance(result, tuple) else result
    if not np.array_equal(received, want):
        raise MismatchError(NOT_EVERYWHERE)


def gather_objects(transport: Transport, name: str, value: Any) -> list[Any]:
    """JSON values of all ranks in rank order."""
    data = np.frombuffer(json.dumps(value).encode(), np.uint8).copy()
    lengths = transport.allgather(name + ".lengths", np.array([len(data)], np.int64)).wait()
    texts = transport.allgather(name + ".texts", data).wait()
    ends = np.cumsum(lengths)
    return [json.loads(bytes(t)) for t in np.split(texts, ends[:-1])]


def object_of_root(transport: Transport, name: str, value: Any) -> Any:
    """Rank 0's JSON value, on every rank."""
    text = json.dumps(value).encode() if transport.rank == 0 else b""
    return json.loads(bytes(transport.allgather(name, np.frombuffer(text, np.uint8).copy()).wait()))


def agree(transport: Transport, name: str, settings: Settings, layout: Layout) -> None:
    """Compares settings and layouts over ranks; ``name`` begins the collectives' names.

    Raises:
        MismatchError: on every rank, naming the first setting or layer that differs and the ranks.
    """
    wanted = settings.canonical()
    hashes = [PROTOCOL, _hash(wanted), layout.hash]
    same_protocol, same_settings, same_layout = _equal(transport, name + ".hashes", hashes)
    if not same_protocol:
        raise MismatchError(
            "ranks run builds of horovod_qoda that frame payloads differently: install the same "
            "release on every rank"
        )
    if not same_settings:
        _settings_differ(gather_objects(transport, name + ".settings", wanted))
    if not same_layout:
        layers = [describe(x, layout.types) for x in layout.layers]
        _layers_differ(gather_objects(transport, name + ".layers", layers))


def agree_on_parameters(
    transport: Transport, name: str, names: Sequence[str], hashes: Sequence[int], remedy: str
) -> None:
    """Compares the parameters themselves, by a 64-bit hash of each layer.

    Raises:
        MismatchError: on every rank, naming the first layer that differs, the ranks and ``remedy``.
    """
    (same,) = _equal(transport, name + ".digest", [_hash(list(hashes))])
    if same:
        return
    all_hashes = gather_objects(transport, name + ".parameters", list(hashes))
    for layer, values in zip(names, zip(*all_hashes, strict=True), strict=True):
        if len(set(values)) > 1:
            groups = _by_rank([f"{value:016x}" for value in values])
            raise MismatchError(
                f"parameters differ between ranks in layer {layer!r}: {groups}; {remedy}"
            )


def _equal(transport: Transport, name: str, hashes: Sequence[int]) -> list[bool]:
    """For each hash, whether it is the same on all ranks."""
    mine = np.array(hashes, np.uint64).view(np.int64)
    table = transport.allgather(name, mine).wait().reshape(-1, len(hashes))
    return [len(np.unique(column)) == 1 for column in table.T]


def _hash(value: Any) -> int:
    text = json.dumps(value, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _settings_differ(all_settings: Sequence[dict[str, str]]) -> None:
    for key in all_settings[0]:
        values = [s.get(key) for s in all_settings]
        if len(set(values)) > 1:
            raise MismatchError(
                f"ranks were given different compression settings: {key} is {_by_rank(values)}; "
                "pass the same arguments, flags and HOROVOD_QODA_ variables on every rank"
            )


def _layers_differ(all_layers: Sequence[list[Any]]) -> None:
    for theirs in all_layers:
        i = first_difference(all_layers[0], theirs)
        if i is not None:
            values = [str(x[i][:3]) if i < len(x) else "missing" for x in all_layers]
            raise MismatchError(
                f"ranks have different models: layer {i} is {_by_rank(values)}; build the same "
                "model with the same parameter order on every rank"
            )
    raise MismatchError(
        "ranks lay the same layers out differently: do they run one version of this package?"
    )


def _by_rank(values: Sequence[Any]) -> str:
    """``v on ranks [0, 1], w on ranks [2]``, longest group first."""
    groups: dict[Any, list[int]] = {}
    for rank, value in enumerate(values):
        groups.setdefault(value, []).append(rank)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[1]))
    return ", ".join(f"{value} on ranks {_short(ranks)}" for value, ranks in ordered[:4])


def _short(ranks: list[int]) -> str:
    return str(ranks) if len(ranks) <= 8 else f"[{', '.join(map(str, ranks[:8]))}, ...]"

"""Bytes, messages and CPU time of one exchange, by topology."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from horovod_qoda.cost.exchange import RAW, Exchange, payload_bytes
from horovod_qoda.cost.machine import Machine

# In front of a shard that two levels hand back inside a host: the sums, and the scalar of rank 0.
HEAD = 128


@dataclass(frozen=True)
class Load:
    """What one exchange asks of the busiest host's link and of the busiest rank.

    Attributes:
        link: bytes that a host's link carries in each direction, for all ranks of the host.
        handled: bytes over links that pass through one rank, in and out.
        messages: from host to host, those of one rank, one after the other.
        collectives: that wait for ranks of all hosts.
        inside: collectives among the ranks of one host.
        cpu: seconds of one core, moving bytes inside the host included, the wire's own not.
    """

    link: float = 0.0
    handled: float = 0.0
    messages: int = 0
    collectives: int = 0
    inside: int = 0
    cpu: float = 0.0


def load(exchange: Exchange, machine: Machine) -> Load:
    """Load of one exchange; nothing for a single rank."""
    if exchange.ranks == 1:
        return Load()
    if exchange.topology in RAW:
        return _raw(exchange, machine)
    if exchange.topology == "allgather":
        return _allgather(exchange, machine)
    if exchange.topology == "scatter_reduce":
        return _scatter_reduce(exchange, machine)
    if exchange.topology == "two_level":
        return _two_level(exchange, machine)
    return _power_sgd(exchange, machine)


def flat(ranks: int, bits: float) -> str:
    """The topology that ``auto`` takes among ranks on hosts of their own, by bytes."""
    return "allgather" if ranks <= (3 if bits <= 2 else 2) else "scatter_reduce"


def _raw(exchange: Exchange, machine: Machine) -> Load:
    """Horovod's ring all-reduce: a reduce-scatter and an all-gather."""
    d, ranks = exchange.coordinates, exchange.ranks
    size = d * (4 if exchange.topology == "fp32" else 2)
    cpu = d * machine.add * (ranks - 1) / ranks
    if exchange.topology == "fp16":
        cpu += d * machine.cast
    moved = 2 * (ranks - 1) / ranks * size
    rounds = exchange.buffers
    return _ring(exchange, machine, moved, 2 * rounds, rounds, cpu)


def _allgather(exchange: Exchange, machine: Machine) -> Load:
    d, ranks, buffers = exchange.coordinates, exchange.ranks, exchange.buffers
    layers = max(1.0, exchange.layers / buffers)
    whole = payload_bytes(d / buffers, layers, exchange.types, exchange.bits)
    cpu = d * (machine.copy + machine.encode + ranks * machine.decode)
    return _ring(exchange, machine, buffers * (ranks - 1) * whole, buffers, buffers, cpu)


def _scatter_reduce(exchange: Exchange, machine: Machine) -> Load:
    d, ranks, each, buffers = (
        exchange.coordinates, exchange.ranks, exchange.ranks_per_host, exchange.buffers,
    )  # fmt: skip
    part, owners = d / buffers, exchange.owners
    segments = max(1.0, exchange.layers / buffers / owners)
    chunk = payload_bytes(part / owners, segments, exchange.types, exchange.bits)
    # Of the owner of a chunk in every buffer: its own part of both stages stays where it is.
    own = part / owners * buffers
    cpu = d * (machine.copy + machine.encode + machine.decode)
    cpu += own * (ranks * machine.decode + machine.encode)
    cpu += buffers * (each - 1) * chunk * machine.inside
    # Each rank of another host sends to each owner of this one; chunks come back in a ring.
    outside = buffers * (ranks - each) * chunk
    gather = _ring(exchange, machine, buffers * (owners - 1) * chunk, buffers, buffers, cpu)
    return replace(
        gather,
        link=gather.link + min(each, owners) * outside,
        handled=gather.handled + 2 * outside,
        messages=2 * gather.messages,
        collectives=2 * gather.collectives,
    )


def _two_level(exchange: Exchange, machine: Machine) -> Load:
    """R ranks cut a buffer into m shards, sum theirs as float32, and exchange it across hosts."""
    each, hosts = exchange.ranks_per_host, exchange.hosts
    way = flat(hosts, exchange.bits)
    if each == 1:
        return load(replace(exchange, topology=way), machine)
    d, buffers, shards = exchange.coordinates, exchange.buffers, exchange.parts(each)
    inner = Exchange(
        coordinates=math.ceil(d / shards),
        ranks=hosts,
        topology=way,
        bits=exchange.bits,
        layers=math.ceil(exchange.layers / shards),
        types=exchange.types,
        buffer=math.ceil(exchange.buffer / shards),
    )
    across = load(inner, machine)
    # Shards of the other ranks come in, means of the other shards come back.
    handed = 4 * d / shards * (each - 1) + 4 * d * (shards - 1) / shards
    handed += HEAD * (each - 1) * buffers
    cpu = d * machine.copy + d / shards * (each - 1) * machine.add + handed * machine.inside
    return replace(across, link=shards * across.link, inside=2 * buffers, cpu=across.cpu + cpu)


def _power_sgd(exchange: Exchange, machine: Machine) -> Load:
    """All-reduces of P and Q, rank 0's basis between them; layers are taken for square."""
    d, ranks, count = exchange.coordinates, exchange.ranks, exchange.layers
    side = math.sqrt(d / count)
    rank = min(exchange.low_rank, side)
    thin = 4 * rank * side * count
    moved = 2 * 2 * (ranks - 1) / ranks * thin + thin
    cpu = d * (machine.copy + machine.low_rank + rank * machine.product)
    cpu += count * (machine.matrix + side * rank**2 * machine.orthogonal)
    return _ring(exchange, machine, moved, 5 * exchange.buffers, 3 * exchange.buffers, cpu)


def _ring(
    exchange: Exchange, machine: Machine, moved: float, rounds: int, collectives: int, cpu: float
) -> Load:
    """Load of collectives that pass ``moved`` bytes through every rank.

    What arrives is passed on, so as much is sent as is received. Ranks of one host are neighbours:
    one of them receives from another host and hands on inside, one the other way round.

    Args:
        rounds: in each of them every rank passes K − 1 messages on, one after the other.
    """
    if exchange.ranks_per_host > 1:
        cpu += moved * machine.inside
    if exchange.hosts == 1:
        return Load(inside=collectives, cpu=cpu)
    ends = 2 if exchange.ranks_per_host == 1 else 1
    return Load(
        link=moved,
        handled=ends * moved,
        messages=rounds * (exchange.ranks - 1),
        collectives=collectives,
        cpu=cpu,
    )

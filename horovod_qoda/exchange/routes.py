"""By which way each buffer travels, and the memory it needs on that way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from horovod_qoda.exchange import travel
from horovod_qoda.exchange.allgather import allgather
from horovod_qoda.exchange.allreduce import allreduce
from horovod_qoda.exchange.buffer import ExchangeBuffer
from horovod_qoda.exchange.placement import Placement
from horovod_qoda.exchange.power_sgd import PowerSGD
from horovod_qoda.exchange.scatter_reduce import scatter_reduce
from horovod_qoda.exchange.step import Step
from horovod_qoda.exchange.trial import RAW, Trial
from horovod_qoda.exchange.two_level import shard, two_level
from horovod_qoda.exchange.worker import Steps
from horovod_qoda.layout import Layout
from horovod_qoda.settings import Settings
from horovod_qoda.transport import Hosts, Transport

_MPI_LIMIT = 2**31
"""MPI counts are 32-bit: no call may move more bytes to a rank."""

_VECTORS = ("previous", "previous_error")


def choose_topology(settings: Settings, ranks: int, hosts: Hosts | None = None) -> str:
    """The topology in force: ``auto`` takes the fewer bytes at equal variance of the mean.

    Two levels where hosts have several ranks and are known. Else all-gather receives K b bits a
    coordinate, scatter-reduce sends and receives 2 b; the crossover is at K = 2, or 3 at up to 2
    bits (docs/theory.md section 9).
    """
    if settings.topology not in ("auto", "measured"):
        return settings.topology
    if hosts is not None:
        return "two_level"
    return "allgather" if ranks <= (3 if settings.bits <= 2 else 2) else "scatter_reduce"


class Routes:
    """The buffers of one exchange and the job for each of them.

    Args:
        hosts: which ranks share hosts; needed for two levels once an exchange starts.
        devices: torch devices of the layers' gradients; None where all are the CPU.

    Attributes:
        topology: ``allgather``, ``scatter_reduce`` or ``two_level``, where buffers are not raw.
        stages: quantised stages, 1 or 2.
        buffers: this rank's gradients and their means.
        coded: what this rank codes: ``buffers``, or with two levels its shards of its host's mean.
        trial: set where compression has to prove that it pays.
        placement: where the buffers are coded.
        travels: how payloads of devices travel, a sentence for the log; empty where there are none.

    Raises:
        ValueError: a buffer would not fit into one MPI call, or an environment variable has a value
            that it cannot have.
    """

    def __init__(
        self,
        layout: Layout,
        settings: Settings,
        transport: Transport,
        hosts: Hosts | None,
        devices: Sequence[Any] | None = None,
    ) -> None:
        self.topology = choose_topology(settings, transport.size, hosts)
        self.power_sgd = PowerSGD(layout, settings)
        self.trial = Trial() if settings.topology == "measured" and transport.size > 1 else None
        self._transport = transport
        self._warmup = settings.warmup_steps
        self._hosts = hosts if self.topology == "two_level" else None
        # Who codes: every rank, or with two levels every place once on each host.
        coders = self._hosts.across if self._hosts else transport
        within = replace(settings, topology="auto") if self.topology == "two_level" else settings
        flat = choose_topology(within, coders.size)
        self._flat = {"allgather": allgather, "scatter_reduce": scatter_reduce}[flat]
        self.stages = 2 if flat == "scatter_reduce" else 1
        parts = coders.size if flat == "scatter_reduce" else 1
        self.placement = Placement(layout, devices)
        self.buffers = [
            ExchangeBuffer(layout, plan, 1 if self._hosts else parts, self.placement.codec(plan))
            for plan in layout.buffers
        ]
        self._shards = [
            ExchangeBuffer(
                layout, shard(layout, whole.plan, inside.size, inside.rank), parts, whole.codec
            )
            for whole in self.buffers
            if self._hosts and (inside := self._hosts.inside)
        ]
        self.coded = self._shards or self.buffers
        self.travels = ""
        travel.wanted()  # an unknown value is told now, not while other ranks wait for this one
        _check_sizes(layout, coders.size, parts, raw=self._hosts is not None)

    @property
    def offer(self) -> dict[str, Any]:
        """What all ranks must know for :meth:`agree` of how this one's payloads could travel."""
        return travel.offer([buffer.codec for buffer in self.buffers], self._transport)

    def agree(self, offers: Sequence[dict[str, Any]]) -> None:
        """From here on payloads travel the same way on all ranks.

        Args:
            offers: of all ranks, in rank order.
        """
        sends = not travel.why_from_host(offers)
        for codec in self.placement.codecs:
            codec.sends = sends
        self.travels = travel.describe(offers, self._transport)

    def topology_of(self, number: int, age: int) -> str:
        """Topology of exchange ``number``, the ``age``-th since adaptation began; may be raw.

        Raises:
            ValueError: two levels, and nobody said which ranks share hosts.
        """
        if self.topology == "two_level" and self._hosts is None:
            raise ValueError("topology='two_level' needs to know which ranks share a host")
        if number < self._warmup or (self.trial is not None and self.trial.way(age) == RAW):
            return "raw"
        return self.topology

    def job(self, step: Step, buffer: ExchangeBuffer) -> Steps:
        """The job that exchanges one buffer."""
        if step.topology == "raw":
            approximated = buffer.plan.index in self.power_sgd.parts
            if self._hosts is None or approximated or not step.wants_sums:
                return allreduce(step, buffer)
            # QODA's nodes are the hosts, so what they are said to have sent must be theirs from
            # the start: the first coded exchange takes differences from the last raw one.
            return two_level(step, buffer, self._shards[buffer.plan.index], self._hosts, allreduce)
        low_rank = self.power_sgd.job(step, buffer)
        if low_rank is not None:
            return low_rank
        if step.topology != "two_level":
            return self._flat(step, buffer)
        assert self._hosts is not None
        return two_level(step, buffer, self._shards[buffer.plan.index], self._hosts, self._flat)

    @property
    def sent_bytes(self) -> int:
        """Bytes handed to Horovod, without those that stay on this host by two levels."""
        return self._transport.sent_bytes + (self._hosts.across.sent_bytes if self._hosts else 0)

    def forget(self) -> None:
        """What is remembered of earlier exchanges starts at zero again."""
        self.power_sgd.forget()
        for _, buffer in self._memories():
            buffer.previous = buffer.previous_error = None

    def local_state(self) -> dict[str, Any]:
        """What differs between ranks, as torch tensors: what QODA's sums and PowerSGD need."""
        import torch

        vectors = {
            f"{kind}.{name}": torch.from_numpy(buffer.codec.fetch(array).copy())
            for name, buffer in self._memories()
            for kind in _VECTORS
            if (array := getattr(buffer, kind)) is not None
        }
        for name, buffer in self._memories():
            if buffer.followed is not None:
                vectors[f"followed.{name}"] = torch.from_numpy(buffer.followed.copy())
        return vectors | self.power_sgd.local_state()

    def load_local_state(self, vectors: dict[str, Any]) -> None:
        """Takes :meth:`local_state` back; raises ValueError where it is of other buffers."""
        for name, buffer in self._memories():
            for kind in _VECTORS:
                vector = vectors.get(f"{kind}.{name}")
                if vector is not None and kind == "previous" and len(vector) != buffer.plan.size:
                    raise ValueError(
                        f"the local state's buffer {name} has {len(vector)} coordinates, "
                        f"here it has {buffer.plan.size}: the model or fusion_mb has changed"
                    )
                setattr(buffer, kind, None if vector is None else buffer.loaded(vector.numpy()))
            followed = vectors.get(f"followed.{name}")
            buffer.followed = None if followed is None else followed.numpy().copy()
        self.power_sgd.load_local_state(vectors)

    def _memories(self) -> Iterator[tuple[str, ExchangeBuffer]]:
        """Everything that remembers earlier exchanges, by name."""
        for buffer in self.buffers:
            yield str(buffer.plan.index), buffer
        for buffer in self._shards:
            yield f"{buffer.plan.index}.shard", buffer


def _check_sizes(layout: Layout, ranks: int, parts: int, raw: bool) -> None:
    """Raises ValueError where one MPI call would move 2 GiB; a layer is never split.

    Args:
        raw: buffers travel inside hosts as float32.
    """
    for buffer in layout.buffers:
        kinds = [layout.types[layout.layers[i].type] for i in buffer.layers]
        sizes = [layout.layers[i].numel for i in buffer.layers]
        # A third more than the rate, for layers that code worse than the mean.
        # PowerSGD's thin matrices are nowhere near.
        rates = [0 if t.low_rank else 32 if t.raw else 1.33 * t.bits for t in kinds]
        each = sum(n * bits / 8 for n, bits in zip(sizes, rates, strict=True))
        if raw:
            each, ranks = 4.0 * sum(sizes), parts
        if each * ranks / parts >= _MPI_LIMIT or each >= _MPI_LIMIT:
            largest = layout.layers[buffer.layers[int(np.argmax(sizes))]]
            raise ValueError(
                f"layer {largest.name!r} ({largest.numel:,} coordinates) would take a call of "
                f"about {each * ranks / parts / 2**30:.1f} GiB, and MPI moves less than 2: "
                + ("" if raw else "use topology='scatter_reduce', fewer bits, or ")
                + "split the layer"
            )

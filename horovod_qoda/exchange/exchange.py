"""The exchange of one optimizer: gradients are put in layer by layer, means come back."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from horovod_qoda.exchange.adaptation import Adaptation, is_update, mean_entropy
from horovod_qoda.exchange.allgather import allgather
from horovod_qoda.exchange.allreduce import allreduce
from horovod_qoda.exchange.buffer import ExchangeBuffer
from horovod_qoda.exchange.handshake import agree, object_of_root, roll_call
from horovod_qoda.exchange.observations import sum_over_ranks
from horovod_qoda.exchange.power_sgd import PowerSGD
from horovod_qoda.exchange.records import ExchangeRecord
from horovod_qoda.exchange.scatter_reduce import scatter_reduce
from horovod_qoda.exchange.step import Outgoing, Step
from horovod_qoda.exchange.two_level import shard, two_level
from horovod_qoda.exchange.worker import Job, Steps, Worker
from horovod_qoda.layout import Layout
from horovod_qoda.logs import logger
from horovod_qoda.settings import Settings
from horovod_qoda.transport import Hosts, Transport

_ADAPTED = (
    "bits", "quantizer", "rules", "bucket_size", "norm", "levels", "topology", "min_numel",
    "low_rank", "level_solver", "types", "coding", "allocation", "allocation_error",
    "allocation_alpha",
)  # fmt: skip
"""Settings that decide what adaptation means."""

_MPI_LIMIT = 2**31
"""MPI counts are 32-bit: no call may move more bytes to a rank."""

_LOCAL = ("previous", "previous_error", "followed")

_ITEMSIZE = {"torch.float64": 8, "torch.float16": 2, "torch.bfloat16": 2}


@dataclass(frozen=True)
class Sums:
    """QODA's scalars of one exchange (docs/theory.md section 6), equal on all ranks."""

    sum_sq: float
    sum_sq_diff: float
    aux: float | None


def choose_topology(settings: Settings, ranks: int, hosts: Hosts | None = None) -> str:
    """The topology in force: ``auto`` takes the fewer bytes at equal variance of the mean.

    Two levels where hosts have several ranks and are known. Else all-gather receives K b bits a
    coordinate, scatter-reduce sends and receives 2 b; the crossover is at K = 2, or 3 at up to 2
    bits (docs/theory.md section 9).
    """
    if settings.topology != "auto":
        return settings.topology
    if hosts is not None:
        return "two_level"
    return "allgather" if ranks <= (3 if settings.bits <= 2 else 2) else "scatter_reduce"


class Exchange:
    """Averages gradients over the ranks of a transport, compressed.

    One exchange is: :meth:`put` every layer, in any order and from any thread; :meth:`mean` every
    layer; :meth:`finish`. A buffer is coded and sent as soon as its layers, and all buffers before
    it, are complete.

    Args:
        layout, settings: the same on all ranks, which the first exchange verifies.
        transport: the ranks to average over.
        optimizer: number of the optimizer on this rank, part of names and random counters.
        wants_sums: also compute QODA's scalars.
        aux: gives the scalar that rank 0 sends along, asked when an exchange starts.
        hosts: which ranks share hosts; needed for two levels once something is put.

    Raises:
        ValueError: a buffer would not fit into one MPI call.
    """

    def __init__(
        self,
        layout: Layout,
        settings: Settings,
        transport: Transport,
        optimizer: int,
        wants_sums: bool = False,
        aux: Callable[[], float] | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        self.layout, self.settings, self.transport = layout, settings, transport
        self.topology = choose_topology(settings, transport.size, hosts)
        self._hosts = hosts if self.topology == "two_level" else None
        # Who codes: every rank, or with two levels every place once on each host.
        coders = self._hosts.across if self._hosts else transport
        within = replace(settings, topology="auto") if self.topology == "two_level" else settings
        self._flat_topology = choose_topology(within, coders.size)
        self.wants_sums = wants_sums
        self.number = 0
        self._since = 0
        self._aux = aux
        self._optimizer = optimizer
        # Seed and optimizer of the random numbers: a run that resumes goes on with its own.
        self._stream = settings.seed | (optimizer & 0xFFF) << 52
        stages = 2 if self._flat_topology == "scatter_reduce" else 1
        self.adaptation = Adaptation(layout, stages, settings)
        self.power_sgd = PowerSGD(layout, settings)
        parts = coders.size if self._flat_topology == "scatter_reduce" else 1
        self._buffers = [
            ExchangeBuffer(layout, plan, 1 if self._hosts else parts) for plan in layout.buffers
        ]
        self._shards = [
            ExchangeBuffer(layout, shard(layout, plan, inside.size, inside.rank), parts)
            for plan in layout.buffers
            if self._hosts and (inside := self._hosts.inside)
        ]
        self._buffer_of = {i: b for b in self._buffers for i in b.plan.layers}
        self._outgoing = Outgoing()
        self._worker = Worker(f"horovod_qoda-{optimizer}")
        self._lock = threading.Lock()
        self._step: Step | None = None
        self._jobs: list[Job] = []
        self._agreed = False
        self._local_number: int | None = None
        # The worker's thread must not outlive the exchange that nobody holds any more.
        weakref.finalize(self, self._worker.stop)
        _check_sizes(layout, coders.size, parts, raw=self._hosts is not None)
        self._raw_bytes = sum(x.numel * _ITEMSIZE.get(x.dtype, 4) for x in layout.layers)

    @property
    def name(self) -> str:
        return f"horovod_qoda.{self._optimizer}"

    @property
    def under_way(self) -> bool:
        """Whether layers were put since the last :meth:`finish`."""
        return self._step is not None

    def agree(self) -> None:
        """Compares settings and layout over ranks, once; raises MismatchError on every rank."""
        if not self._agreed:
            # Ranks that see no reason to agree send their first buffer under this name.
            roll_call(self.transport, f"{self.name}.buffer0.stage0")
            agree(self.transport, self.name, self.settings, self.layout)
            # Scripts load a checkpoint on rank 0 and broadcast: what adapts follows rank 0 too.
            state = object_of_root(self.transport, self.name + ".state", self.state_dict())
            if self.transport.rank:
                self._adopt(state)
            self._agreed = True
            if self._local_number not in (None, self.number):
                raise ValueError(
                    f"rank {self.transport.rank}: the local state is of exchange "
                    f"{self._local_number}, the checkpoint of exchange {self.number}"
                )
            self._local_number = None

    def disagree(self) -> None:
        """State was loaded on some rank: :meth:`agree` asks again before the next exchange."""
        self._agreed = False

    def put(self, layer: int, gradient: Any) -> None:
        """Hands over a layer's gradient (a torch tensor; ``None`` means zeros), copying it."""
        with self._lock:
            if self._step is None:
                self._start()
        buffer = self._buffer_of[layer]
        buffer.put(layer, gradient, self.settings.threads)
        with self._lock:
            self._submit_ready()

    def mean(self, layer: int) -> np.ndarray:
        """Mean over ranks of a layer, flat float32; waits until it is there.

        The array is overwritten by the next exchange. Raises what the exchange raised.
        """
        assert self._step is not None
        buffer = self._buffer_of[layer]
        begin = time.perf_counter()
        self._jobs[buffer.plan.index].wait()
        self._step.tally.wait_s += time.perf_counter() - begin
        return buffer.span(layer, "mean")

    def finish(self) -> tuple[ExchangeRecord, Sums]:
        """Ends the exchange; updates tables and factors where it is time."""
        step = self._step
        assert step is not None
        begin = time.perf_counter()
        if len(self._jobs) < len(self._buffers):
            raise RuntimeError("finish() before every layer was put")
        for job in self._jobs:
            job.wait()
        tally = step.tally
        tally.wait_s += time.perf_counter() - begin
        if self._topology_of(step.number) != "raw":
            since = self._age(step.number)
            self.adaptation.follow(self._coded, since)
            self.power_sgd.follow(self._buffers, since)
        if step.histogram is not None:
            self._update(step)
        tally.exchange_s = self._worker.collective_s - tally.exchange_s
        tally.wire_bytes = self._sent_bytes() - tally.wire_bytes
        rates = [bits / count for bits, count in tally.coded.values() if count]
        record = ExchangeRecord(
            exchange=step.number,
            topology=self._topology_of(step.number),
            coordinates=self.layout.quantized,
            raw_bytes=self._raw_bytes,
            payload_bytes=tally.payload_bytes,
            wire_bytes=tally.wire_bytes,
            coded_bits=float(np.mean(rates)) if rates else float("nan"),
            entropy_bits=tally.entropy_bits,
            encode_s=tally.encode_s,
            decode_s=tally.decode_s,
            exchange_s=tally.exchange_s,
            busy_s=tally.ended - tally.started,
            wait_s=tally.wait_s,
        )
        ordered = [step.sums[key] for key in sorted(step.sums)]
        sums = Sums(sum(a for a, _ in ordered), sum(b for _, b in ordered), step.received_aux)
        self._step = None
        self.number += 1
        return record, sums

    def state_dict(self) -> dict[str, Any]:
        """Exchange number and what has been adapted: numbers and lists, equal on all ranks."""
        return {
            "exchange": self.number,
            "since": self._since,
            "stream": self._stream,
            "settings": self.settings.canonical(),
            "adaptation": self.adaptation.state_dict(),
            "power_sgd": self.power_sgd.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back; what is local to ranks starts at zero until it is loaded too.

        With other settings only the exchange number is taken, and adaptation starts anew.

        Raises:
            ValueError: the state is of another model.
        """
        self._adopt(state)
        self._agreed = False
        self._local_number = None
        self.power_sgd.forget()
        for _, buffer in self._memories():
            buffer.previous = buffer.previous_error = None
        anew = ["differences from the previous exchange"] if self.wants_sums else []
        anew += ["PowerSGD's residuals"] if self.power_sgd.parts else []
        if anew and self.number and self.transport.rank == 0:
            logger().info(
                "compression state loaded; unless load_local_state_dict() follows on every rank, "
                f"{' and '.join(anew)} start at zero"
            )

    def local_state_dict(self) -> dict[str, Any]:
        """What differs between ranks, as torch tensors: what QODA's sums and PowerSGD need."""
        import torch

        vectors = {
            f"{kind}.{name}": torch.from_numpy(array.copy())
            for name, b in self._memories()
            for kind in _LOCAL
            if (array := getattr(b, kind)) is not None
        }
        return {
            "exchange": self.number,
            "rank": self.transport.rank,
            "ranks": self.transport.size,
            "vectors": vectors | self.power_sgd.local_state(),
        }

    def load_local_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what this rank saved; raises ValueError where it was saved elsewhere."""
        here = (self.transport.rank, self.transport.size)
        if not state:
            return
        if (state["rank"], state["ranks"]) != here:
            raise ValueError(
                f"local state saved by rank {state['rank']} of {state['ranks']}, it cannot be "
                f"loaded by rank {here[0]} of {here[1]}; without it differences start at zero"
            )
        for name, b in self._memories():
            for kind in _LOCAL:
                vector = state["vectors"].get(f"{kind}.{name}")
                if vector is not None and kind == "previous" and len(vector) != b.plan.size:
                    raise ValueError(
                        f"the local state's buffer {name} has {len(vector)} coordinates, "
                        f"here it has {b.plan.size}: the model or fusion_mb has changed"
                    )
                setattr(b, kind, None if vector is None else vector.numpy().copy())
        self.power_sgd.load_local_state(state["vectors"])
        self._local_number = int(state["exchange"])

    def close(self) -> None:
        self._worker.stop()

    def _adopt(self, state: dict[str, Any]) -> None:
        mine = self.settings.canonical()
        changed = [key for key in _ADAPTED if state["settings"].get(key) != mine[key]]
        if changed:
            logger().warning(
                f"compression settings have changed ({', '.join(changed)}): what compression had "
                "adapted starts anew"
            )
            self._since = int(state["exchange"])
        else:
            self.adaptation.load_state_dict(state["adaptation"])
            self.power_sgd.load_state_dict(state["power_sgd"])
            self._since = int(state["since"])
        self.number = int(state["exchange"])
        self._stream = int(state["stream"])

    def _topology_of(self, number: int) -> str:
        return "raw" if number < self.settings.warmup_steps else self.topology

    def _age(self, number: int) -> int:
        """Exchanges since adaptation began, which is what its schedule counts."""
        return number - max(self._since, self.settings.warmup_steps)

    def _start(self) -> None:
        if self.topology == "two_level" and self._hosts is None:
            raise ValueError("topology='two_level' needs to know which ranks share a host")
        step = Step(
            number=self.number,
            optimizer=self._optimizer,
            key=self._stream,
            layout=self.layout,
            transport=self.transport,
            adaptation=self.adaptation,
            outgoing=self._outgoing,
            threads=self.settings.threads,
            wants_sums=self.wants_sums,
            aux=self._aux() if self._aux is not None else 0.0,
        )
        if self._topology_of(self.number) != "raw" and is_update(self._age(self.number)):
            step.histogram = self.adaptation.new_histogram()
        step.tally.exchange_s = self._worker.collective_s
        step.tally.wire_bytes = self._sent_bytes()
        for buffer in self._buffers:
            buffer.start()
        self._jobs = []
        self._step = step

    def _submit_ready(self) -> None:
        """Submits ready buffers in layout order; one that is not ready holds back the rest."""
        step = self._step
        assert step is not None
        while len(self._jobs) < len(self._buffers) and self._buffers[len(self._jobs)].ready:
            buffer = self._buffers[len(self._jobs)]
            what = f"exchange {step.number} of {self.name}, {self.layout.summary(buffer.plan)}"
            job = self._worker.submit(
                _timed(self._job(step, buffer), step), self.transport.rank, what
            )
            self._jobs.append(job)

    def _job(self, step: Step, buffer: ExchangeBuffer) -> Steps:
        """The job that exchanges one buffer."""
        if self._topology_of(step.number) == "raw":
            return allreduce(step, buffer)
        low_rank = self.power_sgd.job(step, buffer)
        if low_rank is not None:
            return low_rank
        flat = {"allgather": allgather, "scatter_reduce": scatter_reduce}[self._flat_topology]
        if self._hosts is None:
            return flat(step, buffer)
        return two_level(step, buffer, self._shards[buffer.plan.index], self._hosts, flat)

    @property
    def _coded(self) -> list[ExchangeBuffer]:
        """What this rank codes: its gradients, or its shards of its host's mean."""
        return self._shards or self._buffers

    def _memories(self) -> Iterator[tuple[str, ExchangeBuffer]]:
        """Everything that remembers earlier exchanges, by name."""
        for buffer in self._buffers:
            yield str(buffer.plan.index), buffer
        for buffer in self._shards:
            yield f"{buffer.plan.index}.shard", buffer

    def _sent_bytes(self) -> int:
        """Bytes handed to Horovod, without those that stay on this host by two levels."""
        return self.transport.sent_bytes + (self._hosts.across.sent_bytes if self._hosts else 0)

    def _update(self, step: Step) -> None:
        assert step.histogram is not None
        since = self._age(step.number)
        counts, amounts = self.adaptation.observe(self._coded, step.histogram, since)
        amounts |= self.power_sgd.observe(since)
        name = self.name + ".update"
        counts, amounts = sum_over_ranks(self.transport, name, counts, amounts)
        if self.transport.rank == 0:
            self.adaptation.update(counts, amounts)
            self.power_sgd.allocate(amounts)
        state = [self.adaptation.state_dict(), self.power_sgd.state_dict()]
        state = object_of_root(self.transport, self.name + ".update.state", state)
        if self.transport.rank:
            self.adaptation.load_state_dict(state[0])
            self.power_sgd.load_state_dict(state[1])
        self._outgoing.refit()
        rates = [mean_entropy(stage) for stage in step.histogram if stage.any()]
        step.tally.entropy_bits = float(np.mean(rates)) if rates else float("nan")


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


def _timed(steps: Any, step: Step) -> Any:
    """Notes when the first job began and the last one ended."""
    tally = step.tally
    if not tally.started:
        tally.started = time.perf_counter()
    yield from steps
    tally.ended = time.perf_counter()

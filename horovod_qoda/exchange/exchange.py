"""The exchange of one optimizer: gradients are put in layer by layer, means come back."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from horovod_qoda.exchange.adaptation import Adaptation, is_update
from horovod_qoda.exchange.buffer import ExchangeBuffer
from horovod_qoda.exchange.codecs import Floats
from horovod_qoda.exchange.handshake import agree, gather_objects, object_of_root, roll_call
from horovod_qoda.exchange.observations import sum_over_ranks
from horovod_qoda.exchange.rate import mean_entropy, mean_rate
from horovod_qoda.exchange.records import ExchangeRecord
from horovod_qoda.exchange.routes import Routes
from horovod_qoda.exchange.step import Outgoing, Step
from horovod_qoda.exchange.worker import Job, Worker
from horovod_qoda.layout import Layout
from horovod_qoda.logs import logger
from horovod_qoda.ranges import ranged
from horovod_qoda.settings import Settings
from horovod_qoda.transport import Hosts, Transport

_ADAPTED = (
    "bits", "quantizer", "rules", "bucket_size", "norm", "levels", "topology", "min_numel",
    "low_rank", "level_solver", "types", "coding", "allocation", "allocation_error",
    "allocation_alpha",
)  # fmt: skip
"""Settings that decide what adaptation means."""

_ITEMSIZE = {"torch.float64": 8, "torch.float16": 2, "torch.bfloat16": 2}


@dataclass(frozen=True)
class Sums:
    """QODA's scalars of one exchange (docs/theory.md section 6), equal on all ranks."""

    sum_sq: float
    sum_sq_diff: float
    aux: float | None


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
        devices: of the layers' gradients; all are the CPU by default. May differ between ranks.

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
        devices: Sequence[Any] | None = None,
    ) -> None:
        self.layout, self.settings, self.transport = layout, settings, transport
        self._known_hosts = hosts
        self.routes = Routes(layout, settings, transport, hosts, devices)
        self.topology = self.routes.topology
        self.wants_sums = wants_sums
        self.number = 0
        self._since = 0
        self._aux = aux
        self._optimizer = optimizer
        # Seed and optimizer of the random numbers: a run that resumes goes on with its own.
        self._stream = settings.seed | (optimizer & 0xFFF) << 52
        self.adaptation = Adaptation(layout, self.routes.stages, settings)
        self._buffers = self.routes.buffers
        self._buffer_of = {i: b for b in self._buffers for i in b.plan.layers}
        self._outgoing = Outgoing()
        self._worker = Worker(f"horovod_qoda-{optimizer}")
        self._lock = threading.Lock()
        self._step: Step | None = None
        self._jobs: list[Job] = []
        self._types = [f"{t.kind} {t.quantizer} {t.layer}".strip() for t in layout.types]
        self._agreed = False
        self._local_number: int | None = None
        self._loaded = False
        # The worker's thread must not outlive the exchange that nobody holds any more.
        weakref.finalize(self, self._worker.stop)
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
            roll_call(self.transport, f"{self.name}.buffer0.stage0", self._known_hosts)
            agree(self.transport, self.name, self.settings, self.layout)
            # Scripts load a checkpoint on rank 0 and broadcast: what adapts follows rank 0 too.
            mine = {"loaded": self._loaded, **self.state_dict()}
            state = object_of_root(self.transport, self.name + ".state", mine)
            if self.transport.rank:
                self._adopt(state)
                if state["loaded"] and not self._loaded and self._local_number is None:
                    self.routes.forget()
            local = {"number": self._local_number, "travel": self.routes.offer}
            everyone = gather_objects(self.transport, self.name + ".local", local)
            self._check_local_numbers([told["number"] for told in everyone])
            self.routes.agree([told["travel"] for told in everyone])
            self._agreed, self._loaded = True, False
            self._local_number = None

    def _check_local_numbers(self, numbers: Sequence[int | None]) -> None:
        for rank, number in enumerate(numbers):
            if number not in (None, self.number):
                raise ValueError(
                    f"rank {rank}: the local state is of exchange {number}, the checkpoint of "
                    f"exchange {self.number}"
                )

    def disagree(self) -> None:
        """State was loaded on some rank: :meth:`agree` asks again before the next exchange."""
        self._agreed = False

    @ranged("horovod_qoda.put")
    def put(self, layer: int, gradient: Any) -> None:
        """Hands over a layer's gradient (a torch tensor; ``None`` means zeros), copying it."""
        with self._lock:
            if self._step is None:
                self._start()
        buffer = self._buffer_of[layer]
        buffer.put(layer, gradient, self.settings.threads)
        with self._lock:
            self._submit_ready()

    @ranged("horovod_qoda.wait")
    def mean(self, layer: int) -> Floats:
        """Mean over ranks of a layer, flat float32; waits until it is there.

        An array, or a tensor on the device where the layer's buffer is coded. It is overwritten by
        the next exchange, once what the thread that calls :meth:`finish` has queued is done. Raises
        what the exchange raised.
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
        for codec in self.routes.placement.codecs:
            codec.release()
        tally = step.tally
        tally.wait_s += time.perf_counter() - begin
        age = self._age(step.number)
        if step.topology != "raw":
            self.adaptation.follow(self.routes.coded, age)
            self.routes.power_sgd.follow(self._buffers, age)
        if step.histogram is not None:
            self._update(step)
        if step.topology != "raw":
            self.adaptation.factors.follow(step.told, age)
        if self.routes.trial is not None:
            self.routes.trial.note(age, self.transport, self.name)
        tally.exchange_s = self._worker.collective_s - tally.exchange_s
        tally.wire_bytes = self.routes.sent_bytes - tally.wire_bytes
        record = ExchangeRecord(
            exchange=step.number,
            topology=step.topology,
            coordinates=self.layout.quantized,
            raw_bytes=self._raw_bytes,
            payload_bytes=tally.payload_bytes,
            wire_bytes=tally.wire_bytes,
            coded_bits=mean_rate(step.told),
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
            "types": self._types,
            "adaptation": self.adaptation.state_dict(),
            "power_sgd": self.routes.power_sgd.state_dict(),
            "trial": self.routes.trial.state_dict() if self.routes.trial else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back; what is local to ranks starts at zero until it is loaded too.

        With other settings only the exchange number is taken, and adaptation starts anew.

        Raises:
            ValueError: the state is of another model.
        """
        self._adopt(state)
        if self.routes.trial is not None:
            self.routes.trial.resume(self._age(self.number))
        self._agreed = False
        self._local_number = None
        self.routes.forget()
        self._loaded = True
        anew = ["differences from the previous exchange"] if self.wants_sums else []
        anew += ["PowerSGD's residuals"] if self.routes.power_sgd.parts else []
        if anew and self.number and self.transport.rank == 0:
            logger().info(
                "compression state loaded; unless load_local_state_dict() follows on every rank, "
                f"{' and '.join(anew)} start at zero"
            )

    def local_state_dict(self) -> dict[str, Any]:
        """What differs between ranks, as torch tensors: what QODA's sums and PowerSGD need."""
        return {
            "exchange": self.number,
            "rank": self.transport.rank,
            "ranks": self.transport.size,
            "vectors": self.routes.local_state(),
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
        self.routes.load_local_state(state["vectors"])
        self._local_number = int(state["exchange"])

    def close(self) -> None:
        self._worker.stop()

    def _adopt(self, state: dict[str, Any]) -> None:
        mine = self.settings.canonical()
        changed = [key for key in _ADAPTED if state["settings"].get(key) != mine[key]]
        why = f"compression settings have changed ({', '.join(changed)})" if changed else ""
        if not changed and state["types"] != self._types:
            why = (
                "the layers' types are others than in the checkpoint (was the model passed with "
                "model=, then and now?)"
            )
        if why:
            logger().warning(f"{why}: what compression had adapted starts anew")
            self._since = int(state["exchange"])
        else:
            self.adaptation.load_state_dict(state["adaptation"])
            self.routes.power_sgd.load_state_dict(state["power_sgd"])
            if self.routes.trial is not None and state["trial"]:  # None from a job of one rank
                self.routes.trial.load_state_dict(state["trial"])
            self._since = int(state["since"])
        self.number = int(state["exchange"])
        self._stream = int(state["stream"])

    def _age(self, number: int) -> int:
        """Exchanges since adaptation began, which is what its schedule counts."""
        return number - max(self._since, self.settings.warmup_steps)

    def _start(self) -> None:
        step = Step(
            number=self.number,
            topology=self.routes.topology_of(self.number, self._age(self.number)),
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
        if step.topology != "raw" and is_update(self._age(self.number)):
            step.histogram = self.adaptation.new_histogram()
        step.tally.exchange_s = self._worker.collective_s
        step.tally.wire_bytes = self.routes.sent_bytes
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
                _timed(self.routes.job(step, buffer), step, buffer), self.transport.rank, what
            )
            self._jobs.append(job)

    def _update(self, step: Step) -> None:
        assert step.histogram is not None
        since = self._age(step.number)
        counts, amounts = self.adaptation.observe(self.routes.coded, step.histogram, since)
        amounts |= self.routes.power_sgd.observe(since)
        name = self.name + ".update"
        counts, amounts = sum_over_ranks(self.transport, name, counts, amounts)
        if self.transport.rank == 0:
            self.adaptation.update(counts, amounts, step.told)
            self.routes.power_sgd.allocate(amounts)
        state = [self.adaptation.state_dict(), self.routes.power_sgd.state_dict()]
        state = object_of_root(self.transport, self.name + ".update.state", state)
        if self.transport.rank:
            self.adaptation.load_state_dict(state[0])
            self.routes.power_sgd.load_state_dict(state[1])
        self._outgoing.refit()
        rates = [mean_entropy(stage) for stage in counts["symbols"] if stage.any()]
        step.tally.entropy_bits = float(np.mean(rates)) if rates else float("nan")


def _timed(steps: Any, step: Step, buffer: ExchangeBuffer) -> Any:
    """Notes when the first job began, once its gradients are there, and the last one ended."""
    tally = step.tally
    if (arrival := buffer.arrival()) is not None:
        yield arrival
    if not tally.started:
        tally.started = time.perf_counter()
    buffer.settle()
    yield from steps
    tally.ended = time.perf_counter()

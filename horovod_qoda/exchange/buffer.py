"""The memory of one exchange buffer: gradients in, mean out, and what is remembered in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from horovod_qoda.coding import copy_stats
from horovod_qoda.exchange.codecs import HOST, Arrival, Codec, Floats
from horovod_qoda.layout import Buffer, Chunk, Layout


class ExchangeBuffer:
    """Float32 arrays of one buffer of the layout, or of one shard of it, where ``codec`` has them.

    A layer of which only a piece lies in a shard has an offset below zero, or ends beyond it.

    Attributes:
        values: this rank's gradients, layer after layer; gaps between layers stay zero.
        mean: the decoded mean over ranks, in the same places.
        sum_sq, finite: per layer of the buffer, filled as gradients are copied in.
        previous: this rank's previous decoded vector, where QODA needs the difference.
        followed: samples of the last gradients, kept while an allocation draws near.
        previous_error: the previous error of the second stage, likewise, of the chunk owned.
    """

    def __init__(self, layout: Layout, plan: Buffer, parts: int, codec: Codec = HOST) -> None:
        self.plan = plan
        self.codec = codec
        self.chunks = layout.chunks(plan, parts)
        self.values = codec.zeros(plan.size)
        self.mean = codec.zeros(plan.size)
        self.previous: Floats | None = None
        self.previous_error: Floats | None = None
        self.followed: np.ndarray | None = None
        numel = np.array([layout.layers[i].numel for i in plan.layers], np.int64)
        offsets = np.array(plan.offsets, np.int64)
        self.starts = np.maximum(offsets, 0)
        self.numel = np.minimum(offsets + numel, plan.size) - self.starts
        self.sum_sq = np.zeros(len(plan.layers))
        self.finite = np.ones(len(plan.layers), bool)
        self._place = {layer: k for k, layer in enumerate(plan.layers)}
        self._waiting = set(plan.layers)
        self._scratch: dict[str, Floats] = {}
        self._host: dict[str, np.ndarray] = {}
        self._intake = codec.intake(self.values, self.starts, self.numel)

    @property
    def ready(self) -> bool:
        return not self._waiting

    def start(self) -> None:
        """Forgets the gradients of the last exchange."""
        self._waiting = set(self.plan.layers)

    def put(self, layer: int, gradient: Any, threads: int) -> None:
        """Copies a gradient (a torch tensor of the layer's size, or ``None`` for zeros) in.

        Sum of squares and finiteness are taken on the way, in float64 and in a fixed order.
        """
        k = self._place[layer]
        if self._intake is not None:
            self._intake.put(k, gradient)
        elif gradient is None:
            self.span(layer)[:] = 0
            self.sum_sq[k], self.finite[k] = 0.0, True
        else:
            self.sum_sq[k], self.finite[k] = _copy(gradient, self.span(layer), threads)
        self._waiting.discard(layer)

    def arrival(self) -> Arrival | None:
        """What to wait for before :meth:`settle`, once ready; None where all is there already."""
        return None if self._intake is None else Arrival(self._intake)

    def settle(self) -> None:
        """Takes the statistics of gradients that a device has copied in."""
        if self._intake is not None:
            for k, found in enumerate(self._intake.statistics()):
                self.sum_sq[k], self.finite[k] = found

    def fetch(self, layer: int, choose: Callable[[Any], Any]) -> np.ndarray:
        """In the host's memory, what ``choose`` takes of a layer's values: a view of them."""
        return self.codec.fetch(choose(self.span(layer)))

    def loaded(self, vector: np.ndarray) -> Floats:
        """A copy of a vector, where the buffer is."""
        there = self.codec.zeros(len(vector))
        self.codec.load(vector, there)
        return there

    def on_host(self, of: str) -> np.ndarray:
        """Memory of the host for a copy of ``values``, ``mean`` or scratch memory of that name, or
        they themselves."""
        if of not in self._host:
            here = self._scratch[of] if of in self._scratch else getattr(self, of)
            self._host[of] = self.codec.host_room(here)
        return self._host[of]

    def span(self, layer: int, of: str = "values") -> Floats:
        """View of a layer's coordinates in ``values`` or ``mean``."""
        k = self._place[layer]
        return getattr(self, of)[self.starts[k] : self.starts[k] + self.numel[k]]

    def measure(self, threads: int) -> None:
        """Takes the statistics that :meth:`put` takes, of ``values`` written by others."""
        found = self.codec.statistics(self.values, self.starts, self.numel, threads)
        for k, (sum_sq, finite) in enumerate(found):
            self.sum_sq[k], self.finite[k] = sum_sq, finite

    def scratch(self, purpose: str, size: int) -> Floats:
        """Float32 memory of this length, zero at first and the same at every exchange.

        Fresh memory would be cleared by the kernel page by page, which costs as much as coding.
        """
        if len(self._scratch.get(purpose, ())) != size:
            self._scratch[purpose] = self.codec.zeros(size)
        return self._scratch[purpose]

    def remember(self, own: Floats) -> None:
        """Makes ``own``, scratch memory, the previous vector.

        Where it is not finite the one before stays: one bad step costs one step.
        """
        assert self.previous is not None
        for k in np.flatnonzero(~self.finite):
            here = slice(self.starts[k], self.starts[k] + self.numel[k])
            self.codec.copy(self.previous[here], own[here])
        self._scratch["own"], self.previous = self.previous, own

    def remember_error(self, error: Floats) -> None:
        """Makes ``error``, scratch memory, the previous error of the second stage."""
        assert self.previous_error is not None
        self._scratch["error"], self.previous_error = self.previous_error, error

    def segments(self, chunk: Chunk, steps: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
        """The chunk's segment rows with this exchange's steps, choices and non-finite flags.

        Args:
            steps, reconstruction: per layer of the model.
        """
        rows = chunk.segments.copy()
        place = np.fromiter((self._place[i] for i in chunk.layers), np.int64, len(chunk.layers))
        rows["step"] = steps[chunk.layers]
        rows["reconstruction"] = reconstruction[chunk.layers]
        rows["nonfinite"] = ~self.finite[place]
        return rows


def _copy(gradient: Any, part: np.ndarray, threads: int) -> tuple[float, bool]:
    import torch

    if not part.size:
        return 0.0, True
    tensor = gradient.detach()
    if tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous():
        return copy_stats(tensor.reshape(-1).numpy(), part, threads=threads)
    torch.from_numpy(part).view(tensor.shape).copy_(tensor)
    return copy_stats(part, None, threads=threads)

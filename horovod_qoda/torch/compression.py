"""``Compression``: Horovod's interface, with a compressor that Horovod itself could not carry."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch
from horovod.torch.compression import Compressor, FP16Compressor, NoneCompressor

from horovod_qoda import coding, layout
from horovod_qoda.exchange.adaptation import Adaptation
from horovod_qoda.exchange.buffer import ExchangeBuffer
from horovod_qoda.settings import RULE_KEYS, Settings

_draws = itertools.count()


class _ClassOrInstance:
    """A method that works on the class too, on an instance made with the default settings."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        return self._function.__get__(owner() if instance is None else instance)


class LayerwiseCompressor(Compressor):
    """Layer-wise quantisation and entropy coding; usable as a class or as an instance.

    The object is immutable settings: what adapts during training lives with the optimizer. Handed
    to ``DistributedOptimizer`` of this package it is carried by all-gather or scatter-reduce.
    Stock Horovod sums what a compressor returns, which bytes cannot be; it refuses uint8 with an
    error, and :class:`SimulatedCompressor` serves it instead.

    Args:
        **settings: see :class:`horovod_qoda.settings.Settings`.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings.resolve(**settings)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.settings})"

    @_ClassOrInstance
    def compress(
        self, tensor: torch.Tensor, *, draw: int | None = None
    ) -> tuple[torch.Tensor, Any]:
        """Codes one tensor, as one layer, with the code that the exchange uses.

        Args:
            tensor: any shape and floating dtype.
            draw: number of the random draw; by default each call in a process takes the next.

        Returns:
            ``(payload, ctx)``: a uint8 CPU tensor of the payload's true length, and what
            :meth:`decompress` needs to know of the tensor.
        """
        if self.settings.quantizer == "powersgd":
            raise ValueError(
                "quantizer='powersgd' does not compress tensor by tensor: its factors are sums "
                "over ranks; pass Compression.layerwise to this package's DistributedOptimizer"
            )
        number = next(_draws) if draw is None else draw
        if not tensor.is_floating_point():
            raise TypeError(f"only floating-point tensors can be quantised, not {tensor.dtype}")
        ctx = _Context(self.settings, tensor, number)
        if not tensor.numel():
            return torch.zeros(0, dtype=torch.uint8), ctx
        buffer, adaptation = ctx.workspace()
        buffer.put(0, tensor, self.settings.threads)
        rows = _rows(buffer, adaptation)
        out = np.empty(coding.max_payload_bytes(rows), np.uint8)
        length = coding.encode(
            buffer.values,
            rows,
            ctx.header,
            out,
            levels=adaptation.levels,
            threads=self.settings.threads,
        )
        return torch.from_numpy(out[:length].copy()), ctx

    @_ClassOrInstance
    def decompress(self, tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Inverts :meth:`compress` up to the quantisation.

        Raises:
            PayloadError: ``tensor`` is not the payload that belongs to ``ctx``.
        """
        if ctx is None:
            return tensor
        if 0 in ctx.shape:
            return torch.empty(ctx.shape, dtype=ctx.dtype, device=ctx.device)
        buffer, adaptation = ctx.workspace()
        rows = _rows(buffer, adaptation)
        payload = tensor.contiguous().numpy()
        coding.decode(
            payload,
            rows,
            buffer.mean,
            expect=ctx.header,
            levels=adaptation.levels,
            threads=self.settings.threads,
        )
        flat = torch.from_numpy(buffer.span(0, "mean"))
        return flat.view(ctx.shape).to(device=ctx.device, dtype=ctx.dtype)


class SimulatedCompressor(LayerwiseCompressor):
    """The same error without the saving: ``compress`` returns the decoded float tensor.

    For stock ``hvd.DistributedOptimizer``, to see what quantisation does to a training run.
    """

    @_ClassOrInstance
    def compress(
        self, tensor: torch.Tensor, *, draw: int | None = None
    ) -> tuple[torch.Tensor, Any]:
        payload, ctx = LayerwiseCompressor.compress.__get__(self)(tensor, draw=draw)
        return LayerwiseCompressor.decompress.__get__(self)(payload, ctx), None


@functools.lru_cache(maxsize=64)
def _plan(shape: tuple[int, ...], dtype: str, **wanted: Any) -> layout.Layout:
    """Layout of a single tensor that is quantised whatever its rank and size."""
    rules = {"*": {"bits": wanted["bits"]}}
    return layout.build([("tensor", shape, dtype)], Settings(rules=rules, min_numel=1, **wanted))


def _rows(buffer: ExchangeBuffer, adaptation: Adaptation) -> np.ndarray:
    return buffer.segments(buffer.chunks[0], adaptation.steps(buffer), adaptation.reconstruction)


class _Context:
    """What a decoder must know that the bytes do not say."""

    def __init__(self, settings: Settings, tensor: torch.Tensor, number: int) -> None:
        self.shape, self.dtype, self.device = tuple(tensor.shape), tensor.dtype, tensor.device
        wanted = {k: getattr(settings, k) for k in RULE_KEYS}
        self._layout = _plan(self.shape, str(tensor.dtype), **wanted)
        # Ranks that shared their random numbers would make errors that do not average out.
        rank = hvd.rank() if hvd.is_initialized() else 0
        self.header = coding.Header(
            layout_hash=self._layout.hash,
            exchange=number,
            rank=rank,
            stage=0,
            chunk=0,
            key=settings.seed | rank << 32,
        )

    def workspace(self) -> tuple[ExchangeBuffer, Adaptation]:
        plan = self._layout
        return ExchangeBuffer(plan, plan.buffers[0], 1), Adaptation(plan, 1)


class Compression:
    """Compressors for ``DistributedOptimizer``."""

    none = NoneCompressor
    fp16 = FP16Compressor
    layerwise = LayerwiseCompressor
    simulated = SimulatedCompressor

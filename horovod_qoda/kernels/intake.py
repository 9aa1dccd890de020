"""Gradients as they are computed, copied side by side, and their statistics on the way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from horovod_qoda.kernels.coder import Coder
from horovod_qoda.kernels.sides import launch_spans
from horovod_qoda.kernels.spans import SQUARES
from horovod_qoda.kernels.streams import Mark, Streams

RUN = 65536
"""Coordinates whose squares are summed by themselves, as in `horovod_qoda.coding.copy_stats`."""

_DIRECT = (torch.float32, torch.float16, torch.bfloat16)


class Intake:
    """Copies gradients into parts of one tensor; the host waits for nothing.

    Args:
        values: float32 [n] on the device of ``streams``.
        starts, numel: of the parts.
    """

    def __init__(
        self, streams: Streams, values: torch.Tensor, starts: np.ndarray, numel: np.ndarray
    ) -> None:
        self._streams = streams
        self._parts = [
            values[start : start + n]
            for start, n in zip(starts.tolist(), numel.tolist(), strict=True)
        ]
        at, n, self._first = _runs(np.zeros_like(numel), numel)
        device = values.device
        with streams.working():
            self._at, self._n = (torch.from_numpy(x).to(device) for x in (at, n))
            self._results = torch.zeros(2 * len(at), dtype=torch.float64, device=device)
            self._there = torch.zeros(2 * len(at), dtype=torch.float64, pin_memory=values.is_cuda)
        for tensor in (values, self._at, self._n, self._results):
            streams.share(tensor)
        self._last, self._read = Mark(device), Mark(device)

    def put(self, part: int, gradient: torch.Tensor | None) -> None:
        """Queues the copy of a gradient, of any dtype, strides and device, or of zeros."""
        target = self._parts[part]
        runs = slice(self._first[part], self._first[part + 1])
        results = self._results[2 * runs.start : 2 * runs.stop]
        source = None if gradient is None else gradient.detach()
        with self._streams.taking(source):
            if source is None:
                target.zero_()
                results.zero_()
            elif source.numel():
                flat, copy_to = target, None
                if (
                    source.device == target.device
                    and source.dtype in _DIRECT
                    and source.is_contiguous()
                ):
                    flat, copy_to = source.reshape(-1), target
                else:
                    target.view(source.shape).copy_(source)
                at, n = self._at[runs], self._n[runs]
                launch_spans(SQUARES, flat, at, n, results, copy_to, at)
            self._last.set()

    def done(self) -> bool:
        """Whether the device has done what was put so far."""
        return self._last.passed()

    def statistics(self) -> list[tuple[float, bool]]:
        """(sum of squares, whether all values are finite) of each part, in the order of
        `horovod_qoda.coding.copy_stats`; blocks the host until everything that was put is there."""
        self._last.wait()
        with self._streams.working():
            self._there.copy_(self._results, non_blocking=True)
            self._read.set()
            self._read.wait()
        return _totals(self._there.numpy()[::2], self._first)


def part_statistics(
    coder: Coder,
    values: torch.Tensor,
    starts: Sequence[int] | np.ndarray,
    numel: Sequence[int] | np.ndarray,
) -> list[tuple[float, bool]]:
    """Statistics of parts of a float32 tensor; one launch and one wait for all of them."""
    at, n, first = _runs(np.asarray(starts, np.int64), np.asarray(numel, np.int64))
    if not len(at):
        return []
    there = coder.memory.upload("parts", {"at": at, "n": n})
    results = coder.memory.buffer("parts_results", 2 * len(at), torch.float64)
    launch_spans(SQUARES, values, there["at"], there["n"], results)
    found = coder.memory.download("parts_results", results)
    coder.memory.wait()
    return _totals(found[::2], first)


def change_statistics(
    coder: Coder, now: torch.Tensor, before: torch.Tensor
) -> tuple[float, bool, float]:
    """What `horovod_qoda.coding.change_stats` gives for float32 tensors; one wait of the host."""
    at, n, first = _runs(np.zeros(1, np.int64), np.array([len(now)]))
    memory = coder.memory
    there = memory.upload("change", {"at": at, "n": n})
    difference = memory.buffer("difference", len(now), torch.float32)
    torch.sub(now, before, out=difference)
    results = memory.buffer("change_results", 4 * len(at), torch.float64)
    launch_spans(SQUARES, now, there["at"], there["n"], results)
    launch_spans(SQUARES, difference, there["at"], there["n"], results[2 * len(at) :])
    found = memory.download("change_results", results)
    memory.wait()
    sums = found[::2]
    ((total, finite),) = _totals(sums[: len(at)], first)
    ((change, _),) = _totals(sums[len(at) :], first)
    return total, finite, change


def _runs(starts: np.ndarray, numel: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """(start and length of every run, int64; index of each part's first run, and their number).

    A part has an even number of runs, the last one empty where need be: what kernels read begins
    at multiples of 16 bytes then, for which alone they are compiled.
    """
    at, n, first = [], [], [0]
    for start, size in zip(starts.tolist(), numel.tolist(), strict=True):
        count = max(-(-size // (2 * RUN)) * 2, 2)
        inside = np.arange(count, dtype=np.int64) * RUN
        at.append(start + np.minimum(inside, max(size - 1, 0)))
        n.append(np.clip(size - inside, 0, RUN))
        first.append(first[-1] + count)
    if not at:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), first
    return np.concatenate(at), np.concatenate(n), first


def _totals(sums: np.ndarray, first: list[int]) -> list[tuple[float, bool]]:
    found = []
    for start, stop in zip(first[:-1], first[1:], strict=True):
        mine = sums[start:stop]
        found.append((float(np.add.accumulate(mine)[-1]), bool(np.isfinite(mine).all())))
    return found

"""Scatter-reduce, then all-gather: each rank owns a chunk, sums it, and sends it quantised again.

Two stages, each unbiased: 2 (K-1)/K payloads a rank whatever K is. The second error does not fall
with K, so the owner codes finer: its step is sqrt(sum_k step_k^2) / K, the high-rate optimum for
equal rates (docs/theory.md section 9).
"""

from __future__ import annotations

import numpy as np

from horovod_qoda import coding
from horovod_qoda.coding import Header, PayloadError, copy_stats, sum_sq_diff
from horovod_qoda.exchange.allgather import seal_own
from horovod_qoda.exchange.buffer import ExchangeBuffer
from horovod_qoda.exchange.step import Step, split_frames, sum_of_frames
from horovod_qoda.exchange.worker import Steps
from horovod_qoda.layout import Chunk


def scatter_reduce(step: Step, buffer: ExchangeBuffer) -> Steps:
    """Job that exchanges one buffer and leaves the mean in ``buffer.mean``.

    1. Every rank codes each chunk of its own gradients and sends it to the chunk's owner.
    2. The owner decodes and sums in rank order, and divides by K.
    3. It codes the mean of its chunk with fresh randomness; all ranks gather and decode the chunks,
       the owner its own too, so the mean is the same bits everywhere.
    """
    if not buffer.chunks:
        return
    index = buffer.plan.index
    steps, choices = step.adaptation.steps(buffer), step.adaptation.reconstruction
    rows = {c.index: buffer.segments(c, steps, choices) for c in buffer.chunks}
    own = buffer.scratch("own", len(buffer.values)) if step.wants_sums else None
    blobs = {}
    for c in buffer.chunks:
        here = slice(c.start, c.stop)
        decoded = None if own is None else own[here]
        blobs[c.index] = step.encode(buffer.values[here], rows[c.index], 0, index, c, decoded)
    if own is not None:
        seal_own(step, buffer, blobs, own)
    splits = np.zeros(step.transport.size, np.int32)
    in_order = sorted(buffer.chunks, key=lambda c: c.owner)
    for chunk in in_order:
        splits[chunk.owner] = len(blobs[chunk.index])
    data = np.concatenate([blobs[c.index] for c in in_order])
    received, _ = yield step.transport.alltoall(step.name(index, 0), data, splits)

    mine = [c for c in buffer.chunks if c.owner == step.transport.rank]
    outgoing = np.zeros(0, np.uint8)
    if mine:
        outgoing = _reduce(step, buffer, mine[0], rows[mine[0].index], received)
    elif len(received):
        for _ in split_frames(received):  # explains itself where it is a handshake
            raise PayloadError(f"rank {step.transport.rank} owns no chunk and received a payload")
    received = yield step.transport.allgather(step.name(index, 1), outgoing)

    parts = list(split_frames(received))
    if len(parts) != len(in_order):
        raise PayloadError(f"{len(parts)} owners sent a chunk, {len(in_order)} should have")
    for chunk, part in zip(in_order, parts, strict=True):
        step.hear(part, rows[chunk.index], 1)
        (header,) = step.decode_sum(
            [part],
            [chunk.owner],
            rows[chunk.index],
            buffer.mean[chunk.start : chunk.stop],
            stage=1,
            buffer=index,
            chunk=chunk.index,
        )
        step.received_aux = header.aux
        step.sums[index, chunk.index] = (header.sum_sq, header.sum_sq_diff)


def _reduce(
    step: Step, buffer: ExchangeBuffer, chunk: Chunk, rows: np.ndarray, received: np.ndarray
) -> np.ndarray:
    """Steps 2 and 3 at the owner: sum, mean, and the payload of the mean."""
    count, index = step.transport.size, buffer.plan.index
    total = buffer.scratch("total", chunk.stop - chunk.start)
    parts = list(split_frames(received))
    if len(parts) != count:
        raise PayloadError(
            f"the owner of a chunk received {len(parts)} payloads from {count} ranks"
        )
    headers = step.decode_sum(
        parts, range(count), rows, total, stage=0, buffer=index, chunk=chunk.index, scale=1 / count
    )
    second = _second_rows(step, chunk, rows, total, [step.steps(part) for part in parts])
    decoded = buffer.scratch("error", len(total)) if step.wants_sums else None
    before = sum_of_frames(parts)
    blob = step.encode(total, second, 1, index, chunk, decoded, before)
    if decoded is not None:
        _seal_second(step, buffer, blob, total, decoded, headers)
    return blob


def _second_rows(
    step: Step,
    chunk: Chunk,
    rows: np.ndarray,
    mean: np.ndarray,
    received: list[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Segments of the second stage, with steps from those of the first.

    Where a rank sent float32 because its step was out of range, the mean's own size decides.
    """
    second = rows.copy()
    squares = sum(steps.astype(np.float64) ** 2 for steps, _ in received)
    second["step"] = np.sqrt(squares) / step.transport.size
    raw = np.any([kinds == coding.KIND_RAW for _, kinds in received], axis=0)
    for i, row in enumerate(rows):
        start, numel = int(row["offset"]), int(row["numel"])
        sum_sq, finite = copy_stats(mean[start : start + numel])
        second["nonfinite"][i] = not finite
        if raw[i]:
            second["step"][i] = step.adaptation.step(int(chunk.layers[i]), sum_sq, numel)
    return second


def _seal_second(
    step: Step,
    buffer: ExchangeBuffer,
    blob: np.ndarray,
    mean: np.ndarray,
    decoded: np.ndarray,
    headers: list[Header],
) -> None:
    """Passes the nodes' sums on, with the squared norms of the second stage's error added."""
    error = np.subtract(decoded, mean, out=decoded)
    square, finite = copy_stats(error)
    if not finite:  # the sums say NaN by the nodes' own; the difference starts anew
        error[~np.isfinite(error)] = 0
        square, _ = copy_stats(error)
    if buffer.previous_error is None:
        buffer.previous_error = np.zeros_like(error)
    count = step.transport.size
    step.seal(
        blob,
        sum(h.sum_sq for h in headers) / count**2 + square,
        sum(h.sum_sq_diff for h in headers) / count**2 + sum_sq_diff(error, buffer.previous_error),
        headers[0].aux,
    )
    buffer.remember_error(error)

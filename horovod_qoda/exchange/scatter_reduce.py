"""Scatter-reduce, then all-gather: each rank owns a chunk, sums it, and sends it quantised again.

Two stages, each unbiased: 2 (K-1)/K payloads a rank whatever K is. The second error does not fall
with K, so the owner codes finer: its step is sqrt(sum_k step_k^2) / K, the high-rate optimum for
equal rates (docs/theory.md section 9).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from horovod_qoda import coding
from horovod_qoda.coding import Header, PayloadError
from horovod_qoda.exchange.allgather import seal_own
from horovod_qoda.exchange.buffer import ExchangeBuffer
from horovod_qoda.exchange.codecs import Blob, Codec, Floats
from horovod_qoda.exchange.frames import split_frames, sum_of_frames
from horovod_qoda.exchange.step import Step
from horovod_qoda.exchange.worker import Steps
from horovod_qoda.layout import Chunk


def scatter_reduce(step: Step, buffer: ExchangeBuffer) -> Steps:
    """Job that exchanges one buffer and leaves the mean in ``buffer.mean``.

    1. Every rank codes each chunk of its own gradients and sends it to the chunk's owner.
    2. The owner decodes and sums in rank order, and divides by K.
    3. It codes the mean of its chunk with fresh randomness; all ranks gather and decode the chunks,
       and the owner keeps what its own decodes to, so the mean is the same bits everywhere.
    """
    if not buffer.chunks:
        return
    index, codec = buffer.plan.index, buffer.codec
    steps, choices = step.adaptation.steps(buffer), step.adaptation.reconstruction
    rows = {c.index: buffer.segments(c, steps, choices) for c in buffer.chunks}
    own = buffer.scratch("own", len(buffer.values)) if step.wants_sums else None
    in_order = sorted(buffer.chunks, key=lambda c: c.owner)
    data = step.outgoing.space((0, index), [rows[c.index] for c in in_order], codec)
    splits = np.zeros(step.transport.size, np.int32)
    blobs, end = {}, 0
    for c in in_order:
        here = slice(c.start, c.stop)
        decoded = None if own is None else own[here]
        blob = step.encode(
            codec, buffer.values[here], rows[c.index], 0, index, c, decoded, out=data[end:]
        )
        blobs[c.index], splits[c.owner] = blob, len(blob)
        end += len(blob)
    if own is not None:
        seal_own(step, buffer, blobs, own)
    received, _ = yield step.alltoall(codec, index, 0, data[:end], splits)

    mine = [c for c in buffer.chunks if c.owner == step.transport.rank]
    outgoing = codec.bytes(0)
    if mine:
        outgoing = _reduce(step, buffer, mine[0], rows[mine[0].index], received)
    elif len(received):
        for _ in split_frames(received, codec):  # explains itself where it is a handshake
            raise PayloadError(f"rank {step.transport.rank} owns no chunk and received a payload")
    received = yield step.allgather(codec, index, 1, outgoing)

    parts = list(split_frames(received, codec))
    if len(parts) != len(in_order):
        raise PayloadError(f"{len(parts)} owners sent a chunk, {len(in_order)} should have")
    for chunk, part in zip(in_order, parts, strict=True):
        step.hear(part, rows[chunk.index], 1)
        # The owner keeps what encoding left, which is what all others decode; it reads no more of
        # its own payload than the header.
        if chunk.owner == step.transport.rank:
            header = step.peek(part)
        else:
            (header,) = step.decode_sum(
                codec,
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
    step: Step, buffer: ExchangeBuffer, chunk: Chunk, rows: np.ndarray, received: Any
) -> Blob:
    """Steps 2 and 3 at the owner: sum, mean, the payload of the mean, and what it decodes to."""
    count, index, codec = step.transport.size, buffer.plan.index, buffer.codec
    total = buffer.scratch("total", chunk.stop - chunk.start)
    parts = list(split_frames(received, codec))
    if len(parts) != count:
        raise PayloadError(
            f"the owner of a chunk received {len(parts)} payloads from {count} ranks"
        )
    headers = step.decode_sum(
        codec, parts, range(count), rows, total, stage=0, buffer=index, chunk=chunk.index,
        scale=1 / count,
    )  # fmt: skip
    second = _second_rows(step, codec, chunk, rows, total, [step.steps(part) for part in parts])
    before = sum_of_frames(parts)
    decoded = buffer.mean[chunk.start : chunk.stop]
    try:
        blob = step.encode(codec, total, second, 1, index, chunk, decoded, before)
    except ValueError:  # finite gradients, and a sum of them that is not
        found = codec.statistics(total, rows["offset"], rows["numel"])
        second["nonfinite"] = [not finite for _, finite in found]
        blob = step.encode(codec, total, second, 1, index, chunk, decoded, before)
    if step.wants_sums:
        _seal_second(step, buffer, blob, total, decoded, headers)
    return blob


def _second_rows(
    step: Step,
    codec: Codec,
    chunk: Chunk,
    rows: np.ndarray,
    mean: Floats,
    received: list[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Segments of the second stage, with steps from those of the first.

    Where a rank sent float32 because its step was out of range, the mean's own size decides.
    """
    second = rows.copy()
    squares = sum(steps.astype(np.float64) ** 2 for steps, _ in received)
    second["step"] = np.sqrt(squares) / step.transport.size
    kinds = np.array([kinds for _, kinds in received])
    second["nonfinite"] = np.any(kinds == coding.KIND_NONFINITE, axis=0)
    raw = np.any(kinds == coding.KIND_RAW, axis=0)
    # The rest is looked at while it is encoded; what was seen until then must not be counted.
    look = np.flatnonzero(raw if step.histogram is None else np.ones(len(rows), bool))
    found = codec.statistics(mean, rows["offset"][look], rows["numel"][look])
    for i, (sum_sq, finite) in zip(look, found, strict=True):
        second["nonfinite"][i] = not finite
        if raw[i]:
            numel = int(rows["numel"][i])
            second["step"][i] = step.adaptation.step(int(chunk.layers[i]), sum_sq, numel)
    return second


def _seal_second(
    step: Step,
    buffer: ExchangeBuffer,
    blob: Blob,
    mean: Floats,
    decoded: Floats,
    headers: list[Header],
) -> None:
    """Passes the nodes' sums on, with the squared norms of the second stage's error added."""
    codec, error = buffer.codec, buffer.scratch("error", len(mean))
    codec.subtract(decoded, mean, error)
    if buffer.previous_error is None:
        buffer.previous_error = codec.zeros(len(error))
    square, finite, change = codec.change_stats(error, buffer.previous_error)
    if not finite:  # the sums say NaN by the nodes' own; the difference starts anew
        codec.clear_nonfinite(error)
        square, _, change = codec.change_stats(error, buffer.previous_error)
    count = step.transport.size
    step.seal(
        codec,
        blob,
        sum(h.sum_sq for h in headers) / count**2 + square,
        sum(h.sum_sq_diff for h in headers) / count**2 + change,
        headers[0].aux,
    )
    buffer.remember_error(error)

"""All-gather: every rank sends its payload to all and sums all of them.

One stage, the setting of the theory: the variance of the mean falls as 1/K, the bytes received
grow as K.
"""

from __future__ import annotations

from horovod_qoda.coding import PayloadError
from horovod_qoda.exchange.buffer import ExchangeBuffer
from horovod_qoda.exchange.codecs import Blob, Floats
from horovod_qoda.exchange.frames import split_frames
from horovod_qoda.exchange.step import Step
from horovod_qoda.exchange.worker import Steps


def allgather(step: Step, buffer: ExchangeBuffer) -> Steps:
    """Job that exchanges one buffer and leaves the mean in ``buffer.mean``."""
    if not buffer.chunks:
        return
    (chunk,) = buffer.chunks
    index, me, codec = buffer.plan.index, step.transport.rank, buffer.codec
    rows = buffer.segments(chunk, step.adaptation.steps(buffer), step.adaptation.reconstruction)
    own = buffer.scratch("own", len(buffer.values)) if step.wants_sums else None
    blob = step.encode(codec, buffer.values, rows, 0, index, chunk, own)
    if own is not None:
        seal_own(step, buffer, {0: blob}, own)
    received = yield step.allgather(codec, index, 0, blob)
    parts, count = list(split_frames(received, codec)), step.transport.size
    if len(parts) != count:
        raise PayloadError(f"rank {me} received {len(parts)} payloads from {count} ranks")
    headers = step.decode_sum(
        codec, parts, range(count), rows, buffer.mean, stage=0, buffer=index, chunk=0,
        scale=1 / count,
    )  # fmt: skip
    for part in parts:
        step.hear(part, rows, 0)
    step.received_aux = headers[0].aux
    step.sums[index, 0] = (
        sum(h.sum_sq for h in headers) / count**2,
        sum(h.sum_sq_diff for h in headers) / count**2,
    )


def seal_own(step: Step, buffer: ExchangeBuffer, blobs: dict[int, Blob], own: Floats) -> None:
    """Writes the squared norms of what others will decode from this rank into its payloads.

    They are norms of the decoded vector and of its difference from the previous one
    (docs/theory.md section 6).

    Args:
        blobs: framed payloads by chunk.
        own: what they decode to; becomes the previous vector.
    """
    if buffer.previous is None:
        buffer.previous = buffer.codec.zeros(len(own))
    for chunk in buffer.chunks:
        here = slice(chunk.start, chunk.stop)
        total, _, change = buffer.codec.change_stats(own[here], buffer.previous[here])
        step.seal(buffer.codec, blobs[chunk.index], total, change, step.aux)
    buffer.remember(own)

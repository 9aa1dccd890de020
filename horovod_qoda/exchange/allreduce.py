"""The uncompressed exchange: one all-reduce of float32 for each buffer, used while warming up."""

from __future__ import annotations

import numpy as np

from horovod_qoda.exchange.buffer import ExchangeBuffer
from horovod_qoda.exchange.step import Step
from horovod_qoda.exchange.worker import Steps


def allreduce(step: Step, buffer: ExchangeBuffer) -> Steps:
    """Job that sums one buffer over all ranks and leaves the mean in ``buffer.mean``.

    The buffer itself goes first: ranks that ask for a handshake meanwhile ask under its name. Where
    gradients are on a device, floats travel through the host's memory.
    """
    if not buffer.plan.size:
        return
    index, count = buffer.plan.index, step.transport.size
    codec = buffer.codec
    sent = codec.fetch(buffer.values, buffer.on_host("values"))
    step.tally.payload_bytes += sent.nbytes
    total = yield step.transport.allreduce(step.name(index, 0), sent)
    codec.load(np.multiply(total, np.float32(1 / count), out=buffer.on_host("mean")), buffer.mean)
    if step.wants_sums:
        if buffer.previous is None:
            buffer.previous = codec.zeros(len(buffer.values))
        _, _, change = codec.change_stats(buffer.values, buffer.previous)
        own_values = buffer.scratch("own", len(buffer.values))
        codec.copy(buffer.values, own_values)
        buffer.remember(own_values)
        yield from gather_sums(step, index, buffer.sum_sq.sum(), change)


def gather_sums(step: Step, index: int, sum_sq: float, sum_sq_diff: float) -> Steps:
    """QODA's scalars of one buffer from those of its nodes, where no payload carries them."""
    own = np.array([sum_sq, sum_sq_diff, step.aux])
    gathered = yield step.transport.allgather(step.name(index, 0) + ".sums", own)
    table, count = gathered.reshape(-1, 3), step.transport.size
    step.sums[index, 0] = (sum(table[:, 0]) / count**2, sum(table[:, 1]) / count**2)
    step.received_aux = float(table[0, 2])

"""The uncompressed exchange: one all-reduce of float32 for each buffer, used while warming up."""

from __future__ import annotations

import numpy as np

from horovod_qoda.coding import sum_sq_diff
from horovod_qoda.exchange.buffer import ExchangeBuffer
from horovod_qoda.exchange.step import Step
from horovod_qoda.exchange.worker import Steps


def allreduce(step: Step, buffer: ExchangeBuffer) -> Steps:
    """Job that sums one buffer over all ranks and leaves the mean in ``buffer.mean``.

    The buffer itself goes first: ranks that ask for a handshake meanwhile ask under its name.
    """
    if not buffer.plan.size:
        return
    index, count = buffer.plan.index, step.transport.size
    step.tally.payload_bytes += buffer.values.nbytes
    total = yield step.transport.allreduce(step.name(index, 0), buffer.values)
    np.multiply(total, np.float32(1 / count), out=buffer.mean)
    if step.wants_sums:
        if buffer.previous is None:
            buffer.previous = np.zeros_like(buffer.values)
        change = sum_sq_diff(buffer.values, buffer.previous)
        own_values = buffer.scratch("own", len(buffer.values))
        np.copyto(own_values, buffer.values)
        buffer.remember(own_values)
        yield from gather_sums(step, index, buffer.sum_sq.sum(), change)


def gather_sums(step: Step, index: int, sum_sq: float, sum_sq_diff: float) -> Steps:
    """QODA's scalars of one buffer from those of its nodes, where no payload carries them."""
    own = np.array([sum_sq, sum_sq_diff, step.aux])
    gathered = yield step.transport.allgather(step.name(index, 0) + ".sums", own)
    table, count = gathered.reshape(-1, 3), step.transport.size
    step.sums[index, 0] = (sum(table[:, 0]) / count**2, sum(table[:, 1]) / count**2)
    step.received_aux = float(table[0, 2])

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
        own = np.array([buffer.sum_sq.sum(), sum_sq_diff(buffer.values, buffer.previous)])
        own_values = buffer.scratch("own", len(buffer.values))
        np.copyto(own_values, buffer.values)
        buffer.remember(own_values)
        gathered = yield step.transport.allgather(step.name(index, 0) + ".sums", own)
        pairs = gathered.reshape(-1, 2)
        step.sums[index, 0] = (sum(pairs[:, 0]) / count**2, sum(pairs[:, 1]) / count**2)

"""Two levels: ranks of one host sum uncompressed, each sends a shard of that across.

Inside a host bytes are cheap, across hosts they are not. R ranks on each of H hosts reduce-scatter
their gradients as float32; rank r then holds shard r of its host's mean and exchanges it, coded,
with the ranks of its place on the other hosts; at the end the host's ranks gather the shards. A
link carries the payload of one rank instead of R, coding is shared among R ranks, and the nodes of
the theory (K in docs/theory.md section 6) are the H hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from horovod_qoda.exchange.buffer import ExchangeBuffer
from horovod_qoda.exchange.handshake import NOT_EVERYWHERE, MismatchError
from horovod_qoda.exchange.step import Step
from horovod_qoda.exchange.worker import Steps
from horovod_qoda.layout import Buffer, Layout, chunk_bounds
from horovod_qoda.transport import Hosts

_HEAD = 32
"""Floats in front of a gathered shard: three float64 (two sums, the scalar of rank 0), eight int64
(:attr:`Step.told`), and padding that keeps the shard aligned."""


def shard(layout: Layout, plan: Buffer, parts: int, index: int) -> Buffer:
    """Part ``index`` of a buffer for ``parts`` ranks of a host; empty where there is none."""
    bounds = chunk_bounds(plan.size, parts)
    start, stop = bounds[index] if index < len(bounds) else (plan.size, plan.size)
    inside = [
        (layer, offset - start)
        for layer, offset in zip(plan.layers, plan.offsets, strict=True)
        if max(offset, start) < min(offset + layout.layers[layer].numel, stop)
    ]
    layers, offsets = zip(*inside, strict=True) if inside else ((), ())
    return Buffer(plan.index, layers, offsets, stop - start)


def two_level(
    step: Step,
    whole: ExchangeBuffer,
    own: ExchangeBuffer,
    hosts: Hosts,
    inner: Callable[..., Steps],
) -> Steps:
    """Job that exchanges one buffer and leaves the mean in ``whole.mean``.

    Args:
        own: this rank's shard of the buffer.
        inner: job that exchanges the shard among ``hosts.across``.
    """
    size = whole.plan.size
    if not size:
        return
    index, ranks = whole.plan.index, hosts.inside.size
    bounds = chunk_bounds(size, ranks)
    splits = np.zeros(ranks, np.int32)
    splits[: len(bounds)] = [stop - start for start, stop in bounds]
    received, _ = yield hosts.inside.alltoall(step.name(index, 0) + ".host", whole.values, splits)
    if received.dtype != np.float32 or received.size != ranks * own.plan.size:
        raise MismatchError(NOT_EVERYWHERE)

    wire = own.scratch("wire", _HEAD + own.plan.size)
    if own.plan.size:
        parts = received.reshape(ranks, own.plan.size)
        np.add(parts[0], parts[1], out=own.values)
        for part in parts[2:]:
            own.values += part
        own.values *= np.float32(1 / ranks)
        own.measure(step.threads)
        told = np.zeros_like(step.told)
        across = replace(step, transport=hosts.across, sums={}, told=told)
        yield from inner(across, own)
        sums = across.sums.values()
        wire[_HEAD:] = own.mean
        head = [sum(a for a, _ in sums), sum(b for _, b in sums), across.received_aux or 0.0]
        wire[:6].view(np.float64)[:] = head
        wire[6:22].view(np.int64)[:] = told.ravel()

    gathered = yield hosts.inside.allgather(step.name(index, 1) + ".host", wire)
    at = 0
    for place, (start, stop) in enumerate(bounds):
        if step.wants_sums:
            sum_sq, sum_sq_diff, aux = gathered[at : at + 6].view(np.float64).tolist()
            step.sums[index, place] = (sum_sq, sum_sq_diff)
            if place == 0:
                step.received_aux = aux
        step.told += gathered[at + 6 : at + 22].view(np.int64).reshape(step.told.shape)
        at += _HEAD
        whole.mean[start:stop] = gathered[at : at + stop - start]
        at += stop - start

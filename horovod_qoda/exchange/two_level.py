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
from functools import partial

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

    Floats of a device move inside the host as payloads do (:mod:`travel`): as the tensors they are,
    or from pinned memory. They are summed and coded where the buffer is, either way.

    Args:
        own: this rank's shard of the buffer, with the buffer's codec.
        inner: job that exchanges the shard among ``hosts.across``.
    """
    size, codec = whole.plan.size, whole.codec
    if not size:
        return
    index, ranks = whole.plan.index, hosts.inside.size
    bounds = chunk_bounds(size, ranks)
    splits = np.zeros(ranks, np.int32)
    splits[: len(bounds)] = [stop - start for start, stop in bounds]
    with codec.working():
        sent = codec.hand_over(whole.values, partial(whole.on_host, "values"))
        waiting = hosts.inside.alltoall(step.name(index, 0) + ".host", sent, splits)
    received, _ = yield waiting
    if not str(received.dtype).endswith("float32") or len(received) != ranks * own.plan.size:
        raise MismatchError(NOT_EVERYWHERE)

    wire = own.scratch("wire", _HEAD + own.plan.size)
    if own.plan.size:
        there = codec.take(received, partial(own.scratch, "received", len(received)))
        codec.average(there, ranks, own.values)
        own.measure(step.threads)
        told = np.zeros_like(step.told)
        across = replace(step, transport=hosts.across, sums={}, told=told)
        yield from inner(across, own)
        codec.load(_head(across), wire[:_HEAD])
        codec.copy(own.mean, wire[_HEAD:])

    with codec.working():
        sent = codec.hand_over(wire, partial(own.on_host, "wire"))
        waiting = hosts.inside.allgather(step.name(index, 1) + ".host", sent)
    received = yield waiting
    gathered = codec.take(received, partial(whole.scratch, "gathered", len(received)))
    heads = whole.scratch("heads", _HEAD * len(bounds))
    at = 0
    for place, (start, stop) in enumerate(bounds):
        codec.copy(gathered[at : at + _HEAD], heads[_HEAD * place : _HEAD * (place + 1)])
        at += _HEAD
        codec.copy(gathered[at : at + stop - start], whole.mean[start:stop])
        at += stop - start
    # Behind the copies: once the heads are here, so is the mean.
    for place, head in enumerate(codec.fetch(heads).reshape(-1, _HEAD)):
        if step.wants_sums:
            sum_sq, sum_sq_diff, aux = head[:6].view(np.float64).tolist()
            step.sums[index, place] = (sum_sq, sum_sq_diff)
            if place == 0:
                step.received_aux = aux
        step.told += head[6:22].view(np.int64).reshape(step.told.shape)


def _head(across: Step) -> np.ndarray:
    """What the ranks of this host must know of an exchange across."""
    sums = across.sums.values()
    head = np.zeros(_HEAD, np.float32)
    head[:6].view(np.float64)[:] = (
        sum(a for a, _ in sums), sum(b for _, b in sums), across.received_aux or 0.0,
    )  # fmt: skip
    head[6:22].view(np.int64)[:] = across.told.ravel()
    return head

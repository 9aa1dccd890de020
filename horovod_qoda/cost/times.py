"""Seconds: of an exchange, of a step, and the link at which compression stops paying."""

from __future__ import annotations

import math
from dataclasses import replace

from horovod_qoda.cost.exchange import UNBIASED, Exchange
from horovod_qoda.cost.load import load
from horovod_qoda.cost.machine import Machine


def seconds(exchange: Exchange, machine: Machine) -> float:
    """One exchange, from the last gradient to the last mean, nothing hidden behind backward.

    Within a buffer coding and sending follow each other; between B buffers they overlap, as far as
    cores and link allow.
    """
    need = load(exchange, machine)
    slowed = 1 / min(1.0, machine.cores)
    coding = need.cpu * slowed
    stack = need.handled * machine.wire_cpu * slowed
    wire = need.link / machine.bandwidth
    one_by_one = coding + max(wire, stack)
    side_by_side = max(coding + stack, wire)
    moving = side_by_side + (one_by_one - side_by_side) / exchange.buffers
    starts = (need.collectives + need.inside) * machine.start
    # All hosts agree on what is ready in a tree before anything is sent.
    agreeing = need.collectives * 2 * math.log2(exchange.hosts) * machine.latency
    return moving + need.messages * machine.latency + starts + agreeing


def step(compute: float, exchange_s: float, hidden: float = 0.0) -> float:
    """A training step: compute, and the part of the exchange that backward does not hide."""
    if not 0 <= hidden <= 1:
        raise ValueError(f"hidden must be a share between 0 and 1, not {hidden}")
    return compute + (1 - hidden) * exchange_s


def crossover(exchange: Exchange, machine: Machine, against: str = "fp32") -> float:
    """Bandwidth in bytes a second above which ``against`` is as fast or faster.

    0 where the compressed exchange loses on every link, infinity where it never does.
    """
    rival = replace(exchange, topology=against)

    def gain(bandwidth: float) -> float:
        here = replace(machine, bandwidth=bandwidth)
        return seconds(rival, here) - seconds(exchange, here)

    low, high = 1e3, 1e13
    if gain(low) <= 0:
        return 0.0
    if gain(high) > 0:
        return math.inf
    # What compression saves is a multiple of 1 / bandwidth, what it costs does not depend on it.
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gain(middle) > 0 else (low, middle)
    return low


def best(exchange: Exchange, machine: Machine) -> str:
    """The fastest of `UNBIASED`."""
    return min(UNBIASED, key=lambda t: seconds(replace(exchange, topology=t), machine))

"""The cost model: its sizes against real payloads, its formulas against sums made by hand."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_qoda import cost, layout, monitor
from horovod_qoda.coding import SEGMENT, Header, copy_stats, encode, max_payload_bytes
from horovod_qoda.cost.exchange import FRAME
from horovod_qoda.exchange.step import Outgoing
from horovod_qoda.quantization import step_factor, step_size

MILLION = 2**20
IDEAL = cost.Machine(
    bandwidth=1e9, latency=0, start=0, encode=0, decode=0, copy=0, add=0, cast=0, wire_cpu=0,
    inside=0, low_rank=0, product=0, orthogonal=0, matrix=0,
)  # fmt: skip


@pytest.mark.parametrize("bits", [2.0, 3.0, 5.0])
@pytest.mark.parametrize(
    ("coordinates", "layers"), [(16 * 1024, 1), (MILLION, 4), (4 * MILLION, 64)]
)
def test_predicted_payloads_are_as_long_as_real_ones(bits, coordinates, layers):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(coordinates).astype(np.float32)
    rows = np.zeros(layers, SEGMENT)
    rows["numel"] = coordinates // layers
    rows["offset"] = np.arange(layers) * (coordinates // layers)
    rows["layer"], rows["quantizer"] = np.arange(layers), 1
    rows["step"] = step_size(step_factor(bits), copy_stats(values)[0], coordinates)
    out = np.empty(max_payload_bytes(rows), np.uint8)
    length = encode(values, rows, Header(1, 0, 0, 0, 0, 0), out)
    framed = Outgoing().fit((0, 0, 0), FRAME + length)
    assert cost.payload_bytes(coordinates, layers, 1, bits) == pytest.approx(
        framed, rel=0.01, abs=64
    )


@pytest.mark.parametrize("ranks", [2, 3, 4, 16, 300])
@pytest.mark.parametrize("coordinates", [1000, 300_000, 4 * MILLION])
def test_owners_are_those_of_the_layout(ranks, coordinates):
    exchange = cost.Exchange(coordinates, ranks, "scatter_reduce")
    assert exchange.buffers == 1
    assert exchange.owners == len(layout.chunk_bounds(coordinates, ranks))


@pytest.mark.parametrize("ranks", [2, 4, 32])
def test_bytes_are_those_of_the_monitor_where_overheads_vanish(ranks):
    d = 64 * MILLION
    raw = cost.load(cost.Exchange(d, ranks, "fp32"), IDEAL)
    assert raw.link == monitor.link_bytes("raw", 4 * d, ranks)
    whole = cost.payload_bytes(d, 1, 1, 3.0)
    ours = cost.load(cost.Exchange(d, ranks, "allgather", buffer=2**40), IDEAL)
    assert ours.link == monitor.link_bytes("allgather", whole, ranks)
    ours = cost.load(cost.Exchange(d, ranks, "scatter_reduce", buffer=2**40), IDEAL)
    handed = whole * (1 + 1 / ranks)
    assert ours.link == pytest.approx(monitor.link_bytes("scatter_reduce", handed, ranks), rel=2e-3)


def test_the_ratio_of_bytes_is_that_of_the_theory():
    # docs/theory.md section 9: K b / 64 for all-gather, (b1 + b2) / 64 for scatter-reduce; the
    # ring's factor (K - 1) / K is left out there.
    d = 256 * MILLION
    for ranks in (4, 64):
        raw = cost.load(cost.Exchange(d, ranks, "fp32"), IDEAL).link * ranks / (ranks - 1)
        for topology, expected in (("allgather", ranks * 3 / 64), ("scatter_reduce", 6 / 64)):
            ours = cost.load(cost.Exchange(d, ranks, topology), IDEAL).link
            ours *= ranks / (ranks - 1)
            assert ours / raw == pytest.approx(expected, rel=0.05)


def test_seconds_of_a_known_case():
    exchange = cost.Exchange(4 * MILLION, 4, "fp32")
    assert cost.seconds(exchange, IDEAL) == pytest.approx(1.5 * 16 * MILLION / 1e9)
    slow = replace(IDEAL, latency=1e-3, start=1e-2)
    more = 6e-3 + 1e-2 + 2 * 2 * 1e-3
    assert cost.seconds(exchange, slow) == pytest.approx(1.5 * 16 * MILLION / 1e9 + more)
    # Half a core doubles what runs on it and leaves the wire alone.
    coded = replace(exchange, topology="allgather")
    busy = replace(IDEAL, encode=1e-9, decode=1e-9)
    wire = cost.seconds(coded, IDEAL)
    assert cost.seconds(coded, busy) == pytest.approx(wire + 5e-9 * 4 * MILLION)
    halved = cost.seconds(coded, replace(busy, cores=0.5))
    assert halved == pytest.approx(wire + 1e-8 * 4 * MILLION)


def test_one_rank_sends_nothing():
    for topology in cost.TOPOLOGIES:
        assert cost.seconds(cost.Exchange(1000, 1, topology), cost.Machine()) == 0.0


@given(
    coordinates=st.integers(1, 2**30),
    ranks=st.integers(2, 4096),
    each=st.sampled_from([1, 2, 8]),
    topology=st.sampled_from(cost.TOPOLOGIES),
    bits=st.floats(0.5, 8),
    factor=st.floats(1.0, 100.0),
)
def test_seconds_never_rise_with_speed_nor_fall_with_size(
    coordinates, ranks, each, topology, bits, factor
):
    exchange = cost.Exchange(coordinates, ranks * each, topology, bits, ranks_per_host=each)
    machine = cost.Machine()
    base = cost.seconds(exchange, machine)
    assert base > 0 and math.isfinite(base)
    faster = replace(machine, bandwidth=machine.bandwidth * factor)
    assert cost.seconds(exchange, faster) <= base * (1 + 1e-12)
    for name in asdict(machine).keys() - {"bandwidth", "cores"}:
        slower = replace(machine, **{name: getattr(machine, name) * factor})
        assert cost.seconds(exchange, slower) >= base * (1 - 1e-12)


@pytest.mark.parametrize("topology", ["allgather", "scatter_reduce"])
@pytest.mark.parametrize("against", cost.RAW)
def test_at_the_crossover_both_take_the_same_time(topology, against):
    exchange = cost.Exchange(4 * MILLION, 4, topology)
    machine = replace(cost.Machine(), wire_cpu=0.0)
    at = replace(machine, bandwidth=cost.crossover(exchange, machine, against))
    ours = cost.seconds(exchange, at)
    assert ours == pytest.approx(cost.seconds(replace(exchange, topology=against), at), rel=1e-3)
    assert cost.seconds(exchange, replace(at, bandwidth=at.bandwidth / 2)) < cost.seconds(
        replace(exchange, topology=against), replace(at, bandwidth=at.bandwidth / 2)
    )


def test_crossovers_at_the_ends():
    # All-gather moves more than float32 from K = 64 / b on, whatever the link.
    assert cost.crossover(cost.Exchange(4 * MILLION, 256, "allgather"), cost.Machine()) == 0.0
    free = replace(IDEAL, latency=1e-9)
    assert cost.crossover(cost.Exchange(4 * MILLION, 2, "allgather"), free) == math.inf


def test_the_best_is_the_least():
    slow, fast = replace(IDEAL, bandwidth=1e6), replace(cost.Machine(), bandwidth=1e12, wire_cpu=0)
    exchange = cost.Exchange(4 * MILLION, 64, "fp32")
    assert cost.best(exchange, slow) == "scatter_reduce"
    assert cost.best(exchange, fast) in cost.RAW


def test_a_step_hides_what_it_is_told():
    assert cost.step(1.0, 0.5) == 1.5
    assert cost.step(1.0, 0.5, hidden=0.8) == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cost.Exchange(10, 2, "ring"), "topology must be one of fp32, fp16"),
        (lambda: cost.Exchange(0, 2, "fp32"), "coordinates must be at least 1"),
        (lambda: cost.Exchange(10, 0, "fp32"), "ranks must be at least 1"),
        (lambda: cost.Exchange(10, 2, "fp32", bits=0), "bits must be positive"),
        (lambda: cost.Exchange(10, 6, "fp32", ranks_per_host=4), "multiple of ranks_per_host = 4"),
        (lambda: cost.Exchange(10, 2, "powersgd", low_rank=0), "low_rank must be at least 1"),
        (lambda: cost.step(1, 1, hidden=2), "hidden must be a share"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()

"""The cost of two levels and of PowerSGD: limits, and the bytes that real exchanges hand over."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from horovod_qoda import cost
from horovod_qoda.cost.load import HEAD, flat
from horovod_qoda.exchange import Exchange, choose_topology
from horovod_qoda.exchange.two_level import _HEAD
from horovod_qoda.layout import build
from horovod_qoda.settings import Settings
from horovod_qoda.transport import local_hosts, local_transports
from tests.threads import in_threads

MILLION = 2**20


@pytest.mark.parametrize("ranks", [2, 3, 64])
@pytest.mark.parametrize("bits", [2.0, 3.0])
def test_with_one_rank_a_host_two_levels_are_the_flat_exchange(ranks, bits):
    two = cost.Exchange(4 * MILLION, ranks, "two_level", bits)
    same = replace(two, topology=choose_topology(Settings(bits=bits), ranks))
    assert cost.load(two, cost.Machine()) == cost.load(same, cost.Machine())


@pytest.mark.parametrize("ranks", range(2, 9))
@pytest.mark.parametrize("bits", [1.5, 2.0, 2.5])
def test_the_way_across_hosts_is_the_one_that_the_exchange_takes(ranks, bits):
    assert flat(ranks, bits) == choose_topology(Settings(bits=bits), ranks)


@pytest.mark.parametrize("topology", cost.TOPOLOGIES)
def test_on_one_host_nothing_crosses_a_link(topology):
    exchange = cost.Exchange(4 * MILLION, 8, topology, ranks_per_host=8)
    need = cost.load(exchange, cost.Machine())
    assert (need.link, need.handled, need.messages, need.collectives) == (0, 0, 0, 0)
    assert need.inside > 0 and need.cpu > 0


@pytest.mark.parametrize("each", [2, 8])
@pytest.mark.parametrize("hosts", [2, 4, 32])
def test_a_link_carries_the_payload_of_one_rank_whatever_ranks_a_host_has(each, hosts):
    """And not that of all of them, as scatter-reduce's first stage over all ranks does."""
    d, machine = 16 * MILLION, cost.Machine()
    two = cost.load(
        cost.Exchange(d, each * hosts, "two_level", ranks_per_host=each, buffer=2**30), machine
    )
    alone = cost.load(cost.Exchange(d, hosts, flat(hosts, 3.0), buffer=2**30), machine)
    assert two.link == pytest.approx(alone.link, rel=0.01)
    assert two.handled == pytest.approx(alone.handled / each, rel=0.01)
    over_all = cost.Exchange(d, each * hosts, "scatter_reduce", ranks_per_host=each, buffer=2**30)
    wanted = (each + 1) / 2 * 2 * (hosts - 1) / hosts * cost.payload_bytes(d, 1, 1, 3.0)
    # The ring of the second stage also carries a host's own chunks, 1 / hosts of them.
    assert wanted < cost.load(over_all, machine).link < 1.1 * wanted * hosts / (hosts - 1)


LAYERS, SIDE = 8, 256


def record_of(settings: Settings, hosts: int, each: int) -> tuple[list, list]:
    """Wire bytes that every rank's record says, after a few exchanges; and bytes inside hosts."""

    def rank(pair):
        transport, mine = pair
        plans = [(f"layer{i}", (SIDE, SIDE), "torch.float32") for i in range(LAYERS)]
        exchange = Exchange(build(plans, settings), settings, transport, 0, hosts=mine)
        exchange.agree()
        generator = torch.Generator().manual_seed(transport.rank)
        try:
            for _ in range(3):
                before = mine.inside.sent_bytes if mine else 0
                for layer in range(LAYERS):
                    exchange.put(layer, torch.randn(SIDE, SIDE, generator=generator))
                for layer in range(LAYERS):
                    exchange.mean(layer)
                record, _ = exchange.finish()
            return record, (mine.inside.sent_bytes - before if mine else 0)
        finally:
            exchange.close()

    groups = local_hosts(hosts, each) if each > 1 else [None] * hosts
    found = in_threads(list(zip(local_transports(hosts * each), groups, strict=True)), rank)
    return [record for record, _ in found], [inside for _, inside in found]


@pytest.mark.parametrize(("hosts", "each"), [(2, 2), (2, 4), (4, 2)])
def test_two_levels_hand_over_the_bytes_that_the_model_says(hosts, each):
    records, inside = record_of(Settings(topology="two_level"), hosts, each)
    exchange = cost.Exchange(
        LAYERS * SIDE**2, hosts * each, "two_level", layers=LAYERS, ranks_per_host=each
    )
    need = cost.load(exchange, cost.Machine())
    # Of W bytes that a rank hands over, each of the host's ranks draws link_bytes over the link.
    factor = cost.link_bytes(flat(hosts, 3.0), 1.0, hosts)
    drawn = sum(record.wire_bytes for record in records) / hosts * factor
    assert need.link == pytest.approx(drawn, rel=0.02)
    # Inside: every rank's buffer, and its shard's mean with a head. A rank's own parts stay.
    assert HEAD == 4 * _HEAD
    whole = 4 * LAYERS * SIDE**2
    assert inside == [whole + whole // each + HEAD] * (hosts * each)
    free = cost.load(exchange, replace(cost.Machine(), inside=0.0))
    received = (need.cpu - free.cpu) / cost.Machine().inside
    mean = whole * (each - 1) / each
    assert received == pytest.approx(2 * mean + HEAD * (each - 1))


@pytest.mark.parametrize("rank", [1, 4])
def test_powersgd_hands_over_the_bytes_that_the_model_says(rank):
    settings = Settings(quantizer="powersgd", low_rank=rank)
    records, _ = record_of(settings, 2, 1)
    exchange = cost.Exchange(LAYERS * SIDE**2, 2, "powersgd", layers=LAYERS, low_rank=rank)
    thin = 4 * rank * SIDE * LAYERS
    # Rank 0 hands over its basis too.
    assert [record.wire_bytes for record in records] == [3 * thin, 2 * thin]
    assert cost.load(exchange, cost.Machine()).link == pytest.approx(
        2 * cost.link_bytes("raw", thin, 2) + thin
    )


def test_powersgds_work_grows_with_its_rank_and_orthogonalising_with_its_square():
    machine = cost.Machine(copy=0, low_rank=0, product=0, orthogonal=1e-9, matrix=0)
    exchange = cost.Exchange(4 * MILLION, 8, "powersgd", layers=4)
    work = {r: cost.load(replace(exchange, low_rank=r), machine).cpu for r in (1, 2, 4)}
    assert work[1] == pytest.approx(4 * 1024 * 1e-9)
    assert work[2] == pytest.approx(4 * work[1]) and work[4] == pytest.approx(16 * work[1])
    # A matrix has no higher rank than its shorter side.
    narrow = cost.Exchange(16, 8, "powersgd", low_rank=64)
    assert math.isclose(cost.load(narrow, machine).cpu, 4 * 4**2 * 1e-9)

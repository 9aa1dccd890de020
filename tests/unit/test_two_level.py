"""Two levels between threads: hosts of several ranks that sum inside and code across."""

import random
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from horovod_qoda.exchange import Exchange
from horovod_qoda.exchange.two_level import shard
from horovod_qoda.layout import build
from horovod_qoda.settings import Settings
from horovod_qoda.torch import hosts
from horovod_qoda.transport import local_hosts, local_transports
from tests.threads import in_threads

SHAPES = [
    ("a", (300, 200)),
    ("bias", (200,)),
    ("b", (40, 1000)),
    ("big", (1500, 130)),
    ("one", (1,)),
]


def layout_of(settings):
    return build([(n, s, "torch.float32") for n, s in SHAPES], settings)


def gradients_of(rank, step):
    g = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(s, generator=g) * 0.1 ** (i % 3) for i, (_, s) in enumerate(SHAPES)]


def run(hosts, each, settings, body, wants_sums=False):
    pairs = list(zip(local_transports(hosts * each), local_hosts(hosts, each), strict=True))

    def rank(pair):
        transport, mine = pair
        exchange = Exchange(
            layout_of(settings), settings, transport, 0, wants_sums, lambda: 7.0 + transport.rank,
            hosts=mine,
        )  # fmt: skip
        exchange.agree()
        try:
            return body(exchange, transport, mine)
        finally:
            exchange.close()

    return in_threads(pairs, rank)


def exchange_all(exchange, gradients):
    for layer, gradient in enumerate(gradients):
        exchange.put(layer, gradient)
    means = [exchange.mean(i).copy() for i in range(len(gradients))]
    return means, *exchange.finish()


@pytest.mark.parametrize(("hosts", "each"), [(2, 2), (2, 3), (3, 2), (4, 2), (1, 2), (2, 20)])
@pytest.mark.parametrize("quantizer", ["auto", "uniform"])
def test_means_agree_to_the_bit_and_are_close(hosts, each, quantizer):
    settings = Settings(bits=5, topology="two_level", quantizer=quantizer, fusion_mb=0.5)

    def body(exchange, transport, mine):
        return [exchange_all(exchange, gradients_of(transport.rank, t))[0] for t in range(3)]

    results = run(hosts, each, settings, body)
    for other in results[1:]:
        for t in range(3):
            for mean, same in zip(results[0][t], other[t], strict=True):
                assert mean.tobytes() == same.tobytes()
    for t in range(3):
        every = [gradients_of(r, t) for r in range(hosts * each)]
        for i, mean in enumerate(results[0][t]):
            true = torch.stack([g[i] for g in every]).mean(0).reshape(-1).numpy()
            error = np.linalg.norm(mean - true) / np.linalg.norm(true)
            assert error < (0.12 if exchange_is_coded(i) else 1e-6), (SHAPES[i], error)


def exchange_is_coded(layer):
    shape = SHAPES[layer][1]
    return len(shape) > 1


def test_unbiased():
    """The mean over draws of the random numbers goes to the true mean of all ranks."""
    seed = random.randrange(2**16)
    print("seed", seed)
    settings = Settings(bits=2, topology="two_level", seed=seed)

    def body(exchange, transport, mine):
        total, draws = 0.0, 60
        for _ in range(draws):
            total = total + exchange_all(exchange, gradients_of(transport.rank, 0))[0][3] / draws
        return total

    mean = run(2, 2, settings, body)[0]
    true = torch.stack([gradients_of(r, 0)[3] for r in range(4)]).mean(0).reshape(-1).numpy()

    def once(exchange, transport, mine):
        return exchange_all(exchange, gradients_of(transport.rank, 0))[0][3]

    single = run(2, 2, settings, once)[0] - true
    # The error of a mean of n unbiased draws is 1/sqrt(n) of one draw's; a bias would stay.
    assert np.linalg.norm(mean - true) < 1.5 * np.linalg.norm(single) / np.sqrt(60)


def expected_sums(step):
    """Of hosts' means: Σ_h ‖V_h‖²/H², and of the differences from the step before."""

    def host(h, t):
        a, b = gradients_of(2 * h, t), gradients_of(2 * h + 1, t)
        return [(x + y) / 2 for x, y in zip(a, b, strict=True)]

    now = [host(h, step) for h in range(2)]
    before = [host(h, step - 1) for h in range(2)]
    square = sum(float(x.square().sum()) for node in now for x in node) / 4
    change = (
        sum(
            float((x - y).square().sum())
            for node, old in zip(now, before, strict=True)
            for x, y in zip(node, old, strict=True)
        )
        / 4
    )
    return square, change


@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_sums_are_those_of_the_hosts_vectors(warmup):
    """Nodes are hosts, also while warming up and from the first coded exchange after it: the sums
    are of what was decoded from each, and rank 0's scalar arrives."""
    settings = Settings(bits=8, topology="two_level", warmup_steps=warmup)

    def body(exchange, transport, mine):
        exchange_all(exchange, gradients_of(transport.rank, 0))
        return exchange_all(exchange, gradients_of(transport.rank, 1))[1:]

    results = run(2, 2, settings, body, wants_sums=True)
    record, sums = results[0]
    assert record.topology == ("raw" if warmup == 2 else "two_level")
    assert all(other == sums for _, other in results)
    assert sums.aux == 7.0
    square, change = expected_sums(1)
    assert sums.sum_sq == pytest.approx(square, rel=0.02)
    assert sums.sum_sq_diff == pytest.approx(change, rel=0.02)


def test_warming_up_by_hosts_is_exact_and_the_same_everywhere():
    settings = Settings(topology="two_level", warmup_steps=1)

    def body(exchange, transport, mine):
        return exchange_all(exchange, gradients_of(transport.rank, 0))[0]

    results = run(2, 2, settings, body, wants_sums=True)
    for i in range(len(SHAPES)):
        true = torch.stack([gradients_of(r, 0)[i] for r in range(4)]).mean(0).reshape(-1).numpy()
        np.testing.assert_allclose(results[0][i], true, rtol=1e-5, atol=1e-7)
        assert all(other[i].tobytes() == results[0][i].tobytes() for other in results)


def test_only_the_payloads_of_one_rank_in_two_cross():
    def body(exchange, transport, mine):
        for t in range(3):
            record = exchange_all(exchange, gradients_of(transport.rank, t))[1]
        return record

    two = run(2, 2, Settings(bits=3, topology="two_level"), body)
    flat = run(2, 2, Settings(bits=3, topology="allgather"), body)
    assert two[0].topology == "two_level"
    assert sum(r.wire_bytes for r in two) < 0.6 * sum(r.wire_bytes for r in flat)


def test_resumes_to_the_bit():
    settings = Settings(bits=3, topology="two_level")

    def straight(exchange, transport, mine):
        return [exchange_all(exchange, gradients_of(transport.rank, t)) for t in range(6)][-1]

    saved = {}

    def first(exchange, transport, mine):
        for t in range(4):
            exchange_all(exchange, gradients_of(transport.rank, t))
        saved[transport.rank] = exchange.state_dict(), exchange.local_state_dict()

    def second(exchange, transport, mine):
        state, local = saved[transport.rank]
        exchange.load_state_dict(state)
        exchange.load_local_state_dict(local)
        exchange.agree()
        return [exchange_all(exchange, gradients_of(transport.rank, t)) for t in (4, 5)][-1]

    whole = run(2, 2, settings, straight, wants_sums=True)
    run(2, 2, settings, first, wants_sums=True)
    resumed = run(2, 2, settings, second, wants_sums=True)
    for (means, _, sums), (again, _, same) in zip(whole, resumed, strict=True):
        assert [m.tobytes() for m in means] == [m.tobytes() for m in again]
        assert sums == same


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_layer_that_is_not_finite_says_so_on_every_rank(bad):
    settings = Settings(bits=3, topology="two_level")

    def body(exchange, transport, mine):
        gradients = gradients_of(transport.rank, 0)
        if transport.rank == 3:
            gradients[2][7, 7] = bad
        return [bool(np.isfinite(m).all()) for m in exchange_all(exchange, gradients)[0]]

    for finite in run(2, 2, settings, body):
        assert finite == [True, True, False, True, True]


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 64])
def test_shards_cover_every_coordinate_once(parts):
    layout = layout_of(Settings())
    seen = {i: np.zeros(x.numel, int) for i, x in enumerate(layout.layers)}
    for plan in layout.buffers:
        for index in range(parts):
            part = shard(layout, plan, parts, index)
            for layer, offset in zip(part.layers, part.offsets, strict=True):
                first, last = max(-offset, 0), min(part.size - offset, layout.layers[layer].numel)
                seen[layer][first:last] += 1
    assert all((counts == 1).all() for counts in seen.values())


def test_two_level_without_hosts_is_refused():
    settings = Settings(topology="two_level")
    with pytest.raises(ValueError, match="share a host"):
        Exchange(layout_of(settings), settings, local_transports(1)[0], 0).put(0, None)


@pytest.mark.parametrize("averse", [(False, False, False, True), (False,) * 4])
def test_a_rank_with_gradients_on_a_device_keeps_all_from_summing_by_hosts(monkeypatch, averse):
    monkeypatch.delenv("HOROVOD_DYNAMIC_PROCESS_SETS", raising=False)
    here = threading.local()
    monkeypatch.setattr(hosts.socket, "gethostname", lambda: here.name)

    def rank(transport):
        here.name = f"host{transport.rank // 2}"
        everyone = SimpleNamespace(process_set_id=0)
        with pytest.raises(hosts._Impossible) as why:
            hosts._hosts(everyone, transport, averse[transport.rank])
        return str(why.value)

    reasons = set(in_threads(local_transports(4), rank))
    assert len(reasons) == 1
    assert ("as float32" if any(averse) else "no process sets") in reasons.pop()

"""The exchange between threads: one mean on all ranks, unbiased, exact where it must be exact."""

import random

import numpy as np
import pytest
import torch

from horovod_qoda.exchange import Exchange, MismatchError, choose_topology
from horovod_qoda.layout import build
from horovod_qoda.settings import Settings
from horovod_qoda.transport import local_transports
from tests.threads import in_threads

SHAPES = [
    ("a.weight", (300, 200)),
    ("a.bias", (200,)),
    ("b.weight", (40, 1000)),
    ("c", (1500, 30)),
    ("empty", (0, 3)),
    ("one", (1,)),
]
TOPOLOGIES = ["allgather", "scatter_reduce"]


def layout_of(settings, shapes=SHAPES):
    return build([(n, s, "torch.float32") for n, s in shapes], settings)


def exchange_all(exchange, gradients, order=None):
    for layer in order or range(len(gradients)):
        exchange.put(layer, gradients[layer])
    means = [exchange.mean(i).copy() for i in range(len(gradients))]
    return means, *exchange.finish()


def gradients_of(rank, step, shapes=SHAPES):
    g = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(s, generator=g) * 0.1 ** (i % 3) for i, (_, s) in enumerate(shapes)]


def run(size, settings, body, wants_sums=False, shapes=SHAPES):
    def rank(transport):
        exchange = Exchange(layout_of(settings, shapes), settings, transport, 0, wants_sums)
        exchange.agree()
        try:
            return body(exchange, transport)
        finally:
            exchange.close()

    return in_threads(local_transports(size), rank)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("quantizer", ["auto", "dithered", "uniform"])
def test_means_agree_to_the_bit_and_are_close(size, topology, quantizer):
    settings = Settings(bits=4, topology=topology, quantizer=quantizer, fusion_mb=0.25)
    seed = random.randrange(2**32)
    print("seed", seed)

    def body(exchange, transport):
        order = list(range(len(SHAPES)))
        out = []
        for step in range(6):
            random.Random(seed + transport.rank + step).shuffle(order)
            out.append(exchange_all(exchange, gradients_of(transport.rank, step), order)[0])
        return out

    results = run(size, settings, body)
    for step in range(6):
        want = [
            np.mean([gradients_of(r, step)[i].numpy() for r in range(size)], axis=0).ravel()
            for i in range(len(SHAPES))
        ]
        for layer in range(len(SHAPES)):
            got = [r[step][layer] for r in results]
            assert all(g.tobytes() == got[0].tobytes() for g in got)
            error = np.sum((got[0] - want[layer]) ** 2)
            if not SHAPES[layer][0].endswith("weight") and SHAPES[layer][0] != "c":
                # float32 sums of scaled values: an ulp or two of the summands
                np.testing.assert_allclose(got[0], want[layer], rtol=1e-6, atol=3e-7)
            else:
                power = np.sum(want[layer] ** 2)
                assert 0 < error < 0.12 * power, (step, SHAPES[layer][0], error / power)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_mean_is_unbiased(topology):
    shapes = [("w", (64, 64))]
    settings = Settings(bits=2, topology=topology, min_numel=1)
    draws, size = 400, 3

    def body(exchange, transport):
        gradients = gradients_of(transport.rank, 0, shapes)
        return np.array([exchange_all(exchange, gradients)[0][0] for _ in range(draws)], np.float64)

    means = run(size, settings, body, shapes=shapes)[0]
    want = np.mean([gradients_of(r, 0, shapes)[0].numpy() for r in range(size)], axis=0).ravel()
    deviation = np.abs(means.mean(axis=0) - want) / (means.std(axis=0) / np.sqrt(draws) + 1e-12)
    assert deviation.max() < 5.5, deviation.max()
    assert abs(np.mean((means.mean(axis=0) - want) / means.std(axis=0))) * np.sqrt(draws * 4096) < 5


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_zeros_stay_zero_and_nan_stays_in_its_layer(topology):
    settings = Settings(topology=topology, min_numel=1, fusion_mb=0.25)
    size = 3

    def body(exchange, transport):
        zero = exchange_all(exchange, [torch.zeros(s) for _, s in SHAPES])[0]
        none = exchange_all(exchange, [None] * len(SHAPES))[0]
        bad = gradients_of(transport.rank, 1)
        if transport.rank == 1:
            bad[2].view(-1)[777] = float("nan")
            bad[1].view(-1)[0] = float("inf")
        mixed = exchange_all(exchange, bad)[0]
        after = exchange_all(exchange, gradients_of(transport.rank, 2))[0]
        return zero, none, mixed, after

    for zero, none, mixed, after in run(size, settings, body):
        assert not any(x.any() for x in zero + none)
        assert [bool(np.isfinite(x).all()) for x in mixed] == [i not in (1, 2) for i in range(6)]
        assert np.isnan(mixed[2]).all()
        assert all(np.isfinite(x).all() for x in after)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_sums_over_nodes_are_those_of_the_decoded_vectors(topology):
    shapes = [("w", (100, 400)), ("v", (70, 900))]
    settings = Settings(bits=5, topology=topology, min_numel=1, fusion_mb=0.25)
    size = 3

    def body(exchange, transport):
        out = []
        for step in range(4):
            means, _, sums = exchange_all(exchange, gradients_of(transport.rank, step, shapes))
            out.append((sums, means))
        return out

    results = run(size, settings, body, wants_sums=True, shapes=shapes)
    for step in range(4):
        assert len({(r[step][0].sum_sq, r[step][0].sum_sq_diff) for r in results}) == 1
        got = results[0][step][0]
        square = difference = 0.0
        for rank in range(size):
            now = gradients_of(rank, step, shapes)
            before = gradients_of(rank, step - 1, shapes) if step else [0 * g for g in now]
            square += sum(float((g**2).sum()) for g in now)
            difference += sum(float(((g - b) ** 2).sum()) for g, b in zip(now, before, strict=True))
        # 5 bits leave a relative variance under 0.2 %, plus the second stage's error.
        assert got.sum_sq == pytest.approx(square / size**2, rel=0.02)
        assert got.sum_sq_diff == pytest.approx(difference / size**2, rel=0.02)


def sparse_of(rank, step, shapes):
    g = torch.Generator().manual_seed(1000 * step + rank)
    out = [torch.randn(s, generator=g) for _, s in shapes]
    return [x * (torch.rand(x.shape, generator=g) < 0.3) for x in out]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_rate_is_reached_where_most_coordinates_are_zero(topology):
    shapes = [("w", (256, 1024))]

    def body(exchange, transport):
        return [exchange_all(exchange, sparse_of(transport.rank, s, shapes))[1] for s in range(25)]

    for records in run(2, Settings(bits=2.5, topology=topology), body, shapes=shapes):
        assert np.mean([r.coded_bits for r in records[20:]]) == pytest.approx(2.5, rel=0.02)


@pytest.mark.parametrize("bits", [1.5, 2, 3, 4.5])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_rate_approaches_the_bits_asked_for(bits, topology):
    shapes = [("w", (256, 1024)), ("conv.w", (256, 512))]
    settings = Settings(bits=bits, topology=topology)

    def body(exchange, transport):
        return [
            exchange_all(exchange, gradients_of(transport.rank, s, shapes))[1] for s in range(25)
        ]

    for records in run(2, settings, body, shapes=shapes):
        tail = np.mean([r.coded_bits for r in records[20:]])
        assert tail == pytest.approx(bits, rel=0.02)
        assert records[19].entropy_bits == pytest.approx(bits, rel=0.02)
        assert records[20].wire_bytes >= records[20].payload_bytes


def test_state_moves_to_a_new_exchange_and_continues_bit_for_bit():
    settings = Settings(bits=3, topology="scatter_reduce", fusion_mb=0.25)

    def body(exchange, transport):
        for step in range(3):
            exchange_all(exchange, gradients_of(transport.rank, step))
        other = Exchange(exchange.layout, settings, transport, 0, True)
        other.load_state_dict(exchange.state_dict())
        other.load_local_state_dict(exchange.local_state_dict())
        a = exchange_all(exchange, gradients_of(transport.rank, 9))
        b = exchange_all(other, gradients_of(transport.rank, 9))
        other.close()
        return a, b

    for a, b in run(2, settings, body, wants_sums=True):
        assert all(x.tobytes() == y.tobytes() for x, y in zip(a[0], b[0], strict=True))
        assert a[2] == b[2]


def test_warm_up_is_exact_then_compressed():
    settings = Settings(warmup_steps=2, min_numel=1)

    def body(exchange, transport):
        return [exchange_all(exchange, gradients_of(transport.rank, s))[:2] for s in range(3)]

    results = run(2, settings, body)
    for step, topology in enumerate(["raw", "raw", "allgather"]):
        means, record = results[0][step]
        want = (gradients_of(0, step)[0] + gradients_of(1, step)[0]).numpy().ravel() / 2
        assert record.topology == topology
        assert np.array_equal(means[0], want) == (topology == "raw")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [3e38, float("inf"), float("nan")])
@pytest.mark.parametrize(
    "settings",
    [
        Settings(quantizer="powersgd", low_rank=2, min_numel=1),
        Settings(topology="scatter_reduce"),
        Settings(warmup_steps=9),
    ],
    ids=["powersgd", "coded", "raw"],
)
def test_what_overflows_is_the_same_on_all_ranks_and_warns_on_none(settings, size):
    """Values of 3e38 overflow in PowerSGD's products and in sums; coded, their mean is finite."""

    def rank(transport):
        exchange = Exchange(layout_of(settings), settings, transport, 0, True)
        try:
            bad = gradients_of(transport.rank, 0)
            bad[3][:] = size
            bad[3][0, 0] = 0
            found = [np.isfinite(m).all() for m in exchange_all(exchange, bad)[0]]
            after = exchange_all(exchange, gradients_of(transport.rank, 1))[0]
            return found, [np.isfinite(m).all() for m in after]
        finally:
            exchange.close()

    results = in_threads(local_transports(2), rank)
    assert results[0] == results[1]
    for found, after in results:
        finite = size == 3e38 and settings.topology == "scatter_reduce"
        assert [place for place, good in enumerate(found) if not good] == [3][finite:]
        assert all(after)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(warmup_steps=9),
        Settings(rules={"*": "raw"}),
        Settings(quantizer="powersgd", low_rank=1, min_numel=1),
        Settings(topology="scatter_reduce"),
    ],
    ids=["warming up", "raw", "powersgd", "coded"],
)
def test_the_scalar_of_rank_0_reaches_all_ranks_whatever_carries_the_gradients(settings):
    def rank(transport):
        matrices = [("a", (300, 200)), ("b", (64, 64))]
        exchange = Exchange(
            layout_of(settings, matrices),
            settings,
            transport,
            0,
            True,
            lambda: 7.0 + transport.rank,
        )
        try:
            return exchange_all(exchange, gradients_of(transport.rank, 0, matrices))[2].aux
        finally:
            exchange.close()

    assert in_threads(local_transports(3), rank) == [7.0] * 3


@pytest.mark.parametrize("differ", ["bits", "order", "shape", "missing"])
def test_ranks_that_differ_all_hear_of_it(differ):
    def rank(transport):
        odd = transport.rank == 2
        shapes = list(SHAPES)
        settings = Settings(bits=5 if odd and differ == "bits" else 3)
        if odd and differ == "order":
            shapes[0], shapes[2] = shapes[2], shapes[0]
        if odd and differ == "shape":
            shapes[3] = ("c", (1500, 31))
        if odd and differ == "missing":
            del shapes[5]
        exchange = Exchange(layout_of(settings, shapes), settings, transport, 0)
        with pytest.raises(MismatchError) as e:
            exchange.agree()
        return str(e.value)

    texts = in_threads(local_transports(3), rank)
    assert len(set(texts)) == 1
    word = {"bits": "bits", "order": "'a.weight'", "shape": "1501", "missing": "one"}[differ]
    word = {"shape": "1500, 31"}.get(differ, word)
    assert word in texts[0] and "[2]" in texts[0], texts[0]


def test_auto_topology():
    assert [choose_topology(Settings(), k) for k in (1, 2, 3, 4, 64)] == [
        "allgather",
        "allgather",
        "scatter_reduce",
        "scatter_reduce",
        "scatter_reduce",
    ]
    assert choose_topology(Settings(bits=2), 3) == "allgather"
    assert choose_topology(Settings(topology="allgather"), 64) == "allgather"


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("number", [2, 3])
def test_finite_gradients_of_no_finite_sum_end_alike_without_counting(number, seed):
    """Exchanges 2 and 3 take no histogram: the owner hears of the overflow while it encodes."""
    shapes = [("a", (64, 512)), ("b", (96, 300))]

    def body(exchange, transport):
        out = []
        for step in range(number + 2):
            gradients = gradients_of(transport.rank, 10 * seed + step, shapes)
            if step == number:
                gradients[0].view(-1)[7 * seed] = np.finfo(np.float32).max.item()
            out.append(([m.copy() for m in exchange_all(exchange, gradients)[0]], gradients))
        return out

    results = run(3, Settings(topology="scatter_reduce", bits=4), body, shapes=shapes)
    bad, good = results[0][number][0]
    assert not np.isfinite(bad).all()
    want = np.mean([r[number][1][1].numpy() for r in results], axis=0).ravel()
    assert np.linalg.norm(good - want) < 0.3 * np.linalg.norm(want)
    assert np.isfinite(results[0][number + 1][0][0]).all()
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert [m.tobytes() for m in mine[0]] == [m.tobytes() for m in theirs[0]]

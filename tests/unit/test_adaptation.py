"""What adapts during training: the same on all ranks, and as good as it should be."""

import hashlib
import json
import random

import numpy as np
import pytest
import torch

from horovod_qoda.exchange import Exchange
from horovod_qoda.exchange.adaptation import (
    EARLY_ALLOCATIONS,
    EARLY_UPDATES,
    is_allocation,
    is_update,
)
from horovod_qoda.exchange.observations import sample, sum_over_ranks
from horovod_qoda.layout import build
from horovod_qoda.settings import Settings
from horovod_qoda.transport import local_transports
from tests.threads import in_threads

# An embedding most of whose rows have no gradient, a dense layer, and one of heavy tails.
SHAPES = [("embed.weight", (512, 64)), ("fc.weight", (128, 256)), ("conv.weight", (128, 16, 3, 3))]


def gradients_of(rank, step, shapes=SHAPES):
    rng = np.random.default_rng([rank, step])
    out = []
    for i, (name, shape) in enumerate(shapes):
        g = rng.standard_normal(shape) if i % 3 != 2 else rng.standard_t(3, shape)
        g *= 10.0 ** (-i)
        if name.startswith("embed"):
            g *= rng.random((shape[0], 1)) < 0.25
        out.append(torch.from_numpy(g.astype(np.float32)))
    return out


def run(size, settings, steps, shapes=SHAPES, wanted=gradients_of):
    """Per rank: hash of the state after every exchange, and the exchange itself, and records."""

    def rank(transport):
        layout = build([(n, s, "torch.float32") for n, s in shapes], settings)
        exchange = Exchange(layout, settings, transport, 0)
        exchange.agree()
        hashes, records, means = [], [], []
        try:
            for step in range(steps):
                for layer, g in enumerate(wanted(transport.rank, step)):
                    exchange.put(layer, g)
                means = [exchange.mean(i).copy() for i in range(len(shapes))]
                records.append(exchange.finish()[0])
                state = json.dumps(exchange.state_dict(), sort_keys=True) + "".join(
                    hashlib.sha256(m.tobytes()).hexdigest() for m in means
                )
                hashes.append(hashlib.sha256(state.encode()).hexdigest())
        finally:
            exchange.close()
        return hashes, records, exchange, means

    return in_threads(local_transports(size), rank)


@pytest.mark.parametrize("topology", ["allgather", "scatter_reduce"])
@pytest.mark.parametrize(
    "wanted",
    [
        {"quantizer": "adaptive"},
        {"quantizer": "adaptive", "norm": "l2", "bucket_size": 0, "level_solver": "amq"},
        {"quantizer": "adaptive", "allocation": "lgreco"},
        {"quantizer": "maxmin", "allocation": "lgreco"},
        {"allocation": "lgreco", "allocation_error": "relative"},
        {"coding": "alternating"},
        {"quantizer": "adaptive", "coding": "alternating", "types": "global"},
        {"rules": {"type:embedding": {"quantizer": "adaptive"}, "conv*": {"quantizer": "uniform"}}},
    ],
    ids=lambda w: " ".join(f"{k}={v}" for k, v in w.items() if k != "rules") or "rules",
)
def test_state_and_means_are_the_same_on_all_ranks(wanted, topology):
    results = run(3, Settings(bits=3, topology=topology, fusion_mb=0.25, **wanted), steps=22)
    for step in range(22):
        assert len({r[0][step] for r in results}) == 1, f"ranks differ after exchange {step}"
    want = [np.mean([gradients_of(r, 21)[i].numpy() for r in range(3)], axis=0) for i in range(3)]
    error = sum(
        np.sum((got - mean.ravel()) ** 2) for got, mean in zip(results[0][3], want, strict=True)
    )
    assert error < 0.2 * sum(np.sum(mean**2) for mean in want)


def error_of(means, step, size):
    want = [
        np.mean([gradients_of(r, step)[i].numpy() for r in range(size)], axis=0).ravel()
        for i in range(len(SHAPES))
    ]
    return [float(np.sum((m - w) ** 2) / np.sum(w**2)) for m, w in zip(means, want, strict=True)]


def test_adaptive_levels_have_less_error_than_uniform_ones_of_the_same_number():
    errors = {}
    for quantizer in ("uniform", "adaptive"):
        settings = Settings(quantizer=quantizer, levels=6, topology="allgather")
        ((_, records, exchange, means),) = run(1, settings, steps=6)
        errors[quantizer] = error_of(means, 5, 1)
    for plain, fitted in zip(errors["uniform"], errors["adaptive"], strict=True):
        assert fitted < 0.9 * plain
    assert len({tuple(x) for x in exchange.adaptation.levels}) == 3, "each type has its own"
    assert exchange.layout.levels[0] == tuple(np.linspace(0, 1, 8, dtype=np.float32))


def test_predicted_tables_are_used_and_close():
    """After the first update the agreed table is the one predicted for the new levels."""
    settings = Settings(quantizer="adaptive", topology="allgather", levels=6)
    ((_, _, exchange, _),) = run(1, settings, steps=1)
    book = exchange.adaptation.books[0]
    predicted = book.tables / 4096
    ((_, _, later, _),) = run(1, settings, steps=3)
    layout = later.layout
    for type in range(3):
        seen = later.adaptation.books[0].tables[type] / 4096
        # One table was made for exchange 0's gradient, the other for exchange 1's.
        assert 0.5 * np.abs(predicted[type] - seen).sum() < 0.05, layout.types[type].kind


def test_adaptive_reaches_the_nearest_rate():
    for bits in (2.0, 3.0, 4.0):
        settings = Settings(quantizer="adaptive", bits=bits, topology="allgather")
        ((_, records, exchange, _),) = run(1, settings, steps=22)
        # The sparse embedding cannot use 3 bits; the other two take a whole number of levels.
        dense = [exchange.layout.slots[t] for t in exchange.layout.slots][1:]
        counts = [len(exchange.adaptation.levels[slot]) - 2 for slot in dense]
        assert all(2 ** (bits - 1) - 3 <= s <= 2 ** (bits + 1) for s in counts), counts
        assert records[-1].coded_bits < bits + 0.3


@pytest.mark.parametrize("coding", ["main", "alternating"])
def test_both_codings_reach_the_bits_asked_for(coding):
    settings = Settings(bits=3, coding=coding, topology="allgather", rules={"fc*": {"bits": 4}})
    ((_, records, exchange, _),) = run(1, settings, steps=60)
    numel = [int(np.prod(shape)) for _, shape in SHAPES]
    wanted = (3 * numel[0] + 4 * numel[1] + 3 * numel[2]) / sum(numel)
    assert np.mean([r.coded_bits for r in records[50:]]) == pytest.approx(wanted, rel=0.02)
    assert len(
        {int(t) for b in exchange.routes.buffers for c in b.chunks for t in c.segments["type"]}
    ) == (1 if coding == "alternating" else 3)


def lgreco(error, **more):
    """Coded bits and total squared error with and without L-GreCo, after its first choice."""
    out = []
    for allocation in ("none", "lgreco"):
        settings = Settings(
            bits=3, allocation=allocation, allocation_error=error, topology="allgather", **more
        )
        ((_, records, exchange, means),) = run(1, settings, steps=60)
        want = [g.numpy().ravel() for g in gradients_of(0, 59)]
        squares = sum(float(np.sum((m - w) ** 2)) for m, w in zip(means, want, strict=True))
        out.append((np.mean([r.coded_bits for r in records[-5:]]), squares, exchange, means))
    return out


@pytest.mark.parametrize("quantizer", ["auto", "uniform", "adaptive", "maxmin"])
def test_lgreco_is_smaller_at_no_more_error(quantizer):
    (bits, squares, _, _), (less_bits, now, exchange, _) = lgreco("squared", quantizer=quantizer)
    assert less_bits < 0.95 * bits, (bits, less_bits)
    assert now < 1.25 * squares, (squares, now)
    chosen = exchange.adaptation.bits
    assert chosen[0] > chosen[2], "the layer of the largest gradients gets the most bits"


def test_relative_errors_leave_small_layers_their_bits():
    (_, _, _, plain), (_, _, exchange, means) = lgreco("relative")
    for before, after in zip(error_of(plain, 59, 1), error_of(means, 59, 1), strict=True):
        assert after < 4 * before
    (_, _, _, _), (_, _, _, squared) = lgreco("squared")
    assert error_of(squared, 59, 1)[2] > 2 * error_of(means, 59, 1)[2]


def test_sensitivity_moves_bits():
    plain = lgreco("relative")[1][2].adaptation.bits
    rules = {"conv*": {"sensitivity": 100.0}}
    moved = lgreco("relative", rules=rules)[1][2].adaptation.bits
    assert moved[2] > plain[2] and moved[1] <= plain[1]


def test_resume_between_two_allocations_is_bit_for_bit():
    settings = Settings(allocation="lgreco", topology="allgather", quantizer="adaptive")

    def rank(transport):
        layout = build([(n, s, "torch.float32") for n, s in SHAPES], settings)
        first, second = (Exchange(layout, settings, transport, 0) for _ in range(2))
        first.agree()
        out = []

        def step(exchange, n):
            for layer, g in enumerate(gradients_of(transport.rank, n)):
                exchange.put(layer, g)
            out.append(np.concatenate([exchange.mean(i) for i in range(len(SHAPES))]))
            exchange.finish()

        for n in range(14):
            step(first, n)
        second.load_state_dict(first.state_dict())
        second.load_local_state_dict(first.local_state_dict())
        second.agree()
        for exchange in (first, second):
            for n in range(14, 24):
                step(exchange, n)
            exchange.close()
        return np.array(out[14:24]), np.array(out[24:])

    for a, b in in_threads(local_transports(2), rank):
        assert a.tobytes() == b.tobytes()


def test_sums_over_ranks_do_not_depend_on_their_order():
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    amounts = rng.random((5, 3, 100)) * 10.0 ** rng.integers(-30, 30, (5, 3, 1))
    amounts[2, 1] = 0
    amounts[:, 2] *= (
        1e-25  # where a rank saw nothing, small amounts of the others count all the same
    )
    amounts[3, 2] = 0
    counts = rng.integers(0, 2**40, (5, 7))

    def total(order):
        def rank(transport):
            i = order[transport.rank]
            return sum_over_ranks(transport, "t", {"n": counts[i]}, {"a": amounts[i]})

        results = in_threads(local_transports(5), rank)
        assert all(r[1]["a"].tobytes() == results[0][1]["a"].tobytes() for r in results)
        return results[0]

    (n, a), (m, b) = total([0, 1, 2, 3, 4]), total([3, 1, 4, 0, 2])
    assert a["a"].tobytes() == b["a"].tobytes()
    assert n["n"].tolist() == m["n"].tolist() == counts.sum(axis=0).tolist()
    for row, true in zip(a["a"], amounts.sum(axis=0), strict=True):
        assert np.allclose(row, true, rtol=0, atol=1e-9 * true.max())


def test_allocations_are_updates():
    assert set(EARLY_ALLOCATIONS) <= set(EARLY_UPDATES)
    assert all(is_update(n) for n in range(5000) if is_allocation(n))
    assert is_allocation(1999) and not is_allocation(1000)


@pytest.mark.parametrize("columns", [784, 896, 768, 1000, 1024, 300])
def test_a_sample_sees_every_column_of_a_matrix(columns):
    """A distance that divides the rows' length would look at one pixel of every image."""
    rows = 400_000 // columns
    seen = sample(np.tile(np.arange(columns, dtype=np.float32), rows))
    assert len(np.unique(seen)) == columns

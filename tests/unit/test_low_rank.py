"""PowerSGD between threads: exact where it can be, nothing lost where it cannot."""

import random

import numpy as np
import pytest
import torch

from horovod_qoda.exchange import Exchange
from horovod_qoda.exchange.low_rank import LowRank, matrix, product
from horovod_qoda.exchange.low_rank_options import candidates, choose, tails
from horovod_qoda.layout import build
from horovod_qoda.settings import Settings
from horovod_qoda.transport import local_transports
from tests.threads import in_threads

SHAPES = [(60, 40), (30, 4, 5, 2), (20, 180)]


def settings_of(ranks):
    return Settings(min_numel=1, rules={f"w{i}": {"low_rank": r} for i, r in enumerate(ranks)})


def layout_of(settings):
    return build([(f"w{i}", s, "torch.float32") for i, s in enumerate(SHAPES)], settings)


(PLAN,) = layout_of(settings_of((4, 4, 4))).buffers
MATRICES = [matrix(i, f"w{i}", s) for i, s in enumerate(SHAPES)]


class Node:
    """One rank of an exchange in which every layer is approximated."""

    def __init__(self, transport, ranks=(4, 4, 4), wants_sums=False):
        settings = settings_of(ranks)
        self.transport = transport
        self.inner = Exchange(layout_of(settings), settings, transport, 0, wants_sums)
        self.inner.agree()
        (self.state,) = self.inner.routes.power_sgd.parts.values()

    def exchange(self, gradients):
        """Means of flat float32 gradients, one a layer."""
        for layer, gradient in enumerate(gradients):
            self.inner.put(layer, torch.from_numpy(gradient).view(SHAPES[layer]))
        means = [self.inner.mean(i).copy() for i in range(len(SHAPES))]
        self.record, self.sums = self.inner.finish()
        return means

    def residuals(self):
        starts = dict(zip(PLAN.layers, PLAN.offsets, strict=True))
        sizes = [int(np.prod(s)) for s in SHAPES]
        return [self.state.residual[starts[i] : starts[i] + n].copy() for i, n in enumerate(sizes)]


def of_rank(rng, rank):
    """A gradient of every layer, of this rank as a matrix."""
    out = []
    for shape in SHAPES:
        rows, columns = shape[0], int(np.prod(shape[1:]))
        left, right = rng.standard_normal((rows, rank)), rng.standard_normal((rank, columns))
        out.append((left @ right).astype(np.float32).ravel())
    return out


def run(size, body, **options):
    def rank(transport):
        node = Node(transport, **options)
        try:
            return body(node, transport.rank)
        finally:
            node.inner.close()

    return in_threads(local_transports(size), rank)


def new_seed():
    seed = random.randrange(2**32)
    print("seed", seed)
    return seed


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_mean_of_no_higher_rank_is_exact(size):
    seed = new_seed()
    shared = of_rank(np.random.default_rng(seed), 4)

    def gradients(rank):
        # All ranks' matrices share row and column spaces, so their mean has rank 4 too.
        return [np.float32(1 + rank) * g for g in shared]

    def body(node, rank):
        # A first, random basis may be ill-conditioned enough for float32 to show it.
        for _ in range(3):
            means = node.exchange(gradients(rank))
        return means, node.residuals()

    for means, residuals in run(size, body):
        for layer, mean in enumerate(means):
            want = np.mean([gradients(r)[layer] for r in range(size)], axis=0)
            scale = np.abs(want).max()
            np.testing.assert_allclose(mean, want, atol=1e-5 * scale)
            assert np.abs(residuals[layer]).max() < 1e-5 * scale * size


@pytest.mark.parametrize("size", [1, 2, 4])
def test_nothing_is_lost(size):
    """What was applied, and the mean of the residuals, add up to the mean of the gradients."""
    seed, steps = new_seed(), 7

    def gradients(rank, step):
        return of_rank(np.random.default_rng([seed, rank, step]), 20)

    def body(node, rank):
        applied = [np.zeros(int(np.prod(s))) for s in SHAPES]
        for step in range(steps):
            for total, mean in zip(applied, node.exchange(gradients(rank, step)), strict=True):
                total += mean
        return applied, node.residuals()

    results = run(size, body)
    for layer in range(len(SHAPES)):
        want = sum(
            gradients(r, s)[layer].astype(np.float64) for r in range(size) for s in range(steps)
        )
        applied = results[0][0][layer] * size
        left = sum(r[1][layer].astype(np.float64) for r in results)
        assert np.abs(left).max() > 0.05 * np.abs(want).max(), "nothing was held back: no test"
        np.testing.assert_allclose(applied + left, want, atol=2e-4 * np.abs(want).max())


def test_means_are_the_same_bits_on_all_ranks_and_every_rank_sends_as_much_as_counted():
    seed, size = new_seed(), 3

    def body(node, rank):
        out = []
        for step in range(5):
            out += node.exchange(of_rank(np.random.default_rng([seed, rank, step]), 9))
        return out, node.record.payload_bytes, {k: q.copy() for k, q in node.state.warm.items()}

    first, *others = run(size, body, ranks=(1, 5, 7))
    sent = 4 * sum(r * (s[0] + np.prod(s[1:])) for r, s in zip((1, 5, 7), SHAPES, strict=True))
    # Rank 0 also sends the bases that all ranks use.
    sides = [min(s[0], np.prod(s[1:])) for s in SHAPES]
    assert first[1] == sent + 4 * sum(r * n for r, n in zip((1, 5, 7), sides, strict=True))
    for other in others:
        assert other[1] == sent
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first[0], other[0], strict=True))
        assert all(first[2][k].tobytes() == other[2][k].tobytes() for k in first[2])


def test_warm_start_converges_to_the_best_approximation():
    """Exchanging one matrix over and over, without feedback, is subspace iteration: its error
    falls to that of the truncated singular value decomposition."""
    rng = np.random.default_rng(new_seed())
    gradients = []
    for shape in SHAPES:
        u, _ = np.linalg.qr(rng.standard_normal((shape[0], shape[0])))
        v, _ = np.linalg.qr(rng.standard_normal((int(np.prod(shape[1:])), shape[0])))
        sigma = 0.5 ** np.arange(min(shape[0], v.shape[1]))
        gradients.append(((u[:, : len(sigma)] * sigma) @ v.T[: len(sigma)]).astype(np.float32))

    def body(node, rank):
        errors = []
        for _ in range(8):
            means = node.exchange([g.ravel() for g in gradients])
            node.state.residual[:] = 0
            errors.append(
                [np.linalg.norm(m - g.ravel()) for m, g in zip(means, gradients, strict=True)]
            )
        return np.array(errors)

    (errors,) = run(1, body, ranks=(3, 3, 3))
    best = np.array([np.linalg.norm(0.5 ** np.arange(3, min(60, s[0], 40))) for s in SHAPES])
    assert (errors[-1] < 1.001 * best).all(), (errors[-1], best)
    assert (errors[0] > 1.01 * best).any(), "the first exchange was perfect: no test"


def test_zeros_stay_zero_and_do_not_stop_what_follows():
    seed = new_seed()
    zeros = [np.zeros(int(np.prod(s)), np.float32) for s in SHAPES]
    wanted = of_rank(np.random.default_rng(seed), 2)

    def body(node, rank):
        return node.exchange(zeros), node.exchange(zeros), node.exchange(wanted)

    for first, second, third in run(2, body):
        assert not any(m.any() for m in first + second)
        for mean, want in zip(third, wanted, strict=True):
            np.testing.assert_allclose(mean, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("wants_sums", [False, True])
def test_one_bad_step_costs_one_step_and_one_layer(wants_sums):
    seed = new_seed()

    def gradients(rank, step):
        return of_rank(np.random.default_rng([seed, rank, step]), 12)

    def body(node, rank):
        node.exchange(gradients(rank, 0))
        before = node.residuals()
        bad = gradients(rank, 1)
        if rank == 1:
            bad[1][17] = np.nan
        spoiled, after = node.exchange(bad), node.residuals()
        return spoiled, before, after, node.exchange(gradients(rank, 2))

    for spoiled, before, after, good in run(3, body, wants_sums=wants_sums):
        assert [bool(np.isfinite(m).all()) for m in spoiled] == [True, False, True]
        assert np.isnan(spoiled[1]).all()
        assert before[1].tobytes() == after[1].tobytes()
        assert before[0].tobytes() != after[0].tobytes()
        assert all(np.isfinite(m).all() for m in good)


def test_sums_over_nodes_are_those_of_what_each_contributed():
    seed, size = new_seed(), 3

    def gradients(rank, step):
        return of_rank(np.random.default_rng([seed, rank, step]), 10)

    def body(node, rank):
        sent, sums = [], []
        for step in range(3):
            before = np.concatenate(node.residuals()).astype(np.float64)
            node.exchange(gradients(rank, step))
            after = np.concatenate(node.residuals())
            sent.append(np.concatenate(gradients(rank, step)) + before - after)
            sums.append((node.sums.sum_sq, node.sums.sum_sq_diff))
        return sent, sums

    results = run(size, body, wants_sums=True)
    for step in range(3):
        assert len({r[1][step] for r in results}) == 1
        square = sum(np.sum(r[0][step] ** 2) for r in results) / size**2
        change = (
            sum(np.sum((r[0][step] - (r[0][step - 1] if step else 0)) ** 2) for r in results)
            / size**2
        )
        np.testing.assert_allclose(results[0][1][step], (square, change), rtol=1e-4)


def test_a_run_that_resumes_goes_on_with_the_same_bits():
    seed = new_seed()

    def gradients(rank, step):
        return of_rank(np.random.default_rng([seed, rank, step]), 15)

    def body(node, rank):
        for step in range(3):
            node.exchange(gradients(rank, step))
        saved, local = node.inner.state_dict(), node.inner.local_state_dict()
        straight = [node.exchange(gradients(rank, step)) for step in (3, 4)]
        other = Node(node.transport)
        other.inner.load_state_dict(saved)
        other.inner.load_local_state_dict(local)
        other.inner.agree()
        resumed = [other.exchange(gradients(rank, step)) for step in (3, 4)]
        other.inner.close()
        without = Node(node.transport)
        without.inner.load_state_dict(saved)
        anew = without.exchange(gradients(rank, 3))
        without.inner.close()
        return straight, resumed, anew

    for straight, resumed, anew in run(2, body):
        for a, b in zip(straight, resumed, strict=True):
            assert all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))
        assert straight[0][0].tobytes() != anew[0].tobytes(), "the state made no difference"


def test_ranks_change_without_losing_what_was_learned():
    state, again = (LowRank(PLAN, MATRICES, {0: 4, 1: 4, 2: 4}, seed=0) for _ in range(2))
    first = state.start(MATRICES[0])
    assert first.tobytes() == again.start(MATRICES[0]).tobytes() and first.shape == (60, 4)
    other = LowRank(PLAN, MATRICES, {0: 4, 1: 4, 2: 4}, seed=1).start(MATRICES[0])
    assert first.tobytes() != other.tobytes()
    learned = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    state.renew(MATRICES[0], learned.copy(), 0)
    state.set_ranks({0: 6, 1: 2, 2: 4})
    assert (state.start(MATRICES[0])[:, :4] == learned).all()
    assert np.linalg.matrix_rank(state.start(MATRICES[0])) == 6
    assert state.start(MATRICES[1]).shape == (40, 2)
    again.load(state.state())
    # What was saved, at the ranks in force here.
    assert again.ranks == {0: 4, 1: 4, 2: 4} and (again.start(MATRICES[0]) == learned).all()
    with pytest.raises(ValueError, match="'w0': Q was saved as \\(59, 4\\)"):
        again.load({**state.state(), "warm.0": learned[:59]})
    with pytest.raises(ValueError, match="the residual has 5 coordinates"):
        again.load({**state.state(), "residual": np.zeros(5, np.float32)})
    state.residual += 1
    state.forget()
    assert not state.residual.any() and (state.start(MATRICES[0])[:, :4] == first).all()


@pytest.mark.parametrize("rank", [0, 21, 181])
def test_an_impossible_rank_names_the_layer(rank):
    with pytest.raises(ValueError, match="'w2' is a 20 x 180 matrix.*from 1 to 20"):
        LowRank(PLAN, MATRICES, {0: 4, 1: 4, 2: rank}, seed=0)


def test_candidates_reach_from_a_quarter_to_four_times_and_always_compress():
    m = matrix(0, "w", (512, 512))
    assert candidates(m, 16) == (4, 6, 8, 11, 16, 23, 32, 45, 64)
    assert candidates(m, 1) == (1, 2, 3, 4)
    # 128 x 64 halves at rank 21: 32 does not, and the layer's own stays whatever it is.
    assert candidates(matrix(0, "w", (128, 64)), 16) == (4, 6, 8, 11, 16)
    assert max(candidates(matrix(0, "w", (128, 64)), 30)) == 30


def test_tails_are_those_of_the_singular_values():
    rng = np.random.default_rng(new_seed())
    for shape in [(20, 33), (33, 20), (12, 12)]:
        g = rng.standard_normal(shape).astype(np.float32)
        sigma = np.linalg.svd(g.astype(np.float64), compute_uv=False)
        want = [np.sum(sigma[r:] ** 2) for r in (1, 5, 12)]
        np.testing.assert_allclose(tails(g, (1, 5, 12)), want, rtol=1e-9, atol=1e-9)
    assert not tails(np.full((3, 4), np.nan), (1, 2)).any()


def test_chosen_ranks_send_less_at_no_more_error():
    rng = np.random.default_rng(new_seed())
    matrices = [matrix(i, f"w{i}", (128, 128)) for i in range(4)]
    gradients = []
    for decay in (0.5, 0.9, 0.97, 1.0):
        u, _ = np.linalg.qr(rng.standard_normal((128, 128)))
        v, _ = np.linalg.qr(rng.standard_normal((128, 128)))
        gradients.append((u * decay ** np.arange(128)) @ v.T)
    own = [8] * 4
    offered = candidates(matrices[0], 8)
    errors = [tails(g, offered) for g in gradients]
    chosen = choose(
        matrices, own, errors, [float(np.sum(g**2)) for g in gradients],
        kind="squared", weights=[1.0] * 4, alpha=1.0,
    )  # fmt: skip
    error = sum(errors[i][offered.index(chosen[i])] for i in range(4))
    budget = sum(e[offered.index(8)] for e in errors)
    assert error <= budget and sum(chosen.values()) < 32
    assert chosen[0] < 8 < max(chosen.values()), chosen


# Through the exchange, as a setting.

MODEL = [
    ("embedding.weight", (600, 64)),
    ("attention.weight", (96, 64)),
    ("thin.weight", (3, 700)),
    ("bias", (2000,)),
    ("norm", (64,)),
]


def gradients_of(rank, step):
    """Noise; the embedding's columns fall, so that a few directions say most of it."""
    rng = np.random.default_rng([rank, step])
    out = [rng.standard_normal(s, np.float32) for _, s in MODEL]
    out[0] *= np.float32(0.7) ** np.arange(64, dtype=np.float32)
    return [torch.from_numpy(g) for g in out]


def exchange_all(exchange, gradients):
    for layer, gradient in enumerate(gradients):
        exchange.put(layer, gradient)
    means = [exchange.mean(i).copy() for i in range(len(gradients))]
    return means, *exchange.finish()


def new_exchange(settings, transport):
    layout = build([(n, s, "torch.float32") for n, s in MODEL], settings)
    exchange = Exchange(layout, settings, transport, 0)
    exchange.agree()
    return exchange


def with_exchanges(size, settings, body):
    def rank(transport):
        exchange = new_exchange(settings, transport)
        try:
            return body(exchange, transport)
        finally:
            exchange.close()

    return in_threads(local_transports(size), rank)


def kinds_of(settings):
    layout = build([(n, s, "torch.float32") for n, s in MODEL], settings)
    of = {x.name: layout.types[x.type] for x in layout.layers}
    why = {x.name: x.why_raw for x in layout.layers}
    return {n: t.low_rank or t.quantizer for n, t in of.items()}, why


def test_which_layers_are_approximated():
    kinds, why = kinds_of(Settings(quantizer="powersgd", low_rank=2))
    assert kinds == {
        "embedding.weight": 2, "attention.weight": 2, "thin.weight": "raw", "bias": "raw",
        "norm": "raw",
    }  # fmt: skip
    assert why["thin.weight"] == "rank 2 would not halve them" and why["bias"] == "one-dimensional"
    mixed = Settings(rules={"attention*": {"low_rank": 3}, "thin*": "raw"})
    assert kinds_of(mixed)[0]["attention.weight"] == 3
    assert kinds_of(mixed)[0]["embedding.weight"] == "auto"
    back = Settings(quantizer="powersgd", rules={"embed*": 4, "type:attention": {"low_rank": 1}})
    assert kinds_of(back)[0]["embedding.weight"] == "auto"
    assert kinds_of(back)[0]["attention.weight"] == 1


def test_rules_that_cannot_be_followed_are_refused():
    with pytest.raises(ValueError, match="PowerSGD of layer 'bias', which has 1 dimension "):
        kinds_of(Settings(rules={"*": {"low_rank": 4}}))
    kinds_of(Settings(rules={"*": {"low_rank": 4}, "bias": "raw", "norm": "raw"}))
    with pytest.raises(ValueError, match="low_rank must be between 1 and"):
        Settings(rules={"a": {"low_rank": 0}})
    with pytest.raises(ValueError, match="low_rank is for quantizer powersgd, not uniform"):
        Settings(rules={"a": {"low_rank": 2, "quantizer": "uniform"}})


@pytest.mark.parametrize("topology", ["allgather", "scatter_reduce"])
def test_beside_quantised_and_raw_layers(topology):
    rules = {"embedding*": {"low_rank": 64}, "attention*": {"low_rank": 5}}
    # Rank 64 of 600 x 64 would not halve it, so it travels raw; attention at rank 5 does.
    settings = Settings(bits=6, topology=topology, rules=rules, warmup_steps=1)
    size, steps = 3, 4

    def body(exchange, transport):
        return [
            exchange_all(exchange, gradients_of(transport.rank, step))[0] for step in range(steps)
        ]

    results = with_exchanges(size, settings, body)
    for step in range(steps):
        want = [
            np.mean([gradients_of(r, step)[i].numpy() for r in range(size)], axis=0).ravel()
            for i in range(len(MODEL))
        ]
        for layer in range(len(MODEL)):
            got = [r[step][layer] for r in results]
            assert all(g.tobytes() == got[0].tobytes() for g in got)
            error = np.sum((got[0] - want[layer]) ** 2) / np.sum(want[layer] ** 2)
            if layer == 1 and step:
                assert 0.2 < error < 2.0
            else:
                assert error < (1e-12 if layer != 2 or not step else 0.01), (layer, step, error)


@pytest.mark.parametrize("allocation", ["none", "lgreco"])
def test_an_exchange_that_resumes_goes_on_with_the_same_bits(allocation):
    settings = Settings(quantizer="powersgd", low_rank=4, allocation=allocation)
    size, saved_at, steps = 2, 24, 30

    def body(exchange, transport):
        for step in range(saved_at):
            _, record, _ = exchange_all(exchange, gradients_of(transport.rank, step))
        saved, local = exchange.state_dict(), exchange.local_state_dict()
        rest = range(saved_at, steps)
        straight = [exchange_all(exchange, gradients_of(transport.rank, s))[0] for s in rest]
        other = new_exchange(settings, transport)
        other.load_state_dict(saved)
        other.load_local_state_dict(local)
        other.agree()
        resumed = [exchange_all(other, gradients_of(transport.rank, s))[0] for s in rest]
        other.close()
        return straight, resumed, exchange.routes.power_sgd.ranks, record

    (straight, resumed, ranks, record), second = with_exchanges(size, settings, body)
    assert ranks == second[2]
    for results in ((straight, resumed), second[:2]):
        for a, b in zip(*results, strict=True):
            assert all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))
    # Of rank 0, which also sends the bases.
    numbers = sum(r * (sum(MODEL[i][1]) + min(MODEL[i][1])) for i, r in ranks.items())
    raw = sum(int(np.prod(s)) for n, s in MODEL[2:])
    # One-dimensional and thin layers travel in a payload of their own, with a header.
    assert 0 <= record.payload_bytes - 4 * (numbers + raw) < 2048
    # Of one layer a few directions say most, the other has no structure: ranks must differ.
    assert (ranks == {0: 4, 1: 4}) == (allocation == "none"), ranks


def test_other_ranks_during_training_keep_the_residual():
    """As set_compression() does it: a new exchange takes the old one's state."""
    size = 2

    def body(exchange, transport):
        for step in range(3):
            exchange_all(exchange, gradients_of(transport.rank, step))
        other = new_exchange(Settings(quantizer="powersgd", low_rank=6), transport)
        other.load_state_dict(exchange.state_dict())
        other.load_local_state_dict(exchange.local_state_dict())
        other.agree()
        (before,), (after,) = (
            exchange.routes.power_sgd.parts.values(),
            other.routes.power_sgd.parts.values(),
        )
        same = (before.residual == after.residual).all() and before.residual.any()
        _, record, _ = exchange_all(other, gradients_of(transport.rank, 3))
        other.close()
        return same, other.routes.power_sgd.ranks, record.payload_bytes

    for same, ranks, sent in with_exchanges(size, Settings(quantizer="powersgd"), body):
        assert same and ranks == {0: 6, 1: 6}
        assert sent > 4 * 6 * (600 + 64 + 96 + 64)


def test_warm_starts_that_differ_between_ranks_still_give_one_mean():
    settings = Settings(quantizer="powersgd")

    def body(exchange, transport):
        for step in range(3):
            exchange_all(exchange, gradients_of(transport.rank, step))
        if transport.rank == 1:
            exchange.routes.power_sgd.forget()
        return exchange_all(exchange, gradients_of(transport.rank, 3))[0]

    first, second = with_exchanges(2, settings, body)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


def test_products_are_the_same_bits_whatever_blas_does():
    """The mean is summed column by column in float32, as IEEE 754 fixes it."""
    rng = np.random.default_rng(new_seed())
    basis = rng.standard_normal((37, 5)).astype(np.float32)
    q = rng.standard_normal((53, 5)).astype(np.float32)
    out = np.empty((37, 53), np.float32)
    product(basis, q, out)
    for i, j in ((0, 0), (36, 52), (11, 30)):
        total = basis[i, 0] * q[j, 0]
        for k in range(1, 5):
            total = np.float32(total + np.float32(basis[i, k] * q[j, k]))
        assert out[i, j] == total
    assert np.allclose(out, basis @ q.T, rtol=1e-5, atol=1e-5)

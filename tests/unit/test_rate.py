"""The law by which steps follow the bits that payloads take."""

import math
import random

import numpy as np
import pytest

from horovod_qoda.exchange import Exchange, rate
from horovod_qoda.layout import build
from horovod_qoda.settings import Settings
from horovod_qoda.transport import local_transports
from tests.threads import in_threads


def follow(natural, slope, believed, wanted=3.0):
    """Rates and log2 factors of a model with these rates at factor 1, one an exchange."""
    factor, rates, logs = 1.0, [], []
    for age, bits in enumerate(natural):
        rates.append(bits - slope * math.log2(factor))
        logs.append(math.log2(factor))
        factor *= rate.correction(rates[-1] - wanted, believed, age)
    return np.array(rates), np.array([*logs, math.log2(factor)])


def test_the_mean_error_is_what_the_factor_moved_over_the_exchanges():
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    n = np.arange(1000)
    for slope, believed in ((1.0, 1.0), (0.3, 0.3), (1.0, 0.6), (0.5, 1.0)):
        natural = 3.4 - 1.2 * n / 1000 + 0.2 * np.sin(n / 40) + 0.06 * rng.standard_normal(1000)
        rates, logs = follow(natural, slope, believed)
        predicted = rate.HORIZON * believed * (logs[-1] - logs[200]) / 800
        assert rates[200:].mean() - 3 == pytest.approx(predicted, abs=1e-3)
        assert abs(rates[200:].mean() - 3) < 0.02 * 3
        # What single exchanges scatter by is not amplified.
        assert np.std(rates[200:] - natural[200:]) < 1.3 * np.std(natural[200:])


def test_the_first_error_is_corrected_at_once():
    rates, _ = follow(np.full(3, 3.5), slope=1.0, believed=1.0)
    assert rates[1] == pytest.approx(3.0, abs=0.01)


def test_one_odd_exchange_moves_nothing_far():
    for odd in (0.0, 32.0):
        natural = np.full(600, 3.0)
        natural[300] = odd
        rates, _ = follow(natural, 1.0, 1.0)
        assert abs(rates[301:] - 3).max() <= 1.01 * rate.MAX_CHANGE / rate.HORIZON
        assert abs(rates[420:] - 3).max() < 1e-3


def test_what_groups_have_in_common_is_left_to_the_payloads():
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for _ in range(100):
        changes, weights = rng.standard_normal(4), rng.random(4) + 0.1
        found = rate.apart(changes, weights)
        assert found @ weights == pytest.approx(0, abs=1e-12)
        assert np.diff(found) == pytest.approx(np.diff(changes), abs=1e-12)
    assert rate.apart(np.array([0.7]), np.ones(1)).tolist() == [0.0]
    assert rate.apart(np.array([0.5, np.nan, -0.5]), np.ones(3)).tolist() == [0.5, 0.0, -0.5]


def test_mean_rate_is_of_stages_that_coded():
    told = np.array([[300, 100, 50, 0], [500, 100, 100, 0]])
    assert rate.mean_rate(told) == 4.0
    assert rate.rates_to_steer_by(told) == [6.0, 5.0]
    told[1] = 0
    assert rate.mean_rate(told) == 3.0
    assert rate.rates_to_steer_by(told) == [6.0]
    told[0] = [100, 1000, 0, 100]
    assert rate.mean_rate(told) == 0.1
    assert rate.rates_to_steer_by(told) == []
    assert math.isnan(rate.mean_rate(0 * told))


def test_headers_of_a_tiny_model_are_allowed_on_top():
    headers, entropy = rate.header_bits(1, 1024), 3 * 1024
    assert headers == 8 * 196
    (left,) = rate.rates_to_steer_by(np.array([[entropy + headers, 1024, 1024, headers]]))
    assert left == pytest.approx(1.1 * 3, rel=0.06)
    large = [3 * 2**20, 2**20, 2**20, headers]
    assert rate.rates_to_steer_by(np.array([large])) == [3.0]


SHAPES = [("a", (96, 512)), ("b", (64, 512)), ("frozen", (64, 64)), ("bias", (100,))]


def drifting(rank, number, until):
    """Gradients whose tails grow, one that is always zero, and a raw one that is once NaN."""
    rng = np.random.default_rng([rank, number])
    spread = 0.5 * number / until
    grads = [
        np.exp(spread * rng.standard_normal(shape)) * rng.standard_normal(shape)
        for _, shape in SHAPES
    ]
    grads[2] *= 0
    if number == 7:
        grads[3][0] = np.nan
    return [g.astype(np.float32) for g in grads]


@pytest.mark.parametrize("topology", ["allgather", "scatter_reduce"])
def test_every_rank_hears_what_all_payloads_took(topology):
    import torch

    settings = Settings(bits=3, topology=topology, rules={"b": {"bits": 4}}, fusion_mb=0.25)

    def rank(transport):
        layout = build([(n, s, "torch.float32") for n, s in SHAPES], settings)
        exchange = Exchange(layout, settings, transport, 0)
        told, records = [], []
        steer = exchange.adaptation.factors.follow

        def follow(bits, age):
            told.append(bits.copy())
            steer(bits, age)

        exchange.adaptation.factors.follow = follow
        exchange.agree()
        try:
            for number in range(120):
                grads = drifting(transport.rank, number, 120)
                for layer, g in enumerate(grads):
                    exchange.put(layer, torch.from_numpy(g))
                for layer in range(len(SHAPES)):
                    exchange.mean(layer)
                records.append(exchange.finish()[0])
        finally:
            exchange.close()
        return told, records

    results = in_threads(local_transports(3), rank)
    stages = 2 if topology == "scatter_reduce" else 1
    for number in range(120):
        told = results[0][0][number]
        assert all((r[0][number] == told).all() for r in results)
        # What all ranks sent, but for the raw layer, which is a flag where it has a NaN.
        raw = 0 if number == 7 else rate.raw_bits(100) * (3 if stages == 1 else 4)
        sent = 8 * sum(r[1][number].payload_bytes for r in results)
        assert told[:, rate.BITS].sum() == sent - raw
        for stage, payloads in zip(range(stages), (3, 1), strict=False):
            # The layer of zeros takes nothing.
            assert told[stage, rate.LIVE] == (96 + 64) * 512 * payloads
            assert told[stage, rate.COORDINATES] == ((96 + 64) * 512 + 64 * 64) * payloads
    wanted = (3 * 96 + 4 * 64) / (96 + 64)
    mean = np.mean([rate.rates_to_steer_by(x) for x in results[0][0][50:]])
    assert mean == pytest.approx(wanted, rel=0.02)


def factors_of(shapes, settings, gradients, exchanges):
    """Factors, wanted bits and coded bits after every exchange of two ranks."""
    import torch

    def rank(transport):
        layout = build([(n, s, "torch.float32") for n, s in shapes], settings)
        exchange, out = Exchange(layout, settings, transport, 0), []
        exchange.agree()
        try:
            for number in range(exchanges):
                rng = np.random.default_rng([transport.rank, number])
                for layer, g in enumerate(gradients(rng, number)):
                    exchange.put(layer, torch.from_numpy(g.astype(np.float32)))
                for layer in range(len(shapes)):
                    exchange.mean(layer)
                bits = exchange.finish()[0].coded_bits
                factors = exchange.adaptation.factors
                out.append((factors.values.copy(), factors.wanted, bits))
        finally:
            exchange.close()
        return out

    return in_threads(local_transports(2), rank)[0]


@pytest.mark.parametrize(
    "quantizer",
    [{"quantizer": "maxmin", "bucket_size": 16}, {"quantizer": "uniform", "bits": 4.0}],
    ids=["norms", "zeros"],
)
def test_layers_with_levels_do_not_drive_the_others_steps_away(quantizer):
    zero = quantizer["quantizer"] == "uniform"
    settings = Settings(topology="allgather", rules={"emb": quantizer})
    shapes = [("emb", (256, 512)), ("w", (64, 512))]

    def gradients(rng, number):
        return [(not zero) * rng.standard_normal(shapes[0][1]), rng.standard_normal(shapes[1][1])]

    out = factors_of(shapes, settings, gradients, 60)
    plain = Settings(topology="allgather")
    alone = factors_of(shapes[1:], plain, lambda rng, n: gradients(rng, n)[1:], 60)
    assert abs(np.log2(out[-1][0] / alone[-1][0])).max() < 0.35


@pytest.mark.parametrize("bad", [np.inf, 0.0], ids=["non-finite", "zero"])
def test_one_odd_update_does_not_change_what_is_wanted(bad):
    settings = Settings(topology="allgather", rules={"head": {"bits": 8}})
    shapes = [("head", (16, 512)), ("body", (256, 512))]

    def gradients(rng, number):
        head, body = (rng.standard_normal(shape) for _, shape in shapes)
        if number == 19:
            body = np.full_like(body, bad)
        return [head, body]

    out = factors_of(shapes, settings, gradients, 45)
    assert out[19][1] == pytest.approx(out[18][1], rel=1e-3)
    mean = np.mean([bits for *_, bits in out[25:]])
    assert mean == pytest.approx((16 * 8 + 256 * settings.bits) / 272, rel=0.05)


def test_what_is_wanted_is_known_before_the_first_finite_gradient():
    settings = Settings(topology="allgather", bits=4)
    shapes = [("w", (128, 512))]

    def gradients(rng, number):
        return [np.full(shapes[0][1], np.nan) if number < 2 else rng.standard_normal((128, 512))]

    out = factors_of(shapes, settings, gradients, 5)
    assert out[0][1] == 4
    assert [bits for *_, bits in out[2:]] == pytest.approx([4] * 3, abs=0.25)


def test_raw_layers_have_no_part_in_headers():
    shapes = [("raw", (4000, 512)), ("w", (20, 512))]
    settings = Settings(topology="allgather", rules={"raw": "raw"})

    def gradients(rng, number):
        return [np.ones(shapes[0][1]), rng.standard_normal(shapes[1][1])]

    out = factors_of(shapes, settings, gradients, 40)
    plain = Settings(topology="allgather")
    alone = factors_of(shapes[1:], plain, lambda rng, n: gradients(rng, n)[1:], 40)
    assert abs(np.log2(out[-1][0] / alone[-1][0])).max() < 0.2


def test_payloads_that_are_mostly_headers_do_not_tell():
    headers = rate.header_bits(2, 40)
    assert not rate.lengths_tell(np.array([[headers + 400, 40, 40, headers], [0, 0, 0, 0]]))
    assert rate.lengths_tell(np.array([[4 * headers, 4000, 4000, headers], [0, 0, 0, 0]]))
    # A stage in which nothing was live says nothing.
    assert rate.lengths_tell(np.array([[4 * headers, 4000, 4000, headers], [headers, 40, 0, 99]]))

"""Bounds against measurements, layer by layer, on a real exchange."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from horovod_qoda.exchange import Exchange
from horovod_qoda.layout import build
from horovod_qoda.report import over_run, report, report_exchange
from horovod_qoda.settings import Settings
from horovod_qoda.transport import local_transports
from tests.threads import in_threads

SHAPES = [("embed.weight", (400, 64)), ("fc.weight", (128, 256)), ("zero", (64, 64)), ("b", (99,))]


def gradients(step):
    rng = np.random.default_rng(step)
    out = [torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for _, s in SHAPES]
    out[0] *= torch.from_numpy((rng.random((400, 1)) < 0.2).astype(np.float32))
    out[2].zero_()
    return out


def run(settings, size=1, steps=3):
    def rank(transport):
        layout = build([(n, s, "torch.float32") for n, s in SHAPES], settings)
        exchange = Exchange(layout, settings, transport, 0)
        exchange.agree()
        for step in range(steps):
            for i, g in enumerate(gradients(step)):
                exchange.put(i, g)
            for i in range(len(SHAPES)):
                exchange.mean(i)
            exchange.finish()
        found = report_exchange(exchange)
        exchange.close()
        return found

    return in_threads(local_transports(size), rank)[0]


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"quantizer": "rounded", "bits": 1},
        {"quantizer": "dithered", "bits": 2},
        {"quantizer": "adaptive"},
        {"quantizer": "uniform", "norm": "l2", "bucket_size": 256},
        {"quantizer": "exponential"},
        {"quantizer": "ternary"},
        {"quantizer": "maxmin"},
    ],
    ids=lambda w: w.get("quantizer", "auto"),
)
def test_bounds_hold_and_measurements_are_near_what_is_expected(wanted):
    found = run(Settings(**wanted))
    assert [x.name for x in found] == ["embed.weight", "fc.weight"], "zero and raw layers have none"
    for x in found:
        assert x.holds, x
        assert x.error == pytest.approx(x.variance, rel=0.1), x
        assert str(x).startswith(x.name)
    dense = found[1]  # the embedding's table is of another gradient, with other rows
    assert dense.error_bound < 100 * dense.variance, f"a bound that says nothing: {dense}"
    assert dense.entropy <= dense.bits * 1.002 and dense.bits < 1.03 * dense.entropy, dense


def test_of_what_a_rank_of_several_sent():
    for x in run(Settings(topology="scatter_reduce", quantizer="adaptive"), size=2):
        assert x.holds and math.isfinite(x.bits)


def test_a_run_is_the_average_of_its_reports_by_their_lengths():
    early, late = run(Settings(bits=2), steps=2), run(Settings(bits=4), steps=2)
    mean = over_run([early, late, late[1:]], [1, 2, 5])
    assert [x.name for x in mean] == ["embed.weight", "fc.weight"]
    for name in ("bits", "variance", "error_bound"):
        of = [[getattr(x, name) for x in lines] for lines in (early, late)]
        assert getattr(mean[0], name) == pytest.approx((of[0][0] + 2 * of[1][0]) / 3)
        assert getattr(mean[1], name) == pytest.approx((of[0][1] + 7 * of[1][1]) / 8)
    assert all(x.holds for x in mean)
    assert over_run([], []) == []
    with pytest.raises(ValueError, match="2 reports but 1 lengths"):
        over_run([early, late], [1])
    with pytest.raises(ValueError, match="length"):
        over_run([early], [0])


def test_refusals():
    stock = SimpleNamespace(_gradients=SimpleNamespace(carrier=object()))
    with pytest.raises(ValueError, match="stock Horovod"):
        report(stock)
    carrier = SimpleNamespace(exchange=SimpleNamespace(number=0))
    with pytest.raises(ValueError, match="after step"):
        report(SimpleNamespace(_gradients=SimpleNamespace(carrier=carrier)))

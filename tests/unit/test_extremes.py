"""Gradients of any magnitude, through both topologies, and their sum at the edge of float32."""

import numpy as np
import pytest
import torch

from horovod_qoda.settings import Settings
from tests.unit.test_exchange import TOPOLOGIES, exchange_all, run

SHAPES = [("w", (64, 64)), ("b", (50,))]


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("quantizer", ["auto", "dithered", "uniform"])
@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1e-37, 1e-30, 1.0, 1e30, 1e36, 1.5e37])
def test_any_magnitude(topology, quantizer, scale):
    settings = Settings(bits=6, topology=topology, quantizer=quantizer)

    def gradients(rank):
        g = torch.Generator().manual_seed(rank)
        return [torch.randn(s, generator=g, dtype=torch.float64) * scale for _, s in SHAPES]

    def body(exchange, transport):
        return exchange_all(exchange, [g.float() for g in gradients(transport.rank)])[0]

    results = run(2, settings, body, shapes=SHAPES)
    for layer in range(2):
        got = [r[layer] for r in results]
        assert got[0].tobytes() == got[1].tobytes()
        want = (gradients(0)[layer] + gradients(1)[layer]).numpy().ravel() / 2
        error = np.linalg.norm(got[0].astype(np.float64) - want)
        # Below 2^-149 nothing is left; a float32 subnormal keeps few bits of what is.
        limit = 0.1 * np.linalg.norm(want) + 3e-45 * np.sqrt(want.size)
        assert np.isfinite(got[0]).all() and error <= limit, (layer, error, limit)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("quantizer", ["auto", "uniform"])
def test_a_sum_beyond_float32_has_a_finite_mean_or_is_told_as_non_finite(topology, quantizer):
    settings = Settings(bits=6, topology=topology, quantizer=quantizer)

    def body(exchange, transport):
        return exchange_all(exchange, [torch.full(s, 2e38) for _, s in SHAPES])[0]

    results = run(3, settings, body, shapes=SHAPES)
    for layer in range(2):
        got = [r[layer] for r in results]
        assert all(g.tobytes() == got[0].tobytes() for g in got)
        np.testing.assert_allclose(got[0], 2e38, rtol=0.2)

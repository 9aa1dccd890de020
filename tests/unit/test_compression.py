"""``Compression.layerwise`` as Horovod's interface sees it: tensor -> bytes -> tensor."""

import random

import numpy as np
import pytest
import torch

from horovod_qoda.quantization import step_factor
from horovod_qoda.torch import Compression, PayloadError

QUANTIZERS = ["auto", "rounded", "dithered", "uniform", "exponential", "ternary"]
DRAWS = 20_000


def draws_of(tensor, **settings):
    """Decoded draws [DRAWS, numel] through real payload bytes."""
    compressor = Compression.layerwise(**settings)
    out = np.empty((DRAWS, tensor.numel()), np.float32)
    for i in range(DRAWS):
        payload, ctx = compressor.compress(tensor)
        assert payload.dtype == torch.uint8
        out[i] = compressor.decompress(payload, ctx).reshape(-1).numpy()
    return out.astype(np.float64)


def vectors():
    seed = random.randrange(2**31)
    print("seed", seed)
    g = torch.Generator().manual_seed(seed)
    normal = torch.randn(24, generator=g)
    one_hot = torch.zeros(8)
    one_hot[3] = 2.5
    return torch.cat([normal, one_hot, torch.full((4,), 0.7), torch.zeros(4)])


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_unbiased_over_20000_draws(quantizer):
    v = vectors()
    out = draws_of(v, quantizer=quantizer, bits=2, bucket_size=16)
    want = v.double().numpy()
    spread = out.std(axis=0)
    assert (np.abs(out.mean(axis=0) - want) <= 5 * spread / np.sqrt(DRAWS) + 1e-6).all()
    if quantizer != "dithered":
        assert not out[:, want == 0].any(), "zero must decode to zero"


@pytest.mark.parametrize("quantizer", ["rounded", "dithered"])
def test_variance_is_the_formula(quantizer):
    """Rounded: step² Σ f(1 − f); dithered: d step²/12 (docs/theory.md section 8), within 2 %."""
    v = vectors()
    out = draws_of(v, quantizer=quantizer, bits=2)
    measured = np.mean(np.sum((out - v.double().numpy()) ** 2, axis=1))
    step = step_factor(2.0) * float(v.double().square().mean().sqrt())
    if quantizer == "dithered":
        want = v.numel() * step**2 / 12
    else:
        fraction = (v.double().numpy() / step) % 1
        want = step**2 * np.sum(fraction * (1 - fraction))
    assert measured == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (5, 7), (2, 3, 4, 5)])
def test_shape_and_dtype_come_back(dtype, shape):
    tensor = torch.randn(shape).to(dtype)
    for compressor in (Compression.layerwise, Compression.layerwise(bits=6)):
        payload, ctx = compressor.compress(tensor)
        out = compressor.decompress(payload, ctx)
        assert out.shape == tensor.shape and out.dtype == dtype
        if tensor.numel():
            assert (out - tensor).abs().max() <= 3 * tensor.abs().max()


def test_same_draw_same_bytes_next_draw_others():
    compressor, tensor = Compression.layerwise(), torch.randn(50, 50)
    a, b, c = (compressor.compress(tensor, draw=n)[0] for n in (7, 7, 8))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_not_contiguous_is_its_own_copy():
    tensor = torch.randn(40, 60)
    payload, _ = Compression.layerwise.compress(tensor.t(), draw=1)
    want, _ = Compression.layerwise.compress(tensor.t().contiguous(), draw=1)
    assert torch.equal(payload, want)


def test_bytes_of_another_tensor_or_broken_bytes_are_refused():
    compressor = Compression.layerwise()
    payload, ctx = compressor.compress(torch.randn(64, 64))
    other, _ = compressor.compress(torch.randn(64, 63))
    for bad in (other, payload[:-1], payload[:0], torch.zeros(100, dtype=torch.uint8)):
        with pytest.raises(PayloadError):
            compressor.decompress(bad, ctx)
    rng = random.Random(5)
    for _ in range(200):
        flipped = payload.clone()
        flipped[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
        with pytest.raises(PayloadError):
            compressor.decompress(flipped, ctx)


def test_simulated_is_the_same_error_as_floats():
    tensor = torch.randn(64, 64)
    settings = {"bits": 3, "seed": 11}
    out, ctx = Compression.simulated(**settings).compress(tensor, draw=4)
    assert ctx is None and out.dtype == tensor.dtype and out.shape == tensor.shape
    assert Compression.simulated.decompress(out, ctx) is out
    real = Compression.layerwise(**settings)
    assert torch.equal(out, real.decompress(*real.compress(tensor, draw=4)))


def test_integers_are_refused():
    with pytest.raises(TypeError, match="int64"):
        Compression.layerwise.compress(torch.arange(5))

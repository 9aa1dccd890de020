"""Statistics of every quantiser, through bytes: unbiasedness, exact variance, independence."""

import numpy as np
import pytest

from horovod_qoda.coding import SEGMENT, copy_stats, decode
from horovod_qoda.quantization import exponential, step_size, ternary, uniform
from horovod_qoda.quantization.adaptive import fit_levels
from horovod_qoda.quantization.histogram import normalised_histograms
from tests.codec_cases import HEADER, INPUTS, make_input, payload

DRAWS = 20_000
N = 64


def adaptive(count):
    """Levels fitted to heavy tails, so that no two cells are alike."""
    values = np.random.default_rng(0).standard_t(3, 1 << 15).astype(np.float32)
    return fit_levels(normalised_histograms(values, 32, "linf")[1], count)


LEVELS = (uniform(6), exponential(3), ternary(), adaptive(4))
QUANTIZERS = {
    "rounded": {"quantizer": 1, "reconstruction": 0},
    "dithered": {"quantizer": 1, "reconstruction": 1},
    "uniform": {"quantizer": 2, "bucket": 32, "levels": 0},
    "exponential": {"quantizer": 2, "norm": 1, "bucket": 64, "levels": 1},
    "ternary": {"quantizer": 2, "bucket": 0, "levels": 2},
    "adaptive": {"quantizer": 2, "bucket": 32, "levels": 3},
    "maxmin": {"quantizer": 3, "bucket": 16, "levels": 0},
}


def draw(v, fields, c=0.7):
    """DRAWS independent quantisations of v [N], each its own layer of one payload: [DRAWS, N]."""
    segments = np.zeros(DRAWS, dtype=SEGMENT)
    for name, value in fields.items():
        segments[name] = value
    segments["numel"] = N
    segments["offset"] = N * np.arange(DRAWS)
    segments["layer"] = np.arange(DRAWS)
    if fields["quantizer"] == 1:
        segments["step"] = step_size(c, copy_stats(v)[0], N)
    values = np.tile(v, DRAWS)
    got = payload(values, segments, levels=LEVELS)
    out = np.empty_like(values)
    decode(got, segments, out, expect=HEADER, levels=LEVELS)
    return out.reshape(DRAWS, N).astype(np.float64), float(segments["step"][0])


def exact_variance(v, fields, step):
    """Variance of every coordinate, docs/theory.md §2 and §8, in float64."""
    v = v.astype(np.float64)
    if fields["quantizer"] == 1:
        f = v / step - np.floor(v / step)
        return step**2 * (f * (1 - f) if fields["reconstruction"] == 0 else np.full(N, 1 / 12))
    out = np.zeros(N)
    bucket = fields["bucket"] or N
    for at in range(0, N, bucket):
        b = v[at : at + bucket]
        if fields["quantizer"] == 3:
            unit = (b.max() - b.min()) / 15
            x = (b - b.min()) / unit if unit > 0 else np.zeros(len(b))
            out[at : at + bucket] = unit**2 * (x - np.floor(x)) * (np.floor(x) + 1 - x)
            continue
        norm = np.abs(b).max() if fields.get("norm", 0) == 0 else np.sqrt((b**2).sum())
        if norm == 0:
            continue
        levels = LEVELS[fields["levels"]].astype(np.float64)
        r = np.abs(b) / norm
        j = np.clip(np.searchsorted(levels, r, side="right") - 1, 0, len(levels) - 2)
        out[at : at + bucket] = norm**2 * (levels[j + 1] - r) * (r - levels[j])
    return out


@pytest.mark.parametrize("name", [name for name in INPUTS if name != "extreme"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_unbiased_with_exact_variance(quantizer, name):
    fields = QUANTIZERS[quantizer]
    v = make_input(name, N, np.random.default_rng(6))
    decoded, step = draw(v, fields)
    if name == "zeros":
        assert not decoded.any()
        return
    if name == "denormal":  # travels as it is
        assert (decoded == v).all()
        return
    variance = exact_variance(v, fields, step)
    error = decoded - v
    # U has 16 bits: a mean can be off by half a unit of 2^-16 of a cell, and values are float32.
    cell = np.sqrt(variance.max()) * 2 + np.abs(v).max() * 1e-3
    allowed = 5 * np.sqrt(variance / DRAWS) + cell * 2.0**-16 + np.abs(v) * 2.0**-22
    assert (np.abs(error.mean(axis=0)) <= allowed).all()
    total = (error**2).sum(axis=1).mean()
    assert total == pytest.approx(variance.sum(), rel=0.02, abs=1e-9 * (v.astype(float) ** 2).sum())


def test_rounded_keeps_zeros_and_dithered_zero_segments():
    v = make_input("sparse", N, np.random.default_rng(7))
    decoded, _ = draw(v, QUANTIZERS["rounded"])
    assert not decoded[:, v == 0].any()
    decoded, _ = draw(np.zeros(N, dtype=np.float32), QUANTIZERS["dithered"])
    assert not decoded.any()


def test_dithered_error_is_uniform_and_independent_of_the_signal():
    v = np.linspace(-2, 2, N).astype(np.float32)
    decoded, step = draw(v, QUANTIZERS["dithered"], c=1.5)
    error = (decoded - v) / step
    assert np.abs(error).max() <= 0.5 * (1 + 1e-5)
    per_coordinate = error.var(axis=0)
    assert np.abs(per_coordinate * 12 - 1).max() < 6 * np.sqrt(0.8 / DRAWS)
    histogram = np.histogram(error, bins=50, range=(-0.5, 0.5))[0] / error.size
    assert np.abs(histogram * 50 - 1).max() < 6 * np.sqrt(50 / error.size)
    correlation = np.corrcoef(np.tile(v, DRAWS), error.ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(error.size)
    rounded, _ = draw(v, QUANTIZERS["rounded"], c=1.5)  # whose error depends on where v lies
    spread = (rounded - v).var(axis=0)
    assert spread.max() > 10 * spread.min()


def test_draws_are_independent_over_stage_exchange_rank_and_layer():
    from dataclasses import replace

    v = np.full(4096, 0.3, dtype=np.float32)
    segments = np.zeros(1, dtype=SEGMENT)
    segments["numel"], segments["quantizer"], segments["step"] = 4096, 1, 1.0
    other_layer = segments.copy()
    other_layer["layer"] = 1
    other_index = segments.copy()
    other_index["index"] = 1 << 20
    variants = [
        (segments, HEADER),
        (segments, replace(HEADER, stage=2)),
        (segments, replace(HEADER, exchange=HEADER.exchange + 1)),
        (segments, replace(HEADER, exchange=HEADER.exchange + (1 << 32))),
        (segments, replace(HEADER, key=HEADER.key + (1 << 32))),
        (segments, replace(HEADER, key=HEADER.key ^ 1)),
        (other_layer, HEADER),
        (other_index, HEADER),
    ]
    draws = []
    for rows, header in variants:
        out = np.empty_like(v)
        decode(payload(v, rows, header), rows, out, expect=header)
        draws.append(out)
    correlation = np.corrcoef(np.array(draws)) - np.eye(len(draws))
    assert np.abs(correlation).max() < 5 / np.sqrt(4096)


def test_chunking_changes_no_symbol():
    v = np.random.default_rng(8).standard_normal(5000).astype(np.float32)
    whole = np.zeros(1, dtype=SEGMENT)
    whole["numel"], whole["quantizer"], whole["step"] = 5000, 1, 0.5
    out = np.empty_like(v)
    decode(payload(v, whole), whole, out, expect=HEADER)
    parts = np.repeat(whole, 3)
    parts["numel"] = [1024, 3072, 904]
    parts["index"] = parts["offset"] = [0, 1024, 4096]
    split = np.empty_like(v)
    decode(payload(v, parts), parts, split, expect=HEADER)
    np.testing.assert_array_equal(out, split)

"""The layout: every coordinate in exactly one segment, aligned, the same on every rank."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_qoda.layout import ALIGN, MIN_CHUNK, build, chunk_bounds
from horovod_qoda.settings import Settings

MODEL = [
    ("embed.weight", (1000, 64), "torch.float32"),
    ("blocks.0.attn.qkv.weight", (192, 64), "torch.float32"),
    ("blocks.0.attn.qkv.bias", (192,), "torch.float32"),
    ("stem.conv.weight", (64, 3, 7, 7), "torch.float32"),
    ("empty", (0, 5), "torch.float32"),
    ("scale", (), "torch.float32"),
    ("head.weight", (10, 64), "torch.float32"),
    ("head.big", (300, 300), "torch.float32"),
]

shapes = st.lists(
    st.lists(st.integers(0, 70), min_size=0, max_size=3).map(tuple), min_size=1, max_size=12
)


@given(shapes=shapes, parts=st.integers(1, 9), fusion=st.sampled_from([0.0625, 0.25, 16.0]))
def test_segments_cover_every_coordinate_once(shapes, parts, fusion):
    named = [(f"layer{i}", s, "torch.float32") for i, s in enumerate(shapes)]
    layout = build(named, Settings(fusion_mb=fusion, min_numel=64))
    seen = {x.index: np.zeros(x.numel, int) for x in layout.layers}
    for buffer in layout.buffers:
        used = np.zeros(buffer.size, int)
        for chunk in layout.chunks(buffer, parts):
            assert chunk.start % ALIGN == 0 and 0 <= chunk.owner < parts
            types = chunk.segments["type"]
            assert (np.diff(types.astype(int)) >= 0).all(), "types are not contiguous"
            for row, layer in zip(chunk.segments, chunk.layers, strict=True):
                first, n = int(row["index"]), int(row["numel"])
                assert n > 0
                if row["quantizer"]:
                    assert first % ALIGN == 0
                seen[int(layer)][first : first + n] += 1
                start = chunk.start + int(row["offset"])
                used[start : start + n] += 1
                assert start + n <= chunk.stop
        assert used.max(initial=0) <= 1, "two layers share memory"
    for counts in seen.values():
        assert (counts == 1).all()


@given(size=st.integers(0, 10**8), parts=st.integers(1, 5000))
def test_chunks_are_few_long_and_complete(size, parts):
    bounds = chunk_bounds(size, parts)
    assert len(bounds) <= parts
    assert [a for a, _ in bounds[1:]] == [b for _, b in bounds[:-1]]
    assert not bounds or (bounds[0][0], bounds[-1][1]) == (0, size)
    assert all(b - a >= MIN_CHUNK for a, b in bounds[:-1])


def test_types_and_reasons():
    layout = build(MODEL, Settings(rules={"head.big": {"quantizer": "uniform", "bits": 4}}))
    kind = {x.name: layout.types[x.type] for x in layout.layers}
    why = {x.name: x.why_raw for x in layout.layers}
    assert kind["embed.weight"].kind == "embedding"
    assert kind["blocks.0.attn.qkv.weight"].kind == "attention"
    assert kind["stem.conv.weight"].kind == "convolution"
    assert kind["head.big"].kind == "linear" and kind["head.big"].levels[-1] == 1.0
    assert kind["blocks.0.attn.qkv.bias"].raw and "min_numel" in why["blocks.0.attn.qkv.bias"]
    assert kind["head.weight"].raw and "640" not in why["head.weight"]
    assert layout.types[-1].raw, "raw layers come last"
    assert layout.quantized == 64000 + 12288 + 9408 + 90000


def test_one_dimensional_layers_travel_raw_unless_a_rule_names_them():
    named = [("norm.weight", (4096,), "torch.float32"), ("fc", (64, 64), "torch.float32")]
    assert build(named, Settings()).quantized == 4096
    assert build(named, Settings(rules={"norm*": 6})).quantized == 8192


def test_hash_sees_names_shapes_order_and_settings():
    base = build(MODEL, Settings()).hash
    assert base == build(list(MODEL), Settings()).hash
    renamed = [("x" + MODEL[0][0], *MODEL[0][1:]), *MODEL[1:]]
    shuffled = MODEL[:]
    seed = random.randrange(2**32)
    print("seed", seed)
    while shuffled == MODEL:
        random.Random(seed).shuffle(shuffled)
        seed += 1
    others = [
        build(renamed, Settings()),
        build(shuffled, Settings()),
        build(MODEL, Settings(bits=4)),
        build(MODEL, Settings(fusion_mb=0.25)),
    ]
    assert base not in [x.hash for x in others]
    assert len({x.hash for x in others}) == len(others)


def test_bad_models():
    with pytest.raises(ValueError, match="'a' is named 2 times"):
        build([("a", (2,), "f"), ("a", (2,), "f")], Settings())
    with pytest.raises(ValueError, match="matches no layer"):
        build(MODEL, Settings(rules={"nothing*": "raw"}))

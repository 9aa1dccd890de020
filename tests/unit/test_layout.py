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


def test_rules_and_kinds_from_modules():
    rules = {"type:attention": {"bits": 6}, "type:embedding": {"quantizer": "adaptive"}}
    layout = build(MODEL, Settings(rules=rules), kinds={"head.big": "attention"})
    kind = {x.name: layout.types[x.type] for x in layout.layers}
    assert kind["head.big"].bits == kind["blocks.0.attn.qkv.weight"].bits == 6
    assert kind["embed.weight"].quantizer == "adaptive" and kind["embed.weight"].adapts
    with pytest.raises(ValueError, match="type:recurrent"):
        build(MODEL, Settings(rules={"type:recurrent": 4}))


@pytest.mark.parametrize(("types", "count"), [("kind", 4), ("layer", 4), ("global", 1)])
def test_which_layers_share_a_type(types, count):
    model = [*MODEL, ("blocks.1.attn.qkv.weight", (192, 64), "torch.float32")]
    layout = build(model, Settings(types=types))
    of = {x.name: x.type for x in layout.layers if not layout.types[x.type].raw}
    assert len(set(of.values())) == count + (types == "layer")
    together = of["blocks.0.attn.qkv.weight"] == of["blocks.1.attn.qkv.weight"]
    assert together == (types != "layer")
    assert Settings(allocation="lgreco").types == "kind"
    lgreco = build(model, Settings(allocation="lgreco"))
    assert len({x.type for x in lgreco.layers if not lgreco.types[x.type].raw}) == 5


def test_types_that_adapt_have_levels_of_their_own():
    fixed = build(MODEL, Settings(quantizer="uniform"))
    assert len(fixed.levels) == 1 and set(fixed.slots.values()) == {0}
    adaptive = build(MODEL, Settings(quantizer="adaptive"))
    assert len(adaptive.levels) == 4 and sorted(adaptive.slots.values()) == [0, 1, 2, 3]
    (chunk,) = adaptive.chunks(adaptive.buffers[0], 1)
    for row, layer in zip(chunk.segments, chunk.layers, strict=True):
        if row["quantizer"]:
            assert row["levels"] == adaptive.slots[adaptive.layers[layer].type]


def test_alternating_coding_has_one_table_and_another_hash():
    main, pooled = (build(MODEL, Settings(coding=c)) for c in ("main", "alternating"))
    assert main.hash != pooled.hash
    for layout, tables in ((main, {0, 1, 2, 3}), (pooled, {0})):
        (chunk,) = layout.chunks(layout.buffers[0], 1)
        assert set(chunk.segments["type"][chunk.segments["quantizer"] > 0]) == tables


def test_maxmin_is_laid_out_as_such():
    layout = build(MODEL, Settings(quantizer="maxmin", bits=4))
    (chunk,) = layout.chunks(layout.buffers[0], 1)
    quantized = chunk.segments[chunk.segments["quantizer"] > 0]
    assert set(quantized["quantizer"]) == {3} and set(quantized["bucket"]) == {1024}
    assert abs(layout.types[0].rate - 4) < 0.15


def test_bad_models():
    with pytest.raises(ValueError, match="'a' is named 2 times"):
        build([("a", (2,), "f"), ("a", (2,), "f")], Settings())
    with pytest.raises(ValueError, match="matches no layer"):
        build(MODEL, Settings(rules={"nothing*": "raw"}))

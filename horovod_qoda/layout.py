"""Which layer lies where: types, exchange buffers, chunks and segments, and the hash of it all.

Pure functions of names, shapes and settings, so that every rank computes the same layout and can
prove it by comparing hashes.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from horovod_qoda.coding import SEGMENT
from horovod_qoda.coding.payload import LEVELS, ONE_STREAM, RAW
from horovod_qoda.quantization import gaussian_level_rate
from horovod_qoda.quantization.families import WHOLE_LAYER, level_sequence
from horovod_qoda.settings import Settings

ALIGN = 1024
"""Layers start at multiples of this many coordinates, so that chunk borders, which are multiples
too, never cut a bucket or a group of random numbers."""

MIN_CHUNK = 16 * 1024
"""Smallest chunk in coordinates: below it, headers, tables and coder states outweigh the saving."""

_KINDS = (
    ("embedding", ("*embed*", "*emb.*", "*wte*", "*wpe*")),
    ("attention", ("*attn*", "*attention*", "*qkv*", "*q_proj*", "*k_proj*", "*v_proj*")),
    ("convolution", ("*conv*",)),
)


@dataclass(frozen=True)
class LayerType:
    """Layers that share a code table: the same kind and the same settings."""

    kind: str
    quantizer: str
    bits: float
    bucket_size: int
    norm: str
    levels: tuple[float, ...]

    @property
    def raw(self) -> bool:
        return self.quantizer == "raw"

    @property
    def rate(self) -> float:
        """Coded bits per coordinate to expect: what was asked for, or what Gaussian buckets take
        with these levels."""
        if not self.levels:
            return self.bits
        return gaussian_level_rate(self.levels, self.bucket_size or WHOLE_LAYER, self.norm)


RAW_TYPE = LayerType("raw", "raw", 32.0, 0, "linf", ())


@dataclass(frozen=True)
class Layer:
    """One parameter tensor. ``index`` is its place in the list of layers, the same on all ranks."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    numel: int
    type: int
    why_raw: str = ""


@dataclass(frozen=True)
class Chunk:
    """The part of a buffer that one rank owns in scatter-reduce; the whole buffer in all-gather."""

    index: int
    owner: int
    start: int
    stop: int
    segments: np.ndarray
    """``SEGMENT`` rows; offsets count from ``start``; step, flags and choices are filled later."""
    layers: np.ndarray
    """Layer index of each segment."""


@dataclass(frozen=True)
class Buffer:
    """Layers that are exchanged together, in the order they lie in memory."""

    index: int
    layers: tuple[int, ...]
    offsets: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Layout:
    layers: tuple[Layer, ...]
    types: tuple[LayerType, ...]
    buffers: tuple[Buffer, ...]
    hash: int
    """64 bits over names, shapes, types and places: two ranks with the same hash agree."""

    @property
    def quantized(self) -> int:
        """Coordinates in layers that are quantised."""
        return sum(x.numel for x in self.layers if not self.types[x.type].raw)

    @property
    def levels(self) -> list[tuple[float, ...]]:
        """The distinct level sequences of the types, in order of first use."""
        return list(dict.fromkeys(t.levels for t in self.types if t.levels))

    def summary(self, buffer: Buffer) -> str:
        """The buffer in words, for messages: its number and the layers it begins with."""
        first = ", ".join(repr(self.layers[i].name) for i in buffer.layers[:3])
        more = len(buffer.layers) - 3
        return f"buffer {buffer.index} ({first}{f' and {more} more layers' if more > 0 else ''})"

    def chunks(self, buffer: Buffer, parts: int) -> tuple[Chunk, ...]:
        """Cuts a buffer for ``parts`` ranks; see :func:`chunk_bounds`."""
        bounds = chunk_bounds(buffer.size, parts)
        return tuple(
            self._chunk(buffer, i, (buffer.index + i) % parts, start, stop)
            for i, (start, stop) in enumerate(bounds)
        )

    def _chunk(self, buffer: Buffer, index: int, owner: int, start: int, stop: int) -> Chunk:
        rows, layers = [], []
        for layer_index, offset in zip(buffer.layers, buffer.offsets, strict=True):
            layer = self.layers[layer_index]
            first, last = max(offset, start), min(offset + layer.numel, stop)
            if first >= last:
                continue
            row = np.zeros((), SEGMENT)
            row["offset"], row["numel"], row["index"] = first - start, last - first, first - offset
            row["layer"], row["type"] = layer.index, layer.type
            kind = self.types[layer.type]
            row["quantizer"] = RAW if kind.raw else LEVELS if kind.levels else ONE_STREAM
            row["norm"] = kind.norm == "l2"
            row["bucket"] = kind.bucket_size
            row["levels"] = self.levels.index(kind.levels) if kind.levels else 0
            rows.append(row)
            layers.append(layer_index)
        segments = np.array(rows, SEGMENT) if rows else np.zeros(0, SEGMENT)
        return Chunk(index, owner, start, stop, segments, np.array(layers, np.int64))


def chunk_bounds(size: int, parts: int) -> list[tuple[int, int]]:
    """Start and stop of each chunk of a buffer of ``size`` coordinates for ``parts`` ranks.

    Chunks start at multiples of ``ALIGN`` and are at least ``MIN_CHUNK`` long, so a small buffer
    has fewer owners than there are ranks.
    """
    if size == 0:
        return []
    length = max(MIN_CHUNK, -(-size // (parts * ALIGN)) * ALIGN)
    return [(start, min(start + length, size)) for start in range(0, size, length)]


def build(
    parameters: Iterable[tuple[str, Sequence[int], str]],
    settings: Settings,
    elsewhere: Sequence[str] = (),
) -> Layout:
    """Lays out the parameters of one optimizer.

    Args:
        parameters: ``(name, shape, dtype)`` in the order of registration. Gradients become ready
            roughly in the reverse order, which is the order of the buffers.
        settings: the compressor's settings; rules pick settings by layer name.
        elsewhere: names of layers that travel by another way; rules may name them.

    Raises:
        ValueError: two layers of one name, or a rule that matches no layer.
    """
    described = [(name, tuple(shape), str(dtype)) for name, shape, dtype in parameters]
    names = [name for name, _, _ in described]
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise ValueError(f"layer {name!r} is named {count} times; names must be unique")
    settings.check_rules([*names, *elsewhere])
    types: list[LayerType] = []
    layers: list[Layer] = []
    for index, (name, shape, dtype) in enumerate(described):
        kind, why = layer_type(name, shape, settings)
        if kind not in types:
            types.append(kind)
        numel = int(np.prod(shape, dtype=np.int64)) if shape else 1
        layers.append(Layer(index, name, shape, dtype, numel, types.index(kind), why))
    layers, types = _sort_types(layers, types)
    buffers = _fill_buffers(layers, int(settings.fusion_mb * 2**20 / 4), types)
    text = json.dumps(
        [describe(layer, types) for layer in layers]
        + [[b.index, b.layers, b.offsets, b.size] for b in buffers]
    )
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return Layout(tuple(layers), tuple(types), tuple(buffers), int.from_bytes(digest, "little"))


def layer_type(name: str, shape: tuple[int, ...], settings: Settings) -> tuple[LayerType, str]:
    """Type of a layer, and why it travels raw where it does (docs/theory.md section 2).

    One-dimensional tensors (biases, norm weights) and small ones travel raw unless a rule names
    them: they are few bytes and the most sensitive.
    """
    mine = settings.for_layer(name)
    if mine is None:
        return RAW_TYPE, "a rule says raw"
    numel = int(np.prod(shape, dtype=np.int64)) if shape else 1
    named = any(fnmatch.fnmatchcase(name, pattern) for pattern in settings.rules)
    if numel < settings.min_numel:
        return RAW_TYPE, f"fewer than min_numel = {settings.min_numel} coordinates"
    if len(shape) < 2 and not named:
        return RAW_TYPE, "one-dimensional"
    levels: tuple[float, ...] = ()
    if mine.quantizer not in ("auto", "dithered", "rounded"):
        bucket, norm = mine.bucket_size, mine.norm
        sequence = level_sequence(mine.quantizer, mine.bits, bucket, norm, mine.levels)
        levels = tuple(float(x) for x in sequence)
    else:
        bucket, norm = 0, "linf"
    return LayerType(
        layer_kind(name, shape), mine.quantizer, float(mine.bits), bucket, norm, levels
    ), ""


def layer_kind(name: str, shape: tuple[int, ...]) -> str:
    """Kind of a layer from its name, then from its rank."""
    lower = name.lower()
    for kind, patterns in _KINDS:
        if any(fnmatch.fnmatchcase(lower, pattern) for pattern in patterns):
            return kind
    return {0: "other", 1: "vector", 2: "linear"}.get(
        len(shape), "convolution" if len(shape) <= 5 else "other"
    )


def describe(layer: Layer, types: Sequence[LayerType]) -> list[object]:
    """What ranks must agree on about a layer."""
    t = types[layer.type]
    return [
        layer.name,
        list(layer.shape),
        layer.dtype,
        t.kind,
        t.quantizer,
        t.bits,
        t.bucket_size,
        t.norm,
        list(t.levels),
    ]


def first_difference(mine: Sequence[object], theirs: Sequence[object]) -> int | None:
    """Index of the first entry in which two lists differ; a missing entry differs."""
    for i in range(max(len(mine), len(theirs))):
        if i >= len(mine) or i >= len(theirs) or mine[i] != theirs[i]:
            return i
    return None


def _sort_types(layers: list[Layer], types: list[LayerType]) -> tuple[list[Layer], list[LayerType]]:
    """Numbers the types so that raw comes last."""
    order = sorted(range(len(types)), key=lambda i: (types[i].raw, i))
    place = {old: new for new, old in enumerate(order)}
    moved = [
        Layer(x.index, x.name, x.shape, x.dtype, x.numel, place[x.type], x.why_raw) for x in layers
    ]
    return moved, [types[i] for i in order]


def _fill_buffers(layers: list[Layer], capacity: int, types: list[LayerType]) -> list[Buffer]:
    """Fills buffers with layers in reverse order, then sorts each buffer by type."""
    groups: list[list[Layer]] = [[]]
    used = 0
    for layer in reversed(layers):
        if groups[-1] and used + layer.numel > capacity:
            groups.append([])
            used = 0
        groups[-1].append(layer)
        used += layer.numel
    buffers = []
    for index, group in enumerate(g for g in groups if g):
        group.sort(key=lambda x: (x.type, -x.index))
        offsets, end = [], 0
        for layer in group:
            # Raw layers carry neither buckets nor random numbers: 64-byte alignment is enough.
            align = 16 if types[layer.type].raw else ALIGN
            end = -(-end // align) * align
            offsets.append(end)
            end += layer.numel
        buffers.append(Buffer(index, tuple(x.index for x in group), tuple(offsets), end))
    return buffers

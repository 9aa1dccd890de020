"""Which layer lies where: types, exchange buffers, chunks and segments, and the hash of it all.

Pure functions of names, shapes and settings, so that every rank computes the same layout and can
prove it by comparing hashes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from horovod_qoda.coding import SEGMENT
from horovod_qoda.coding.payload import LEVELS, MAXMIN, ONE_STREAM, RAW
from horovod_qoda.layer_kinds import kind_of_name
from horovod_qoda.layer_types import LayerType, layer_type
from horovod_qoda.settings import Settings

ALIGN = 1024
"""Layers start at multiples of this many coordinates, so that chunk borders, which are multiples
too, never cut a bucket or a group of random numbers."""

MIN_CHUNK = 16 * 1024
"""Smallest chunk in coordinates: below it, headers, tables and coder states outweigh the saving."""


@dataclass(frozen=True)
class Layer:
    """One parameter tensor. ``index`` is its place in the list of layers, the same on all ranks."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    numel: int
    type: int
    kind: str
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
    pooled: bool = False
    """Whether all types share one code table (``coding="alternating"``)."""

    @property
    def quantized(self) -> int:
        """Coordinates in layers that are quantised."""
        return sum(x.numel for x in self.layers if not self.types[x.type].raw)

    @cached_property
    def slots(self) -> dict[int, int]:
        """Which level sequence each type uses, for those that use one. Types whose levels change
        have a sequence of their own, others share equal ones."""
        keys = {i: (t.levels, i if t.adapts else -1) for i, t in enumerate(self.types) if t.levels}
        order = list(dict.fromkeys(keys.values()))
        return {i: order.index(key) for i, key in keys.items()}

    @property
    def levels(self) -> list[tuple[float, ...]]:
        """The level sequences at the start, one for every slot."""
        first = {slot: self.types[i].levels for i, slot in reversed(self.slots.items())}
        return [first[slot] for slot in range(len(first))]

    def table(self, type: int) -> int:
        """Row of the code tables that a type is coded with."""
        return 0 if self.pooled and not self.types[type].raw else type

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
            row["layer"], row["type"] = layer.index, self.table(layer.type)
            kind = self.types[layer.type]
            row["quantizer"] = RAW if kind.raw else LEVELS if kind.levels else ONE_STREAM
            if kind.quantizer == "maxmin":
                row["quantizer"] = MAXMIN
            row["norm"] = kind.norm == "l2"
            row["bucket"] = kind.bucket_size
            row["levels"] = self.slots.get(layer.type, 0)
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
    kinds: Mapping[str, str] | None = None,
) -> Layout:
    """Lays out the parameters of one optimizer.

    Args:
        parameters: ``(name, shape, dtype)`` in the order of registration. Gradients become ready
            roughly in the reverse order, which is the order of the buffers.
        settings: the compressor's settings; rules pick settings by layer name.
        elsewhere: names of layers that travel by another way; rules may name them.
        kinds: kinds of layers by name, from their modules; the others are guessed from the names.

    Raises:
        ValueError: two layers of one name, or a rule that matches no layer.
    """
    described = [(name, tuple(shape), str(dtype)) for name, shape, dtype in parameters]
    names = [name for name, _, _ in described]
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise ValueError(f"layer {name!r} is named {count} times; names must be unique")
    known = kinds or {}
    kind_of = {n: known.get(n) or kind_of_name(n, shape) for n, shape, _ in described}
    settings.check_rules({**{n: known.get(n, "") for n in elsewhere}, **kind_of})
    types: list[LayerType] = []
    layers: list[Layer] = []
    for index, (name, shape, dtype) in enumerate(described):
        of, why = layer_type(name, shape, kind_of[name], settings)
        if of not in types:
            types.append(of)
        numel = int(np.prod(shape, dtype=np.int64)) if shape else 1
        place = types.index(of)
        layers.append(Layer(index, name, shape, dtype, numel, place, kind_of[name], why))
    layers, types = _sort_types(layers, types)
    buffers = _fill_buffers(layers, int(settings.fusion_mb * 2**20 / 4), types)
    pooled = settings.coding == "alternating"
    text = json.dumps(
        [describe(layer, types) for layer in layers]
        + [[b.index, b.layers, b.offsets, b.size] for b in buffers]
        + ([["pooled"]] if pooled else [])
    )
    digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return Layout(tuple(layers), tuple(types), tuple(buffers), digest, pooled)


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
        t.layer,
        t.low_rank,
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
    moved = [replace(x, type=place[x.type]) for x in layers]
    return moved, [types[i] for i in order]


def _fill_buffers(layers: list[Layer], capacity: int, types: list[LayerType]) -> list[Buffer]:
    """Fills buffers with layers in reverse order, then sorts each buffer by type.

    PowerSGD's layers are exchanged in another way, so they have buffers to themselves.
    """
    groups: list[list[Layer]] = []
    filling: dict[bool, list[Layer]] = {}
    used = {True: 0, False: 0}
    for layer in reversed(layers):
        apart = types[layer.type].low_rank > 0
        group = filling.setdefault(apart, [])
        if group and used[apart] + layer.numel > capacity:
            groups.append(group)
            group, used[apart] = [], 0
        group.append(layer)
        filling[apart] = group
        used[apart] += layer.numel
    buffers = []
    for index, group in enumerate([*groups, *filling.values()]):
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

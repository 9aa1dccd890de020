"""What the steps of one encode share: its arguments where they lie, and the quantiser's launch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from horovod_qoda.coding.payload import KIND_RAW
from horovod_qoda.kernels import fields as f
from horovod_qoda.kernels.coder import EXACT, Coder, LevelTables
from horovod_qoda.kernels.geometry import BLOCK, GROUPS, RAW_RUN, Geometry
from horovod_qoda.kernels.pack import copy_pieces
from horovod_qoda.kernels.quantize import quantize_tiles


@dataclass(frozen=True)
class Symbols:
    """What `quantize_tiles` leaves, on the device."""

    codes: torch.Tensor
    """uint8, block by block from `Geometry.block_at` on."""
    exact: torch.Tensor
    """float32, as long: k itself where the code is 0."""
    counters: torch.Tensor
    """int32: [n_blocks, COUNTER], then 1 for each segment with a symbol that is not finite, else 0,
    then ``more``."""
    more: torch.Tensor
    """Of the counters, what the caller asked for."""


@dataclass
class Job:
    """One call of `horovod_qoda.kernels.encode`."""

    coder: Coder
    geometry: Geometry
    levels: LevelTables
    values: torch.Tensor
    segments: np.ndarray
    kinds: np.ndarray
    sides: np.ndarray
    code_at: np.ndarray
    n_symbols: np.ndarray
    """Of each block."""
    there: dict[str, torch.Tensor]

    def quantizer_arguments(self) -> tuple[torch.Tensor, ...]:
        levels = self.levels
        there = self.there
        sides = (there["call"], there["inverse"], there["sides"])
        return (*sides, levels.values, levels.inverse_gaps, levels.counts)

    def quantize(self, coding: torch.Tensor, more_counters: int = 0) -> Symbols:
        """Queues the symbols of all blocks.

        Args:
            coding: int32 [n_types, 3] on the device: lowest and highest h with a code, and shift.
            more_counters: cleared int32 wanted behind the counters.
        """
        memory, geometry = self.coder.memory, self.geometry
        n = int(geometry.block_at[-1])
        sizes = (geometry.n_blocks * f.COUNTER.value, len(self.segments), more_counters)
        counters = memory.buffer("counters", sum(sizes), torch.int32)
        counters.zero_()
        _, bad, more = counters.split(sizes)
        codes = memory.buffer("codes", n, torch.uint8)
        exact = memory.buffer("exact", n, torch.float32)
        for q in geometry.tiles:
            if q == 0:
                continue
            tile_piece = geometry.device[f"tile_piece{q}"]
            quantize_tiles[(tile_piece.numel(),)](
                self.values, codes, exact, counters, bad, tile_piece,
                geometry.device[f"tile_start{q}"], geometry.device["pieces"],
                self.there["code_at"], coding, geometry.device["block_type"],
                *self.quantizer_arguments(), QUANTIZER=q, GROUPS=GROUPS, num_warps=4, **EXACT,
            )  # fmt: skip
        return Symbols(codes, exact, counters, more)

    def block_counters(self, found: np.ndarray) -> np.ndarray:
        """[n_blocks, COUNTER] of counters that have come to the host.

        Raises:
            ValueError: a symbol is not finite.
        """
        n_blocks = self.geometry.n_blocks
        n_counters = n_blocks * f.COUNTER.value
        bad = found[n_counters : n_counters + len(self.segments)]
        if bad.any():
            raise ValueError(
                f"segment {np.flatnonzero(bad)[0]}: values hold NaN or Inf but nonfinite is 0, or "
                "value / step overflows"
            )
        return found[:n_counters].reshape(n_blocks, f.COUNTER.value)

    @property
    def raw_values(self) -> int:
        """Coordinates that travel as float32."""
        return int(self.segments["numel"][self.kinds == KIND_RAW].sum())

    def raw_lengths(self) -> np.ndarray:
        """Bytes of each raw block, int64."""
        return 4 * np.minimum(BLOCK, self.raw_values - np.arange(0, self.raw_values, BLOCK))

    def copy_raw(self, into: torch.Tensor) -> None:
        """Queues the copy of all raw values to the beginning of a float32 tensor."""
        starts, sizes = [], []
        for row in np.flatnonzero(self.kinds == KIND_RAW):
            s = self.segments[row]
            at = np.arange(0, int(s["numel"]), RAW_RUN, dtype=np.int64)
            starts.append(int(s["offset"]) + at)
            sizes.append(np.minimum(int(s["numel"]) - at, RAW_RUN))
        if not starts:
            return
        n = np.concatenate(sizes)
        runs = {"from": np.concatenate(starts), "to": np.cumsum(n) - n, "n": n}
        there = self.coder.memory.upload("raw_runs", runs)
        copy_pieces[(len(n),)](
            self.values, into, there["from"], there["to"], there["n"], TILE=RAW_RUN, num_warps=4
        )


def add_counts(histogram: np.ndarray, types: np.ndarray, counts: np.ndarray) -> None:
    """Adds [n_types, 256] counts of symbols to the rows of these types."""
    if histogram.ndim != 2 or histogram.shape[1] != 256 or (types >= len(histogram)).any():
        raise ValueError("histogram must have shape [n_types, 256] with a row for every type")
    histogram[types] += counts.reshape(len(types), 256)

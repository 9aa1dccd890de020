"""One device's coder: its memory, the layouts and level sequences it knows, and its launches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import triton

from horovod_qoda.coding.payload import Header
from horovod_qoda.kernels import meta
from horovod_qoda.kernels.checksum import lane_tables
from horovod_qoda.kernels.geometry import Geometry, make_geometry, static_part
from horovod_qoda.kernels.memory import Memory

# Symbols must not depend on whether the compiler finds a multiply next to an add.
EXACT = {"enable_fp_fusion": False}
ONE_WARP = {"num_warps": 1, "enable_fp_fusion": False}

MOST_LAYOUTS = 256
"""Layouts remembered: buffers times chunks of a job, with room for changed settings."""


@dataclass(frozen=True)
class LevelTables:
    """Level sequences on the device; ``values`` and ``inverse_gaps`` have 128 entries a row."""

    sequences: tuple[tuple[float, ...], ...]
    counts_host: np.ndarray
    checksum: int
    values: torch.Tensor
    inverse_gaps: torch.Tensor
    counts: torch.Tensor


class Coder:
    """Codes and decodes on one device. Not for two threads at once.

    Args:
        device: a CUDA device; the CPU where Triton's interpreter is on (TRITON_INTERPRET=1).
        host_coded: payloads that stay on the host and have at most so many symbols, raw values
            counted too, are coded by the CPU, from symbols of a byte each in pinned memory. Never
            by default: from which size on the device is faster has not been measured
            (docs/performance-gpu.md).
    """

    def __init__(self, device: torch.device | str, host_coded: int = 0) -> None:
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device.type != "cuda" and not triton.knobs.runtime.interpret:
            raise ValueError(
                f"horovod_qoda.kernels works on CUDA tensors, not on {device}; use "
                "horovod_qoda.coding for tensors in the CPU's memory"
            )
        self.device = device
        self.host_coded = host_coded
        self.memory = Memory(device)
        self._geometries: dict[tuple[bytes, int], Geometry] = {}
        self._levels: dict[tuple[tuple[float, ...], ...], LevelTables] = {}

    def geometry(
        self, segments: npt.NDArray[np.void], n_values: int, levels: LevelTables
    ) -> Geometry:
        rows = static_part(segments)
        key = (rows.tobytes() + levels.counts_host.tobytes(), n_values)
        found = self._geometries.get(key)
        if found is None:
            if len(self._geometries) >= MOST_LAYOUTS:
                self._geometries.clear()
            found = make_geometry(rows, n_values, levels.sequences)
            self._place(found)
            self._geometries[key] = found
        return found

    def _place(self, geometry: Geometry) -> None:
        """Copies to the device what stays the same from exchange to exchange."""
        there = geometry.device
        there["pieces"] = self._constant(geometry.pieces)
        there["block_type"] = self._constant(geometry.block_type)
        for q, (piece, start) in geometry.tiles.items():
            there[f"tile_piece{q}"] = self._constant(piece)
            there[f"tile_start{q}"] = self._constant(start)
        for spans in geometry.spans:
            there[f"span_at{spans.mode}"] = self._constant(spans.at)
            there[f"span_n{spans.mode}"] = self._constant(spans.n)

    def levels(self, levels: Sequence[npt.ArrayLike]) -> LevelTables:
        key = tuple(tuple(np.asarray(s, dtype=np.float32).tolist()) for s in levels)
        found = self._levels.get(key)
        if found is None:
            if len(self._levels) >= MOST_LAYOUTS:
                self._levels.clear()
            found = self._levels[key] = self._level_tables(key)
        return found

    def _level_tables(self, sequences: tuple[tuple[float, ...], ...]) -> LevelTables:
        rows = max(len(sequences), 1)
        values = np.full((rows, 128), np.inf, np.float32)
        gaps = np.zeros((rows, 128), np.float32)
        counts = np.full(rows, 2, np.int32)
        for row, sequence in enumerate(sequences):
            level = np.array(sequence, np.float32)
            if not 2 <= len(level) <= 128:
                raise ValueError(f"levels[{row}] must have 2 to 128 entries")
            values[row, : len(level)] = level
            gaps[row, : len(level) - 1] = np.float32(1) / (level[1:] - level[:-1])
            counts[row] = len(level)
        return LevelTables(
            sequences=sequences,
            counts_host=counts,
            checksum=meta.levels_checksum(sequences),
            values=self._constant(values.reshape(-1)),
            inverse_gaps=self._constant(gaps.reshape(-1)),
            counts=self._constant(counts),
        )

    def _constant(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array).copy()).to(self.device)

    @cached_property
    def checksum_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        steps, last = lane_tables()
        return self._constant(steps), self._constant(last)

    def check_values(self, name: str, tensor: torch.Tensor) -> None:
        if (
            tensor.device != self.device
            or tensor.dtype != torch.float32
            or tensor.dim() != 1
            or not tensor.is_contiguous()
        ):
            raise ValueError(
                f"{name} must be a contiguous 1-D float32 tensor on {self.device}, not "
                f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )


def call_words(header: Header) -> np.ndarray:
    """The words that `philox.word` reads, int32 [8]."""
    words = [
        header.key & 0xFFFFFFFF,
        header.key >> 32,
        header.exchange & 0xFFFFFFFF,
        header.exchange >> 32,
        header.stage << 24,
    ]
    return np.array([*words, 0, 0, 0], np.uint32).view(np.int32)

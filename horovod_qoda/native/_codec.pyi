from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

class PayloadError(ValueError): ...

SEGMENT_BYTES: int

def simd() -> str: ...
def encode(
    values: npt.NDArray[np.float32],
    segments: npt.NDArray[np.void],
    header: tuple[float, ...],
    out: npt.NDArray[np.uint8],
    tables: npt.NDArray[np.uint16] | None,
    book_hash: int,
    levels: Sequence[Sequence[float]],
    histogram: npt.NDArray[np.int64] | None,
    threads: int,
    decoded: npt.NDArray[np.float32] | None,
) -> int: ...
def decode(
    payloads: Sequence[npt.NDArray[np.uint8]],
    segments: npt.NDArray[np.void],
    out: npt.NDArray[np.float32],
    expect: Sequence[tuple[float, ...]],
    tables: npt.NDArray[np.uint16] | None,
    book_hash: int,
    levels: Sequence[Sequence[float]],
    add: bool,
    scale: float,
    threads: int,
) -> list[tuple[int, int, int, int, int, int, float, float, float, int]]: ...
def max_payload_bytes(segments: npt.NDArray[np.void]) -> int: ...
def peek(
    payload: npt.NDArray[np.uint8],
) -> tuple[tuple[int, int, int, int, int, int, float, float, float, int], int]: ...
def seal(payload: npt.NDArray[np.uint8], sum_sq: float, sum_sq_diff: float, aux: float) -> None: ...
def steps(
    payload: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]: ...
def copy_stats(
    src: npt.NDArray[np.float32], dst: npt.NDArray[np.float32] | None, threads: int
) -> tuple[float, bool]: ...
def sum_sq_diff(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], threads: int) -> float: ...
def change_stats(
    now: npt.NDArray[np.float32], before: npt.NDArray[np.float32], threads: int
) -> tuple[float, bool, float]: ...
def normalize(counts: npt.NDArray[np.uint64], exact: bool) -> npt.NDArray[np.uint16]: ...
def philox(
    counter: npt.NDArray[np.uint32], key: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint32]: ...
def plan(
    segments: npt.NDArray[np.void], n_values: int, levels: Sequence[Sequence[float]]
) -> dict[str, npt.NDArray[Any]]: ...
def unpack(
    payload: npt.NDArray[np.uint8],
    segments: npt.NDArray[np.void],
    n_values: int,
    expect: tuple[float, ...],
    tables: npt.NDArray[np.uint16] | None,
    book_hash: int,
    levels: Sequence[Sequence[float]],
) -> dict[str, Any]: ...
def crc32c(data: npt.NDArray[np.uint8], crc: int = 0) -> int: ...
def serialize(freq: npt.NDArray[np.uint16]) -> bytes: ...
def choose_classes(
    codes: npt.NDArray[np.uint64],
    groups: npt.NDArray[np.uint64],
    freq: npt.NDArray[np.uint16],
    scale: float,
    most_bits: float,
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8], float]: ...
def coded_bits(freq: npt.NDArray[np.uint16], counts: npt.NDArray[np.uint64]) -> float: ...
def code_symbols(
    codes: npt.NDArray[np.uint8],
    floats: npt.NDArray[np.float32],
    runs: npt.NDArray[np.int64],
    tables: Sequence[tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]],
    out: npt.NDArray[np.uint8],
) -> tuple[int, npt.NDArray[np.uint32]]: ...
def symbols(
    values: npt.NDArray[np.float32],
    segments: npt.NDArray[np.void],
    header: tuple[float, ...],
    codes: npt.NDArray[np.uint8],
) -> None: ...
def from_symbols(
    codes: npt.NDArray[np.uint8],
    segments: npt.NDArray[np.void],
    header: tuple[float, ...],
    out: npt.NDArray[np.float32],
    add: bool,
) -> None: ...

"""What callers use: the functions of `horovod_qoda.coding`, for CUDA tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from horovod_qoda.coding.payload import Bytes, Header, max_payload_bytes
from horovod_qoda.coding.tables import Book
from horovod_qoda.kernels import decoder, encoder
from horovod_qoda.kernels.coder import Coder
from horovod_qoda.kernels.sides import span_statistics

_coders: dict[torch.device, Coder] = {}


def _coder_of(tensor: torch.Tensor, coder: Coder | None) -> Coder:
    if coder is not None:
        return coder
    if tensor.device not in _coders:
        _coders[tensor.device] = Coder(tensor.device)
    return _coders[tensor.device]


def pinned(segments: npt.NDArray[np.void]) -> torch.Tensor:
    """A host tensor that any payload of these segments fits into, pinned where CUDA is there.

    About 4 bytes a coordinate. Pinning is slow: make it once and reuse it.
    """
    size = max_payload_bytes(segments)
    return torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())


def encode(
    values: torch.Tensor,
    segments: npt.NDArray[np.void],
    header: Header,
    out: torch.Tensor,
    *,
    book: Book | None = None,
    levels: Sequence[npt.ArrayLike] = (),
    histogram: npt.NDArray[np.int64] | None = None,
    there: torch.Tensor | None = None,
    stream: Any | None = None,
    coder: Coder | None = None,
) -> int:
    """Writes the payload of a CUDA tensor into host memory and returns its length in bytes.

    The bytes are those of `horovod_qoda.coding.encode` for the same values.

    Args:
        values: float32 on a CUDA device, 1-D and contiguous. What the caller's current stream has
            queued for it is waited for on the device.
        segments, header, book, levels, histogram: as for `horovod_qoda.coding.encode`.
        out: uint8 in host memory, at least `horovod_qoda.coding.max_payload_bytes` long; pinned
            (see `pinned`), or the copy from the device is slow.
        there: uint8 on the device, as long as the payload at least. It receives the payload, and
            ``out`` only the meta part.
        stream: the stream to work on; by default one of the coder's own.
        coder: whose buffers to use, by default one for each device. One thread at a time.

    Raises:
        ValueError: as `horovod_qoda.coding.encode`.
    """
    return encoder.encode(
        _coder_of(values, coder),
        values,
        segments,
        header,
        out,
        book=book,
        levels=levels,
        histogram=histogram,
        there=there,
        stream=stream,
    )


def decode_sum(
    payloads: Sequence[Bytes | torch.Tensor],
    segments: npt.NDArray[np.void],
    out: torch.Tensor,
    *,
    expect: Sequence[Header],
    fronts: Sequence[npt.NDArray[np.uint8]] | None = None,
    book: Book | None = None,
    levels: Sequence[npt.ArrayLike] = (),
    add: bool = False,
    scale: float = 1.0,
    stream: Any | None = None,
    coder: Coder | None = None,
) -> list[Header]:
    """Decodes payloads and leaves their sum, in the order given, in a CUDA tensor.

    The values are those of `horovod_qoda.coding.decode_sum`, bit for bit (NaNs up to their bits).
    Returns when the result is there.

    Args:
        payloads: uint8 in host memory, best pinned, or on the device; padding behind the true
            length is ignored.
        fronts: the beginning of each in host memory, its meta part included; needed where payloads
            are on the device.
        out: float32 on a CUDA device, 1-D and contiguous; only the segments' coordinates are
            written.
        stream, coder: as for `encode`.

    Raises:
        PayloadError: as `horovod_qoda.coding.decode_sum`; checksums of blocks are verified while
            ``out`` is written.
    """
    if fronts is not None and len(fronts) != len(payloads):
        raise ValueError(f"{len(fronts)} fronts of {len(payloads)} payloads")
    tensors = [_as_tensor(payload) for payload in payloads]
    return decoder.decode_sum(
        _coder_of(out, coder),
        tensors,
        [tensor.numpy() for tensor in tensors] if fronts is None else fronts,
        segments,
        out,
        expect=expect,
        book=book,
        levels=levels,
        add=add,
        scale=scale,
        stream=stream,
    )


def decode(
    payload: Bytes | torch.Tensor,
    segments: npt.NDArray[np.void],
    out: torch.Tensor,
    *,
    expect: Header,
    book: Book | None = None,
    levels: Sequence[npt.ArrayLike] = (),
    add: bool = False,
    scale: float = 1.0,
    stream: Any | None = None,
    coder: Coder | None = None,
) -> Header:
    """`decode_sum` of one payload."""
    return decode_sum(
        [payload],
        segments,
        out,
        expect=[expect],
        book=book,
        levels=levels,
        add=add,
        scale=scale,
        stream=stream,
        coder=coder,
    )[0]


def copy_stats(
    tensors: Sequence[torch.Tensor],
    copies: Sequence[torch.Tensor] | None = None,
    *,
    stream: Any | None = None,
    coder: Coder | None = None,
) -> list[tuple[float, bool]]:
    """(sum of squares, whether all values are finite) of each tensor, copied as float32 if asked.

    The sums are those of `horovod_qoda.coding.copy_stats` on the float32 values, bit for bit.
    Many tensors cost the host one wait.

    Args:
        tensors: float32, float16 or bfloat16, contiguous, all on one CUDA device.
        copies: float32 tensors of the same sizes.
    """
    if not tensors:
        return []
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError("copy_stats takes contiguous tensors")
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    targets = None if copies is None else [copy.reshape(-1) for copy in copies]
    one = _coder_of(flat[0], coder)
    with one.memory.side_stream(stream):
        return span_statistics(one, flat, targets)


def _as_tensor(payload: Bytes | torch.Tensor) -> torch.Tensor:
    if isinstance(payload, torch.Tensor):
        return payload
    if isinstance(payload, np.ndarray) and payload.flags.writeable:
        return torch.from_numpy(payload)
    return torch.from_numpy(np.frombuffer(payload, np.uint8).copy())

"""Are the replicas still the same? Hashes of parameters, compared over ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch


def hash_parameters(parameters: Iterable[torch.Tensor]) -> list[int]:
    """A 64-bit hash of the bytes of each tensor, whatever its dtype, device and strides."""
    return [_hash(p) for p in parameters]


def _hash(tensor: torch.Tensor) -> int:
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    data = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")

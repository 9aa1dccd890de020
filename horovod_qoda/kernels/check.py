"""Do the kernels work on this device? One small case of everything, against the native codec."""

from __future__ import annotations

import numpy as np
import torch
import triton

from horovod_qoda import coding
from horovod_qoda.coding import SEGMENT, Header
from horovod_qoda.kernels.coder import Coder
from horovod_qoda.kernels.face import decode_sum, encode

_HEADER = Header(layout_hash=1, exchange=2, rank=0, stage=0, chunk=0, key=3)
_SIZES = (2100, 300, 512, 256, 20)


def problem(device: str) -> str:
    """Why payloads should not be made and read on a device; empty where they can be."""
    if torch.device(device).type != "cuda":
        if triton.knobs.runtime.interpret:
            return ""  # no place for users; tests go through everything
        return f"the kernels work on CUDA tensors, not on {device}"
    try:
        same = equals_native(device)
    except Exception as e:  # of Triton, its compiler, or the driver: whatever it is, the host works
        first = (str(e).splitlines() or [""])[0]
        return f"the kernels do not run on {device}: {type(e).__name__}: {first}"
    if not same:
        return f"the kernels' bytes on {device} are not the CPU's; please report it"
    return ""


def equals_native(device: str, sizes: tuple[int, ...] = _SIZES) -> bool:
    """Whether payload and values of one case with every quantizer are the native codec's.

    Args:
        sizes: of five segments: rounded, dithered, levels, max-min and raw.
    """
    rows = np.zeros(5, SEGMENT)
    rows["numel"] = sizes
    rows["offset"] = np.cumsum(sizes) - sizes
    rows["layer"] = np.arange(5)
    rows["type"] = (0, 0, 1, 2, 3)
    rows["quantizer"] = (1, 1, 2, 3, 0)
    rows["reconstruction"][1] = 1
    rows["step"][:2] = 0.4, 0.21
    rows["bucket"][2:4] = 64
    levels = [np.array([0, 0.25, 0.5, 0.75, 1], np.float32)]
    values = np.random.default_rng(1).standard_normal(sum(sizes), np.float32)
    values[::50] *= 1000
    room = coding.max_payload_bytes(rows)
    wanted, found = np.empty(room, np.uint8), torch.empty(room, dtype=torch.uint8)
    length = coding.encode(values, rows, _HEADER, wanted, levels=levels)
    payload = wanted[:length]
    mean = np.zeros_like(values)
    coding.decode_sum(
        [payload, payload], rows, mean, expect=[_HEADER] * 2, levels=levels, scale=0.5
    )
    coder = Coder(device)
    there = torch.from_numpy(values).to(coder.device)
    same = True
    for coder.host_coded in (len(values), 0):  # by the CPU from the device's symbols, and there
        made = encode(there, rows, _HEADER, found, levels=levels, coder=coder)
        same = same and made == length and np.array_equal(found.numpy()[:made], payload)
    decode_sum(
        [payload, payload], rows, there, expect=[_HEADER] * 2, levels=levels, scale=0.5,
        coder=coder,
    )  # fmt: skip
    return bool(same and np.array_equal(there.cpu().numpy(), mean))

"""What benchmarks/gpu.py compares the codec with: PyTorch's quantization hooks, and nvCOMP's ANS.

Both are asked for what they do alone, on values and symbols that are already on the device. Each is
left out where it is not there, and the reason is part of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

Stage = tuple[str, Callable[[], object], float]
"""Name, what to time, and the bytes it reads and writes at least."""


def hooks(values: torch.Tensor) -> Iterator[Stage | str]:
    """The kernels of `torch.distributed.algorithms.ddp_comm_hooks.quantization_hooks`, per tensor.

    8 bits a coordinate and no coding; range, scale and zero point are found as its observer does.
    """
    try:
        from torch.distributed.algorithms.ddp_comm_hooks.quantization_hooks import (
            _dequantize_per_tensor_backend as back,
        )
        from torch.distributed.algorithms.ddp_comm_hooks.quantization_hooks import (
            _quantize_per_tensor_backend as quantize,
        )
    except ImportError as error:
        yield f"PyTorch's quantization hooks: left out, {error}"
        return
    n = values.numel()

    def scale() -> tuple[torch.Tensor, torch.Tensor]:
        low, high = torch.aminmax(values)
        step = (high.clamp(min=0) - low.clamp(max=0)) / 255
        return step, torch.round(-low.clamp(max=0) / step)

    step, zero = scale()
    coded = quantize(values, step, zero)
    yield "torch hook: quantise per tensor, 8 bits", lambda: quantize(values, *scale()), 5 * n
    yield "torch hook: dequantise per tensor", lambda: back(coded, step, zero), 5 * n


def ans(values: torch.Tensor, step: float) -> Iterator[Stage | str]:
    """nvCOMP's ANS on the symbols of one stream, one byte each; rounding is not timed."""
    if not values.is_cuda:
        yield "nvCOMP ANS: left out, it needs a CUDA device"
        return
    try:
        from nvidia import nvcomp  # type: ignore[import-not-found]
    except ImportError:
        cuda = (torch.version.cuda or "12").partition(".")[0]
        yield f"nvCOMP ANS: left out, not installed (pip install nvidia-nvcomp-cu{cuda})"
        return
    codes = (values / step).round_().clamp_(-128, 127).add_(128).to(torch.uint8)
    symbols = nvcomp.as_array(codes)
    codec = nvcomp.Codec(algorithm="ANS")
    coded = codec.encode(symbols)
    length, n = int(coded.buffer_size), codes.numel()
    yield (
        f"nvCOMP ANS: encode ({8 * length / n:.2f} bits)",
        lambda: codec.encode(symbols),
        n + length,
    )
    yield "nvCOMP ANS: decode", lambda: codec.decode(coded), n + length

"""The codec for CUDA tensors, in Triton: the same payload bytes as `horovod_qoda.coding`.

Floats stay on the device; payload bytes are made and read in host memory, where MPI takes them.
"""

from __future__ import annotations

try:
    import torch  # noqa: F401
    import triton  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"horovod_qoda.kernels needs {error.name}; install it with: "
        "pip install horovod-qoda[gpu] (and a CUDA build of PyTorch)",
        name=error.name,
    ) from error

from horovod_qoda.kernels.face import Coder, copy_stats, decode, decode_sum, encode, pinned
from horovod_qoda.kernels.intake import Intake, change_statistics, part_statistics
from horovod_qoda.kernels.streams import Streams

__all__ = [
    "Coder",
    "Intake",
    "Streams",
    "change_statistics",
    "copy_stats",
    "decode",
    "decode_sum",
    "encode",
    "part_statistics",
    "pinned",
]

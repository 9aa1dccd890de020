"""Quantized, entropy-coded gradient exchange and the QODA optimizer for Horovod jobs.

Importing this package imports neither PyTorch nor Horovod: names are forwarded when they are first
used. A job imports ``horovod_qoda.torch``, the drop-in for ``horovod.torch``.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

# Public name -> the room that has it. `horovod_qoda.torch` is left out: it needs Horovod, and is
# imported by its own name.
_FORWARDED = {
    "QODA": "horovod_qoda.qoda",
    "OptimisticAdam": "horovod_qoda.qoda",
    "ExtraAdam": "horovod_qoda.qoda",
    "PayloadError": "horovod_qoda.coding",
}

__all__ = ["__version__", *_FORWARDED]


def __getattr__(name: str) -> Any:
    if name not in _FORWARDED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_FORWARDED[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_FORWARDED})

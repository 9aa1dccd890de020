"""How payloads that are coded on devices travel: from host memory, or as the tensors they are.

Horovod refuses a collective to which some ranks bring tensors on devices and others do not, so all
ranks answer for themselves and take the same way.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from horovod_qoda.exchange.codecs import HOST, Codec
from horovod_qoda.transport import Transport

VARIABLE = "HOROVOD_QODA_PAYLOADS"
"""Not one of the settings: what payloads hold does not depend on it.

======  ============================================================================================
host    from pinned host memory, with any build of Horovod. The default: what Horovod does with
        tensors on devices waits for the script's stream (docs/performance-gpu.md)
device  as CUDA tensors, if every rank can and codes the same buffers on a device
======  ============================================================================================
"""

FROM_HOST = "payloads travel by MPI from pinned host memory"


def wanted() -> str:
    """``host`` or ``device``; raises ValueError for anything else."""
    value = os.environ.get(VARIABLE, "host")
    if value not in ("host", "device"):
        raise ValueError(f"{VARIABLE}={value}: use host or device")
    return value


def offer(codecs: Sequence[Codec], transport: Transport) -> dict[str, Any]:
    """What this rank tells the others: which buffers it codes on devices, and why their payloads
    must not travel as tensors; JSON.

    Args:
        codecs: of the buffers, in their order.
    """
    devices = sorted({str(codec.device) for codec in codecs if codec.device is not None})
    refused = [why for why in map(transport.why_not, devices) if why]
    why = f"{VARIABLE}=host" if wanted() == "host" else (refused or [""])[0]
    return {"coded": [codec is not HOST for codec in codecs], "why": why}


def why_from_host(offers: Sequence[dict[str, Any]]) -> str:
    """Why payloads travel from host memory, from what all ranks told; empty where they do not."""
    for rank, told in enumerate(offers):
        if any(told["coded"]) and told["why"]:
            return f"{told['why']} on rank {rank}"
    for rank, told in enumerate(offers):
        if told["coded"] != offers[0]["coded"]:
            return f"rank {rank} codes other buffers on devices than rank 0"
    return ""


def describe(offers: Sequence[dict[str, Any]], transport: Transport) -> str:
    """A sentence for the log; empty where no rank codes on a device."""
    if not any(any(told["coded"]) for told in offers):
        return ""
    if why := why_from_host(offers):
        asked = f", although {VARIABLE}=device asks otherwise" if wanted() == "device" else ""
        return f"{FROM_HOST}{asked} ({why})"
    return f"payloads travel as tensors on their devices, {transport.device_way}"

"""By what gradients on CUDA devices are coded in this process, and how their payloads travel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from horovod_qoda.cli.findings import BROKEN, NOTE, Finding
from horovod_qoda.cli.installation import version
from horovod_qoda.exchange import placement, travel
from horovod_qoda.transport import device_way, why_not_device


def found_here() -> tuple[list[str], str]:
    """(names of this process's CUDA devices in the order of their numbers, PyTorch's CUDA)."""
    try:
        import torch
    except ImportError:
        return [], ""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(i) for i in range(count)], torch.version.cuda or ""


def cuda(
    names: list[str], built_with: str, why_not: Callable[[str], str] = placement.why_not
) -> Iterator[Finding]:
    """What :func:`found_here` means for a job.

    Args:
        why_not: why the kernels cannot be used on a device; empty where they can.
    """
    triton = version("triton")
    about = f"Triton {triton or 'missing'}"
    try:
        mode = placement.wanted()
    except ValueError as error:
        yield Finding("cuda", str(error), BROKEN, f"unset {placement.VARIABLE}")
        return
    try:
        small = placement.host_coded()
    except ValueError as error:
        yield Finding("cuda", str(error), BROKEN, f"unset {placement.HOST_CODED}")
        return
    if not names:
        torch = f"PyTorch for CUDA {built_with}" if built_with else "PyTorch without CUDA"
        yield Finding("cuda", f"no device here ({torch}, {about}); gradients are coded by the CPU")
        return
    for index, name in enumerate(names):
        why = f"{placement.VARIABLE}=native asks for it" if mode == "native" else ""
        why = why or why_not(f"cuda:{index}")
        if not why:
            yield Finding(
                "cuda",
                f"cuda:{index} ({name}): gradients are coded there by {about}, checked against "
                "the native codec"
                + (
                    f"; payloads of up to {small} symbols that leave from the host by the CPU"
                    if small
                    else ""
                ),
            )
            continue
        yield Finding(
            "cuda",
            f"cuda:{index} ({name}): gradients are copied to the host as float32 and coded by the "
            f"CPU, because {why}",
            NOTE,
            _remedy(mode, triton),
        )


def payloads(names: list[str], hvd: Any) -> Iterator[Finding]:
    """How the payloads of gradients on these devices travel; nothing where there are none.

    Args:
        hvd: ``horovod.torch``.
    """
    try:
        asked = travel.wanted() == "device"
    except ValueError as error:
        yield Finding("payloads", str(error), BROKEN, f"unset {travel.VARIABLE}")
        return
    if not names:
        return
    why = why_not_device(hvd, "cuda")
    if asked and why:
        without = "make setup ARGS=--gpu" if not hvd.cuda_built() else f"{travel.VARIABLE}=host"
        yield Finding("payloads", f"{travel.FROM_HOST}, because {why}", NOTE, without)
    elif asked:
        yield Finding(
            "payloads",
            f"payloads travel as CUDA tensors, {device_way(hvd)}, if all ranks ask for it",
        )
    else:
        how = why or f"{travel.VARIABLE}=device sends them as CUDA tensors, {device_way(hvd)}"
        yield Finding("payloads", f"{travel.FROM_HOST} ({how})")


def leave_device(
    names: list[str], hvd: Any, why_not: Callable[[str], str] = placement.why_not
) -> bool:
    """Whether gradients on these devices, summed on their host first, would leave them as float32.

    They would where they are coded there and nothing travels as tensors; `find_hosts` asks for it.

    Args:
        hvd: ``horovod.torch``.
        why_not: as for :func:`cuda`.
    """
    try:
        mode, way = placement.wanted(), travel.wanted()
    except ValueError:
        return False  # a finding already
    coded = bool(names) and mode != "native" and not why_not("cuda:0")
    return coded and (way == "host" or bool(why_not_device(hvd, "cuda")))


def _remedy(mode: str, triton: str) -> str:
    if mode == "native":
        return f"{placement.VARIABLE}=auto"
    if not triton:
        return "pip install horovod-qoda[gpu]"
    return "please report it with this line; jobs are right all the same, and slower"

"""Where each buffer is coded: on the device its gradients are on, or on the host, and why there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from horovod_qoda.exchange.codecs import HOST, Codec
from horovod_qoda.layout import Buffer, Layout

if TYPE_CHECKING:
    from horovod_qoda.exchange.device import DeviceCodec

VARIABLE = "HOROVOD_QODA_KERNELS"
"""Not one of the settings, which have to be the same on all ranks: payloads are the same bytes
whatever makes them.

=========  =========================================================================================
auto       CUDA tensors are coded on their device where that is possible
native     everything is coded on the host
triton     as auto, and an error where it is not possible; with TRITON_INTERPRET=1, tensors in the
           CPU's memory are coded by the kernels too, in Triton's interpreter (very slow, for tests)
=========  =========================================================================================
"""

HOST_CODED = "HOROVOD_QODA_HOST_CODED"
"""Payloads of at most so many symbols leave their device as symbols of a byte each, and the CPU
codes them; 0 by default. For payloads that travel from pinned host memory."""


def host_coded() -> int:
    """Symbols of the largest payload that the CPU codes; raises ValueError for no such number."""
    value = os.environ.get(HOST_CODED, "0")
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"{HOST_CODED}={value}: use a number of symbols, 65536 for example, or 0")
    return int(value)


def wanted() -> str:
    """``auto``, ``native`` or ``triton``; raises ValueError for anything else."""
    value = os.environ.get(VARIABLE, "auto")
    if value not in ("auto", "native", "triton"):
        raise ValueError(f"{VARIABLE}={value}: use auto, native or triton")
    return value


@cache
def why_not(device: str) -> str:
    """Why the kernels cannot be used on a device; empty where they can.

    On a CUDA device they code one small case, which is compared with the native codec.
    """
    try:
        from horovod_qoda.kernels.check import problem
    except ImportError as e:
        return str(e)
    return problem(device)


class Placement:
    """Chooses the codec of each buffer of one exchange.

    Args:
        devices: of each layer's gradient, torch devices; all on the CPU where it is None.
    """

    def __init__(self, layout: Layout, devices: Sequence[Any] | None) -> None:
        self._layout = layout
        self._devices = ["cpu"] * len(layout.layers) if devices is None else list(map(str, devices))
        self._host_coded = host_coded()
        self._codecs: dict[str, DeviceCodec] = {}
        self._coded: Counter[str] = Counter()
        self._copied: Counter[tuple[str, str]] = Counter()

    @property
    def codecs(self) -> list[Codec]:
        """Those in use besides the host's."""
        return list(self._codecs.values())

    def codec(self, plan: Buffer) -> Codec:
        """For one buffer: of the device that most of its coordinates are on, if that can be."""
        here: Counter[str] = Counter()
        for layer in plan.layers:
            # At least 1: a buffer of empty layers is somewhere too.
            here[self._devices[layer]] += max(self._layout.layers[layer].numel, 1)
        mode = wanted()
        interpreted = mode == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        if not here or (set(here) == {"cpu"} and not interpreted):
            return HOST
        device = here.most_common(1)[0][0]
        why = self._why_host(plan, set(here), mode)
        why = why or why_not(device)
        if why:
            if mode == "triton" and not interpreted:
                raise RuntimeError(f"{VARIABLE}=triton, and buffer {plan.index}: {why}")
            self._copied[", ".join(sorted(set(here) - {"cpu"})) or device, why] += 1
            return HOST
        self._coded[device] += 1
        if device not in self._codecs:
            import torch

            from horovod_qoda.exchange.device import DeviceCodec

            self._codecs[device] = DeviceCodec(torch.device(device), self._host_coded)
        return self._codecs[device]

    def _why_host(self, plan: Buffer, devices: set[str], mode: str) -> str:
        if mode == "native":
            return f"{VARIABLE}=native asks for it"
        if "cpu" in devices and len(devices) > 1:
            return "layers whose gradients are in the CPU's memory share their buffers"
        if other := {d.partition(":")[0] for d in devices} - {"cuda", "cpu"}:
            return f"there are no kernels for {', '.join(sorted(other))}"
        if any(self._layout.types[self._layout.layers[i].type].low_rank for i in plan.layers):
            return "PowerSGD multiplies its matrices on the host"
        return ""

    def describe(self) -> list[str]:
        """Sentences for the log; none where all gradients are in the CPU's memory."""
        total = sum(self._coded.values()) + sum(self._copied.values())

        def buffers(count: int) -> str:
            return "all buffers" if count == total else f"{count} of {total} buffers"

        said = [
            f"gradients on {device} are coded there by Triton kernels ({buffers(count)})"
            for device, count in self._coded.items()
        ]
        if self._coded and self._host_coded:
            said.append(
                f"{HOST_CODED}={self._host_coded} has no effect: payloads stay on their devices"
                if all(codec.sends for codec in self._codecs.values())
                else f"payloads of up to {self._host_coded} symbols are coded by the CPU, from "
                f"symbols of a byte each ({HOST_CODED})"
            )
        for (device, why), count in self._copied.items():
            said.append(
                f"gradients on {device} are copied to the host as float32 and coded by the CPU "
                f"({buffers(count)}): {why}"
            )
        return said

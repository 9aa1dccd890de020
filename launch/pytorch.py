"""PyTorch: one that is there is kept, else the CPU build is installed.

Where to take it from, in this order:

1. PyTorch's own index of CPU builds. On PyPI, "torch" for x86-64 Linux means the CUDA build.
2. The configured index, asked for the CPU build by its name (+cpu): mirrors and wheel folders.
3. The configured index, whatever it offers. This may be the CUDA build, and is said.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from launch import pins, venv
from launch.errors import SetupError


def ensure(environment: Path, log: Path, say: Callable[[str], None]) -> tuple[str, str]:
    """Version of the PyTorch that the environment has in the end, and where it came from."""
    there = venv.versions(environment, ["torch"], log)["torch"]
    if there is not None:
        match = re.match(r"(\d+)\.(\d+)", there)
        if match is None or (int(match[1]), int(match[2])) < pins.TORCH_OLDEST:
            oldest = ".".join(map(str, pins.TORCH_OLDEST))
            raise SetupError(
                f"PyTorch {there} is too old: {oldest} or newer is needed",
                "upgrade it, or run set-up with a Python that has none: make setup PYTHON=...",
            )
        return there, "kept"
    say(f"torch: installing the CPU build of {pins.TORCH} (200 MB)")
    came_from = _install(environment, log, say)
    installed = venv.versions(environment, ["torch"], log)["torch"]
    if installed is None:
        raise SetupError("pip installed no PyTorch", "the log has its output")
    return installed, came_from


def _install(environment: Path, log: Path, say: Callable[[str], None]) -> str:
    cpu, plain = f"torch=={pins.TORCH}+cpu", f"torch=={pins.TORCH}"
    if reachable(pins.TORCH_CPU_INDEX):
        try:
            # Alone from that index: what it depends on comes from the configured one, just below.
            venv.pip_install(
                environment, "--no-deps", "--index-url", pins.TORCH_CPU_INDEX, cpu, log=log
            )
            venv.pip_install(environment, cpu, log=log)
            return f"installed from {pins.TORCH_CPU_INDEX}"
        except SetupError as error:
            say(f"torch: {pins.TORCH_CPU_INDEX} did not work ({error.problem.splitlines()[0]})")
    else:
        say(f"torch: {pins.TORCH_CPU_INDEX} cannot be reached; asking the configured index")
    try:
        venv.pip_install(environment, cpu, log=log)
        return "installed from the configured index"
    except SetupError:
        say("torch: no +cpu build there; taking what it offers, which may be the CUDA build (GBs)")
    venv.pip_install(environment, plain, log=log)
    return "installed from the configured index, not marked as a CPU build"


def reachable(url: str, seconds: float = 4) -> bool:
    """Whether a server answers at all; pip itself would retry for minutes.

    4 s are long for a host that is there and short for someone who waits.
    """
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/", method="HEAD"), timeout=seconds
        ):
            return True
    except urllib.error.HTTPError as answer:
        return answer.code < 500
    except (OSError, ValueError):
        return False

"""Named ranges in the traces of torch.profiler, which cost nothing while no profiler runs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_nothing = nullcontext()


def profiling() -> bool:
    """Whether a torch.profiler records in this process; False before PyTorch 2.2, which has no such
    flag, and where PyTorch is not loaded."""
    # An inactive record_function costs 100 times this look at the flag that torch itself looks at.
    profiler = sys.modules.get("torch.autograd.profiler")
    return getattr(profiler, "_is_profiler_enabled", False)


def span(name: str) -> AbstractContextManager[Any]:
    """A block as a range of the profiler's trace."""
    return _record(name) if profiling() else _nothing


def ranged(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes every call of a function a range of the profiler's trace.

    A profiler sees the thread that started it, and autograd's. What the exchange's own thread does
    is in the trace where it was told to look at all of them:
    ``experimental_config=torch._C._profiler._ExperimentalConfig(profile_all_threads=True)``.
    """

    def around(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if not profiling():
                return function(*args, **kwargs)
            with _record(name):
                return function(*args, **kwargs)

        return call

    return around


def _record(name: str) -> AbstractContextManager[Any]:
    import torch

    return torch.profiler.record_function(name)

"""One of each optimizer, and steps that can be repeated, for tests that hold for all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from horovod_qoda.qoda import QODA, ExtraAdam, OptimisticAdam

KINDS: dict[str, Any] = {
    "coupled": lambda params: QODA(params, lr=0.3),
    "separated": lambda params: QODA(params, lr=0.3, variant="separated", q_hat=0.1),
    "not ergodic": lambda params: QODA(params, lr=0.3, ergodic=False),
    "optimistic adam": lambda params: OptimisticAdam(params, lr=0.01),
    "extra adam": lambda params: ExtraAdam(params, lr=0.01),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make_params(dtype: torch.dtype = torch.float32, seed: int = 3) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (5,), (), (0,), (2, 0, 3), (1,)]
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def advance(optimizer: Any, params: list[torch.nn.Parameter], first: int, last: int) -> None:
    """Steps `first` to `last` − 1, with gradients that depend on the step's number alone."""
    for t in range(first, last):
        for half in range(2 if isinstance(optimizer, ExtraAdam) else 1):
            generator = torch.Generator().manual_seed(2 * t + half)
            for param in params:
                grad = torch.randn(param.shape, generator=generator)
                param.grad = grad.to(param.dtype)
            if isinstance(optimizer, ExtraAdam) and half == 0:
                optimizer.extrapolation()
        optimizer.step()


def values(params: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [param.detach().clone() for param in params]


def assert_same(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)

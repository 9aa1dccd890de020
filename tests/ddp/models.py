"""Models, precisions and hooks under DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import (
    default_hooks,
    powerSGD_hook,
    quantization_hooks,
)
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint

from tests.ddp.checks import (
    batch,
    expect,
    gradients,
    net,
    same,
    square,
    verdict,
)


def unused(rank: int, **options: Any) -> str:
    """The last layer is used by rank 0 alone."""
    model = net()
    ddp = DDP(Headless(model), **options)
    for _ in range(3):
        x = batch()
        model.zero_grad()
        square(ddp(x, rank == 0)).backward()
    return verdict(model, gradients(model, lambda m: square(Headless(m)(x, rank == 0))))


class Headless(nn.Module):
    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, whole: bool) -> torch.Tensor:
        return self.model(x) if whole else self.model[:2](x)


@expect("Connection", "finished reduction in the prior")
def unused_layers(rank: int) -> str:
    return unused(rank)


@expect("mean")
def unused_layers_announced(rank: int) -> str:
    return unused(rank, find_unused_parameters=True)


@expect("finished reduction in the prior")
def frozen_after_wrapping(rank: int) -> str:
    return frozen(rank, before=False)


@expect("mean")
def frozen_after_wrapping_announced(rank: int) -> str:
    return frozen(rank, before=False, find_unused_parameters=True)


@expect("local (2.weight)")
def thawed_after_wrapping(rank: int) -> str:
    return frozen(rank, before=True)


def frozen(rank: int, before: bool, **options: Any) -> str:
    model = net()
    model[2].weight.requires_grad_(not before)
    ddp = DDP(model, **options)
    model[2].weight.requires_grad_(before)
    seen = ""
    for _ in range(3):
        x = batch()
        model.zero_grad()
        square(ddp(x)).backward()
        seen = verdict(model, gradients(model, lambda m, x=x: square(m(x))))
    return seen


@expect("mean")
def sparse(rank: int) -> str:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 8, sparse=True), nn.Linear(8, 4))
    ddp = DDP(model)
    torch.manual_seed(100 + rank)
    rows = torch.randint(0, 50, (6,))
    square(ddp(rows)).backward()
    return verdict(model, gradients(model, lambda m: square(m(rows))))


@expect("mean, kept True")
def channels_last(rank: int) -> str:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
    model.to(memory_format=torch.channels_last)
    ddp = DDP(model)
    torch.manual_seed(100 + rank)
    x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    square(ddp(x)).backward()
    kept = model[2].weight.grad.is_contiguous(memory_format=torch.channels_last)
    return f"{verdict(model, gradients(model, lambda m: square(m(x))))}, kept {kept}"


@expect("mean")
def bfloat16(rank: int) -> str:
    model = net().to(torch.bfloat16)
    ddp, x = DDP(model), batch().bfloat16()
    square(ddp(x)).backward()
    return verdict(model, gradients(model, lambda m: square(m(x))), rtol=0.02)


class Odd(nn.Module):
    """Parameters of several dtypes, one transposed, one empty, one scalar."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f16 = nn.Parameter(torch.randn(8, 4).half())
        self.f64 = nn.Parameter(torch.randn(8, 4).double())
        self.turned = nn.Parameter(torch.randn(4, 8).t())
        self.empty = nn.Parameter(torch.zeros(0, 7))
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.f16.float() + self.f64.float() + self.turned
        return x @ weight * self.one + self.empty.sum()


@expect("mean")
def dtypes_and_strides(rank: int) -> str:
    model = Odd()
    ddp = DDP(model)
    torch.manual_seed(100 + rank)
    x = batch()
    square(ddp(x)).backward()
    return verdict(model, gradients(model, lambda m: square(m(x))), rtol=0.01)


def not_finite(rank: int, attach: Callable[[DDP], None]) -> str:
    """NaN in one gradient of rank 0 in the fourth step: layers that have it then, and after."""
    model = net()
    ddp = DDP(model)
    attach(ddp)
    seen = []
    for step in range(6):
        model.zero_grad()
        spoilt = rank == 0 and step == 3
        hook = model[2].weight.register_hook(lambda g, s=spoilt: g * float("nan") if s else g)
        square(ddp(batch())).backward()
        hook.remove()
        bad = [n for n, p in model.named_parameters() if not p.grad.isfinite().all()]
        seen.append("+".join(bad) or "none")
    return f"{seen[2]}, {seen[3]}, then {seen[4]}, {seen[5]}"


@expect("none, 2.weight, then none, none")
def nan_without_hook(rank: int) -> str:
    return not_finite(rank, lambda ddp: None)


@expect("none, 2.weight, then none, none")
def nan_with_fp16(rank: int) -> str:
    return not_finite(rank, lambda d: d.register_comm_hook(None, default_hooks.fp16_compress_hook))


@expect("none, 2.weight, then 2.weight, 2.weight")
def nan_with_powersgd(rank: int) -> str:
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
    return not_finite(rank, lambda d: d.register_comm_hook(state, powerSGD_hook.powerSGD_hook))


@expect("IndexError")
def eight_bit_hook(rank: int) -> str:
    """The hook takes apart results that only NCCL nests in lists."""
    model = net()
    ddp = DDP(model)
    ddp.register_comm_hook(dist.group.WORLD, quantization_hooks.quantization_pertensor_hook)
    square(ddp(batch())).backward()
    return f"same {same(model)}"


def checkpointed(reentrant: bool, **options: Any) -> str:
    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = checkpoint(self.model[:2], x, use_reentrant=reentrant)
            return checkpoint(self.model[2], hidden, use_reentrant=reentrant)

    model = Saving()
    ddp = DDP(model, **options)
    seen = ""
    for _ in range(3):
        model.zero_grad()
        x = batch().requires_grad_()
        square(ddp(x)).backward()
        seen = verdict(model, gradients(model, lambda m, x=x: square(m(x))))
    return seen


@expect("mean")
def checkpointing(rank: int) -> str:
    return checkpointed(False)


@expect("mean")
def checkpointing_reentrant(rank: int) -> str:
    return checkpointed(True)


@expect("ready only once")
def checkpointing_reentrant_find_unused(rank: int) -> str:
    return checkpointed(True, find_unused_parameters=True)


@expect("mean")
def checkpointing_reentrant_static_graph(rank: int) -> str:
    return checkpointed(True, find_unused_parameters=True, static_graph=True)

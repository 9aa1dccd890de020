"""Cases of DistributedDataParallel: how to declare one, and what its gradients should be."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

SIZE = 2
CASES: dict[str, tuple[Callable[[int], str], tuple[str, ...]]] = {}


def expect(*outcomes: str) -> Callable[[Callable[[int], str]], Callable[[int], str]]:
    """A case, and what its outcome must hold: on all ranks, or on rank 0 and on rank 1."""

    def register(case: Callable[[int], str]) -> Callable[[int], str]:
        CASES[case.__name__] = (case, outcomes * (SIZE // len(outcomes)))
        return case

    return register


def net(seed: int = 0, sizes: Iterable[int] = (8, 32, 16)) -> nn.Sequential:
    torch.manual_seed(seed)
    a, b, c = sizes
    model = nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c))
    torch.manual_seed(100 + dist.get_rank())
    return model


def batch(width: int = 8) -> torch.Tensor:
    return torch.randn(12, width)


def square(y: torch.Tensor) -> torch.Tensor:
    return y.float().square().mean()


def gradients(model: nn.Module, *losses: Callable[[nn.Module], torch.Tensor]) -> list[Any]:
    """This rank's own gradients of the sum of losses, by a copy that nobody averages."""
    copied = twin(model)
    for loss in losses:
        loss(copied).backward()
    return [p.grad for p in copied.parameters()]


def twin(model: nn.Module) -> nn.Module:
    """A copy without gradients, whose backward fires no hooks of DDP."""
    copied = copy.deepcopy(model)
    for p in copied.parameters():
        p.grad = None
    return copied


def verdict(model: nn.Module, own: list[Any], factor: float = 1.0, rtol: float = 1e-5) -> str:
    """Says "mean" where model's gradients are the mean of all ranks' own, times a factor."""
    seen: dict[str, list[str]] = {}
    for (name, p), g in zip(model.named_parameters(), own, strict=True):
        mine, have = (
            torch.zeros_like(p, dtype=torch.double)
            if x is None
            else (x.to_dense() if x.is_sparse else x).double().contiguous()
            for x in (g, p.grad)
        )
        mean = mine.clone()
        dist.all_reduce(mean)
        mean *= factor / SIZE
        kinds = {"mean": mean, "local": mine, "zero": torch.zeros_like(mean)}
        alike = (k for k, x in kinds.items() if torch.allclose(have, x, rtol=rtol, atol=rtol))
        seen.setdefault(next(alike, "wrong"), []).append(name)
    if len(seen) == 1:
        return next(iter(seen))
    return ", ".join(f"{kind} ({' '.join(names)})" for kind, names in seen.items())


def same(model: nn.Module) -> bool:
    """Whether parameters are equal to the bit on all ranks."""
    mine = torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])
    everyone = [torch.empty_like(mine) for _ in range(SIZE)]
    dist.all_gather(everyone, mine)
    return all(torch.equal(e.nan_to_num(), everyone[0].nan_to_num()) for e in everyone)


def refusal(call: Callable[[], Any]) -> str:
    """First sentence of what a call raises, or "no error"."""
    try:
        call()
    except Exception as e:
        return said(e)
    return "no error"


def said(e: Exception) -> str:
    text = str(e).strip().splitlines()[0].rpartition("when running the callback: ")[2]
    text = re.sub(r"^\[/\S+\] ", "", text)  # file of torch's source
    return f"{type(e).__name__}: {text[:110]}"

"""Ranks that differ, stop early or are lost, under DistributedDataParallel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.ddp.checks import (
    batch,
    expect,
    net,
    refusal,
    same,
    square,
)


@expect("same True")
def replicas_that_differ(rank: int) -> str:
    model = net(seed=dist.get_rank())
    DDP(model)
    return f"same {same(model)}"


@expect("Connection", "appears not to match sizes")
def other_shapes(rank: int) -> str:
    return refusal(lambda: DDP(net(sizes=(8, 32 + rank, 16))))


@expect("DDP expects same model across all ranks")
def other_number_of_layers(rank: int) -> str:
    return refusal(lambda: DDP(net()[: 1 + 2 * rank]))


@expect("same True")
def join(rank: int) -> str:
    model = net()
    ddp = DDP(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Join([ddp]):
        for _ in range(3 + rank):
            optimizer.zero_grad()
            square(ddp(batch())).backward()
            optimizer.step()
    return f"same {same(model)}"


def interrupted(rank: int, event: Callable[[], Any]) -> str:
    model = net()
    ddp = DDP(model)
    for step in range(3):
        if step == 2 and rank == 1:
            event()
        square(ddp(batch())).backward()
    return "no error"


@expect("RuntimeError: ", "its own mistake")
def a_rank_raises(rank: int) -> str:
    def event() -> None:
        raise KeyError("its own mistake")

    return interrupted(rank, event)


@expect("Connection", "ended with 9")
def a_rank_ends(rank: int) -> str:
    return interrupted(rank, lambda: os._exit(9))


@expect("Timed out", "")
def a_rank_hangs(rank: int) -> str:
    return interrupted(rank, lambda: time.sleep(30))

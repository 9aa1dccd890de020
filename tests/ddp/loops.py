"""What scripts do, under DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.ddp.checks import (
    SIZE,
    batch,
    expect,
    gradients,
    net,
    same,
    square,
    twin,
    verdict,
)

Loss = Callable[[nn.Module], torch.Tensor]


@expect("mean")
def average(rank: int) -> str:
    model = net()
    ddp, x = DDP(model), batch()
    square(ddp(x)).backward()
    return verdict(model, gradients(model, lambda m: square(m(x))))


@expect("sum: mean")
def sum_by_a_hook(rank: int) -> str:
    model = net()
    ddp, x = DDP(model), batch()

    def hook(state, bucket):  # DDP compares annotations by identity
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda f: f.value()[0])

    ddp.register_comm_hook(None, hook)
    square(ddp(x)).backward()
    return "sum: " + verdict(model, gradients(model, lambda m: square(m(x))), factor=SIZE)


@expect("mean")
def no_sync_on_ranks_of_their_choice(rank: int) -> str:
    model = net()
    ddp, x, y = DDP(model), batch(), batch()
    own = [lambda m: square(m(x))]
    if rank:
        with ddp.no_sync():
            square(ddp(y)).backward()
        own.append(lambda m: square(m(y)))
    square(ddp(x)).backward()
    return verdict(model, gradients(model, *own))


@expect("mean")
def several_backwards(rank: int) -> str:
    model = net()
    ddp, x, y = DDP(model), batch(), batch()
    square(ddp(x)).backward()
    square(ddp(y)).backward()
    return verdict(model, gradients(model, lambda m: square(m(x)), lambda m: square(m(y))))


@expect("without its own second gradient: mean")
def two_forwards_then_two_backwards(rank: int) -> str:
    """Only the first backward is averaged; the second adds what is this rank's alone."""
    model = net()
    ddp, x, y = DDP(model), batch(), batch()
    first, second = square(ddp(x)), square(ddp(y))
    first.backward()
    second.backward()
    for p, g in zip(model.parameters(), gradients(model, lambda m: square(m(y))), strict=True):
        p.grad -= g
    seen = verdict(model, gradients(model, lambda m: square(m(x))))
    return f"without its own second gradient: {seen}"


def players() -> tuple[nn.Module, nn.Module, DDP, DDP]:
    """Generator and critic, and both wrapped."""
    g, d = net(), net(1, (16, 32, 1))
    return g, d, DDP(g), DDP(d)


def critic_loss(g: nn.Module, z: torch.Tensor, x: torch.Tensor) -> Loss:
    return lambda m: m(twin(g)(z)).mean() - m(x).mean()


def generator_loss(d: nn.Module, z: torch.Tensor) -> Loss:
    return lambda m: -twin(d)(m(z)).mean()


@expect("mean, mean")
def alternating(rank: int) -> str:
    g, d, pg, pd = players()
    seen = []
    for _ in range(4):
        z, x = batch(), batch(16)
        d.zero_grad()
        (pd(pg(z).detach()).mean() - pd(x).mean()).backward()
        seen = [verdict(d, gradients(d, critic_loss(g, z, x)))]
        g.zero_grad()
        (-pd(pg(z)).mean()).backward()
        seen.append(verdict(g, gradients(g, generator_loss(d, z))))
    return ", ".join(seen)


@expect("mean, local")
def joint_forward(rank: int) -> str:
    """One forward, two backwards, requires_grad toggled in between."""
    g, d, pg, pd = players()
    seen = []
    for _ in range(3):
        z, x = batch(), batch(16)
        g.zero_grad()
        d.zero_grad()
        fake = pd(pg(z)).mean()
        loss = fake - pd(x).mean()
        g.requires_grad_(False)
        loss.backward(retain_graph=True)
        g.requires_grad_(True)
        for p in g.parameters():
            p.grad = None
        d.requires_grad_(False)
        (-fake).backward()
        d.requires_grad_(True)
        seen = [
            verdict(d, gradients(d, critic_loss(g, z, x))),
            verdict(g, gradients(g, generator_loss(d, z))),
        ]
    return ", ".join(seen)


@expect("mean, mean")
def two_backwards_two_steps(rank: int) -> str:
    g, d, pg, pd = players()
    seen = []
    for _ in range(3):
        z, x = batch(), batch(16)
        g.zero_grad()
        d.zero_grad()
        (pd(pg(z).detach()).mean() - pd(x).mean()).backward()
        (-pd(pg(z)).mean()).backward()
        own = gradients(d, critic_loss(g, z, x), lambda m, z=z: -m(twin(g)(z)).mean())
        seen = [verdict(d, own), verdict(g, gradients(g, generator_loss(d, z)))]
    return ", ".join(seen)


@expect("mean")
def penalty(rank: int) -> str:
    d = net(1, (16, 32, 1))
    ddp = DDP(d)

    def loss(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out = m(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out.mean() + ((slope.norm(dim=1) - 1) ** 2).mean()

    seen = ""
    for _ in range(3):
        x = batch(16).requires_grad_()
        d.zero_grad()
        loss(ddp, x).backward()
        seen = verdict(d, gradients(d, lambda m, x=x: loss(m, x)))
    return seen


@expect("local (3.0.weight 3.0.bias 3.2.weight 3.2.bias)")
def layer_added_after_wrapping(rank: int) -> str:
    model = net()
    ddp, x = DDP(model), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.append(net(2, (16, 8, 4)))
    optimizer.add_param_group({"params": list(model[3].parameters())})
    square(ddp(x)).backward()
    return verdict(model, gradients(model, lambda m: square(m(x))))


@expect("same True")
def closure(rank: int) -> str:
    model = net()
    ddp = DDP(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def evaluate() -> float:
        optimizer.zero_grad()
        loss = square(ddp(batch()))
        loss.backward()
        return loss.item()

    for _ in range(3):
        optimizer.step(evaluate)
    return f"same {same(model)}"


@expect("mean")
def compiled(rank: int) -> str:
    model = net()
    fast, x = torch.compile(DDP(model), backend="aot_eager"), batch()
    square(fast(x)).backward()
    return verdict(model, gradients(model, lambda m: square(m(x))))


@expect("scale 128, same True")
def scaler_overflow_on_one_rank(rank: int) -> str:
    model = net()
    ddp = DDP(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for step in range(4):
        optimizer.zero_grad()
        loss = square(ddp(batch())) * (float("inf") if rank and step == 2 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return f"scale {scaler.get_scale():g}, same {same(model)}"


@expect("mean")
def group_of_one_rank(rank: int) -> str:
    alone = dist.new_group([0])
    model, mine = net(), net(1)
    if rank == 0:
        own = DDP(mine, process_group=alone)
        square(own(batch())).backward()
    ddp, x = DDP(model), batch()
    square(ddp(x)).backward()
    return verdict(model, gradients(model, lambda m: square(m(x))))

"""Trains twice in one job, with stock Horovod and with this plugin's import, uncompressed.

Prints the greatest difference of any parameter after each step, as JSON on rank 0.
"""

import json

import horovod.torch as stock
import torch

import horovod_qoda.torch as plugin

STEPS = 20


def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.Linear(64, 1)
    )


def train(hvd, name, **options):
    """The parameters after every step."""
    model = build()
    named = [(f"{name}.{n}", p) for n, p in model.named_parameters()]
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(model.parameters(), lr=1e-2), named, **options
    )
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    data = torch.Generator().manual_seed(hvd.rank())
    states = []
    for _ in range(STEPS):
        for _ in range(options.get("backward_passes_per_step", 1)):
            x = torch.randn(8, 16, generator=data)
            (model(x) - x.prod(dim=1, keepdim=True)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        states.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))
    return states


def main():
    plugin.init()
    for number, options in enumerate(
        (
            {},
            {"op": stock.Sum},
            {"backward_passes_per_step": 2},
            {"gradient_predivide_factor": 2.0},
            {"compression": "fp16"},
        )
    ):
        kind = options.pop("compression", "none")
        theirs = train(stock, f"a{number}", compression=getattr(stock.Compression, kind), **options)
        ours = train(plugin, f"b{number}", compression=getattr(plugin.Compression, kind), **options)
        largest = [float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True)]
        moved = float((ours[-1] - ours[0]).abs().max())
        if plugin.rank() == 0:
            options = {k: str(v) for k, v in options.items()}
            print(
                json.dumps({"options": options, "kind": kind, "largest": largest, "moved": moved})
            )


main()

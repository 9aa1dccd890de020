"""One rank differs from the others; every rank must be told before anything is exchanged."""

import sys

import torch
from torch import nn

import horovod_qoda.torch as hvd


def refuse(what: str) -> None:
    odd = hvd.rank() == hvd.size() - 1
    torch.manual_seed(0)
    width = 48 if odd and what == "shape" else 64
    layers = [("first", nn.Linear(32, width)), ("second", nn.Linear(width, 40))]
    if odd and what == "order":
        layers.reverse()
    model = nn.ModuleDict(dict(layers))
    if odd and what == "parameters":
        with torch.no_grad():
            model["second"].weight[0, 0] += 1
    settings = {"bits": 4 if odd and what == "bits" else 3}
    if odd and what == "rules":
        settings["rules"] = {"first*": "raw"}
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.layerwise(**settings),
    )
    before = [p.detach().clone() for p in model.parameters()]
    try:
        model["second"](model["first"](torch.randn(4, 32))).sum().backward()
        optimizer.step()
    except hvd.MismatchError as e:
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        print(f"{what}: rank {hvd.rank()} was told: {e}", flush=True)
        return
    if what != "parameters":  # a warning, which stock Horovod does not give either
        raise SystemExit(f"rank {hvd.rank()}: {what} went unnoticed")


if __name__ == "__main__":
    hvd.init()
    for what in sys.argv[1:]:
        refuse(what)

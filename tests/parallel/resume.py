"""Trains, saves in the middle, and resumes in new objects: the same bits, or the defined behaviour.

resume.py FOLDER save | resume | resume-without-local
"""

import sys
from pathlib import Path

import torch

import horovod_qoda.torch as hvd

STEPS, STOP = 24, 11


KINDS = ("adam", "qoda", "separated", "stock")
"""The last: QODA whose gradients travel by stock Horovod, which keeps vectors of its own."""


def build(kind):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
    options = {
        "named_parameters": model.named_parameters(),
        "compression": hvd.Compression.layerwise(bits=3, topology="scatter_reduce"),
    }
    if kind == "adam":
        optimizer = hvd.DistributedOptimizer(torch.optim.Adam(model.parameters()), **options)
        return model, optimizer
    if kind == "stock":
        options["compression"] = hvd.Compression.none
    variant = "separated" if kind == "separated" else "coupled"
    return model, hvd.DistributedQODA(model.parameters(), lr=0.5, variant=variant, **options)


def step(model, optimizer, number):
    torch.manual_seed(1000 * number + hvd.rank())
    x = torch.randn(16, 64)
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(x), x.flip(1)).backward()
    optimizer.step()


def bits(model):
    return [p.detach().clone() for p in model.parameters()]


def main(folder, mode):
    for kind in KINDS:
        shared = Path(folder) / f"{kind}.pt"
        local = Path(folder) / f"{kind}.{hvd.rank()}.pt"
        model, optimizer = build(kind)
        if mode == "save":
            hvd.broadcast_parameters(model.state_dict(), root_rank=0)
            for number in range(STEPS):
                if number == STOP:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    if hvd.rank() == 0:
                        torch.save(state, shared)
                    torch.save(optimizer.local_state_dict(), local)
                step(model, optimizer, number)
            torch.save(bits(model), Path(folder) / f"{kind}.end.{hvd.rank()}.pt")
            continue
        # As scripts do: rank 0 loads, everyone gets it by broadcast.
        if hvd.rank() == 0:
            state = torch.load(shared)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        if mode == "resume":
            optimizer.load_local_state_dict(torch.load(local))
        for number in range(STOP, STEPS):
            step(model, optimizer, number)
        want = torch.load(Path(folder) / f"{kind}.end.{hvd.rank()}.pt")
        same = all(torch.equal(a, b) for a, b in zip(want, bits(model), strict=True))
        far = max(float((a - b).abs().max()) for a, b in zip(want, bits(model), strict=True))
        print(f"{kind} {mode} rank {hvd.rank()}: same={same} far={far:.2e}", flush=True)


if __name__ == "__main__":
    hvd.init()
    main(*sys.argv[1:])

"""Trains a small model on every rank and prints what the test wants to know, as JSON on rank 0.

Several runs in one job: their arguments separated by --next.
"""

import argparse
import json
import sys

import numpy as np
import torch

import horovod_qoda.torch as hvd
from horovod_qoda.flags import add_arguments, from_arguments
from horovod_qoda.torch.replicas import hash_parameters


def train(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--overlap", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--optimizer", choices=["adam", "sgd", "qoda"], default="adam")
    parser.add_argument("--corrupt", type=int, default=-1, help="rank whose parameter is changed")
    parser.add_argument("--check", type=int, default=0)
    parser.add_argument("--compression", default="layerwise")
    add_arguments(parser)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 1),
    )
    settings = from_arguments(args)
    names = model.named_parameters()
    compression = hvd.Compression.layerwise
    if args.compression == "layerwise":
        compression = compression(**{k: getattr(settings, k) for k in vars(settings)})
    else:
        compression = getattr(hvd.Compression, args.compression)
    options = {
        "named_parameters": names,
        "compression": compression,
        "replica_check_steps": args.check,
        "overlap": {"auto": "auto", "on": True, "off": False}[args.overlap],
    }
    if args.optimizer == "qoda":
        optimizer = hvd.DistributedQODA(model.parameters(), lr=0.1, **options)
    else:
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[args.optimizer]
        optimizer = hvd.DistributedOptimizer(kind(model.parameters(), lr=1e-3), **options)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    records = []
    optimizer.add_listener(records.append)
    rng = torch.Generator().manual_seed(hvd.rank())
    losses = []
    for step in range(args.steps):
        x = torch.randn(32, 64, generator=rng)
        y = torch.sin(x[:, :1] * 2) + x[:, 1:2] * x[:, 2:3]
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if hvd.rank() == args.corrupt and step == args.steps // 2:
            with torch.no_grad():
                model[2].weight[3, 5] += 1e-3
    mine = torch.tensor(np.array(hash_parameters(model.parameters()), np.uint64).view(np.int64))
    hashes = hvd.allgather(mine.reshape(1, -1), name="hashes")
    if hvd.rank() == 0:
        print(
            json.dumps(
                {
                    "same": bool((hashes == hashes[0]).all()),
                    "first": np.mean(losses[:10]),
                    "last": np.mean(losses[-10:]),
                    "raw": records[-1].raw_bytes,
                    "wire": records[-1].wire_bytes,
                    "topology": records[-1].topology,
                    "overlap": optimizer._gradients.rule.on,
                    "exchanges": len(records),
                }
            )
        )


if __name__ == "__main__":
    hvd.init()
    run: list[str] = []
    for word in [*sys.argv[1:], "--next"]:
        if word == "--next":
            train(run)
            run = []
        else:
            run.append(word)

"""Plays the bilinear game of docs/theory.md §6 on every rank; one JSON line a case on rank 0.

Each rank draws its own noise, gradients come from ``backward()``, and the exchange is the one that
training uses. A case is METHOD:COMPRESSION:NOISE, with METHOD one of coupled, separated, sgda,
extra_adam, COMPRESSION one of none, allgather, scatter_reduce, and NOISE a name and size such as
relative:0.5. ExtraAdam takes two exchanges a step, so half as many steps.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch import Tensor

import horovod_qoda.torch as hvd
from benchmarks import _games as games

# Matrices, because vectors are taken for biases and travel raw, and every size quantised.
SHAPE = (4, 5)
SMALLEST = 1


def optimizer_for(
    method: str, compression: str, x: Tensor, y: Tensor, bits: float
) -> tuple[Any, Tensor]:
    """The wrapped optimizer, x descending and y ascending."""
    groups = [{"params": [x]}, {"params": [y], "maximize": True}]
    options: dict[str, Any] = {
        "named_parameters": [("x", x), ("y", y)],
        "compression": hvd.Compression.none
        if compression == "none"
        else hvd.Compression.layerwise(bits=bits, topology=compression, min_numel=SMALLEST),
    }
    if method == "sgda":
        return hvd.DistributedOptimizer(torch.optim.SGD(groups, lr=0.1), **options)
    if method == "extra_adam":
        return hvd.DistributedOptimizer(hvd.ExtraAdam(groups, lr=0.01), **options)
    return hvd.DistributedQODA(groups, variant=method, **options)


def play(case: str, exchanges: int, checkpoints: list[int], bits: float, seed: int) -> dict:
    method, compression, noise_name, size = case.split(":")
    noise = {"none": games.noiseless, "absolute": None, "relative": None}[noise_name]
    noise = noise or getattr(games, noise_name)(float(size))
    game = games.BilinearGame()
    half = game.d // 2
    coupling = game.field_matrix[:half, half:].float()
    target = game.solution.float()
    x, y = (torch.nn.Parameter(torch.zeros(SHAPE)) for _ in range(2))
    optimizer = optimizer_for(method, compression, x, y, bits)
    records: list[hvd.ExchangeRecord] = []
    optimizer.add_listener(records.append)
    generator = torch.Generator().manual_seed(1000 * seed + hvd.rank())
    mean, residuals = torch.zeros(game.d, dtype=torch.float64), []

    def backward() -> Tensor:
        """Leaves noisy gradients in x and y; returns the point they were taken at."""
        z = torch.cat([x.detach().reshape(-1), y.detach().reshape(-1)]).double()
        field = game.operator(z)
        error = (noise(field, generator) - field).float()
        optimizer.zero_grad()
        value = (x.reshape(-1) - target[:half]) @ coupling @ (y.reshape(-1) - target[half:])
        # The noise enters as a linear term, so that hooks see the whole gradient.
        (value + x.reshape(-1) @ error[:half] - y.reshape(-1) @ error[half:]).backward()
        return z

    for t in range(1, exchanges // (2 if method == "extra_adam" else 1) + 1):
        if method == "extra_adam":
            backward()
            optimizer.synchronize()
            optimizer.extrapolation()
        mean += (backward() - mean) / t
        optimizer.step()
        if t in checkpoints:
            residuals.append(game.residual(mean))

    if method in ("coupled", "separated"):
        with optimizer.average():
            kept = torch.cat([x.detach().reshape(-1), y.detach().reshape(-1)]).double()
        average_error = float((kept - mean).abs().max())
    else:
        average_error = 0.0
    last = torch.cat([x.detach().reshape(-1), y.detach().reshape(-1)])
    everyone = hvd.allgather(last.reshape(1, -1))
    return {
        "case": case,
        "residuals": residuals,
        "start": game.residual(torch.zeros(game.d)),
        "last": game.residual(last),
        "average_error": average_error,
        "same": bool((everyone == everyone[0]).all()),
        "exchanges": len(records),
        "topologies": sorted({record.topology for record in records}),
        "quantized": records[-1].coordinates,
        "seconds": sum(record.exchange_s for record in records),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--exchanges", type=int, default=3000)
    parser.add_argument("--checkpoints", type=int, nargs="+", required=True)
    parser.add_argument("--bits", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    hvd.init()
    torch.set_num_threads(1)
    for case in args.cases:
        result = play(case, args.exchanges, args.checkpoints, args.bits, args.seed)
        if hvd.rank() == 0:
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

"""Exchanges gradients that drift, and prints the mean rate of exchanges 200 to 1000 on each way."""

import json

import numpy as np
import torch

import horovod_qoda.torch as hvd

EXCHANGES, SKIPPED = 1000, 200


def gradient(rng: np.random.Generator, number: int, shape: tuple[int, int]) -> torch.Tensor:
    """Tails that grow, and an odd one where the state changes for the last time but one."""
    spread = 0.8 * number / EXCHANGES
    g = np.exp(spread * rng.standard_normal(shape)) * rng.standard_normal(shape)
    if number == 899:
        g *= rng.random(shape) < 0.01
    return torch.from_numpy(g.astype(np.float32))


def mean_rate(topology: str) -> float:
    layer = torch.nn.Linear(256, 128, bias=False)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(layer.parameters(), lr=0.0),
        named_parameters=layer.named_parameters(),
        compression=hvd.Compression.layerwise(bits=3, topology=topology),
    )
    hvd.broadcast_parameters(layer.state_dict(), root_rank=0)
    rates: list[float] = []
    optimizer.add_listener(lambda record: rates.append(record.coded_bits))
    rng = np.random.default_rng(hvd.rank())
    for number in range(EXCHANGES):
        optimizer.zero_grad()
        (layer.weight * gradient(rng, number, (128, 256))).sum().backward()
        optimizer.step()
    mine = torch.tensor([np.nanmean(rates[SKIPPED:])])
    return float(hvd.allreduce(mine, name="mean rate"))


if __name__ == "__main__":
    hvd.init()
    for topology in ("allgather", "scatter_reduce"):
        rate = mean_rate(topology)
        if hvd.rank() == 0:
            print(json.dumps({"topology": topology, "rate": rate}))

"""Every rank measures on a batch of its own; prints whether all then have the same."""

import json

import torch

import horovod_qoda.torch as hvd
from horovod_qoda import sensitivity

if __name__ == "__main__":
    hvd.init()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
    torch.manual_seed(1 + hvd.rank())
    x = torch.randn(64, 64)

    def loss():
        return (model(x)[:, :8] - x[:, 8:16]).square().mean()

    own = sensitivity.measure(model, loss)
    shared = sensitivity.measure(model, loss, gather=hvd.allgather_object)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.01),
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.layerwise(allocation="lgreco", rules=sensitivity.rules(shared)),
    )
    for _ in range(21):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    everyone = hvd.allgather_object((own, shared))
    if hvd.rank() == 0:
        print(
            json.dumps(
                {
                    "own differ": everyone[0][0] != everyone[1][0],
                    "shared agree": all(mine[1] == shared for mine in everyone),
                    "mean": all(
                        abs(sum(mine[0][k] for mine in everyone) / len(everyone) - v) < 1e-12
                        for k, v in shared.items()
                    ),
                }
            )
        )

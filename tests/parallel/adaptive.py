"""Trains with levels and bits that adapt; prints on rank 0 whether all ranks had the same state."""

import hashlib
import json

import torch

import horovod_qoda.torch as hvd

CONFIGURATIONS = [
    {"quantizer": "adaptive", "topology": "scatter_reduce"},
    # Only the module says that "0.weight" is an embedding.
    {"quantizer": "adaptive", "topology": "allgather", "rules": {"type:embedding": {"bits": 4}}},
    {"allocation": "lgreco", "allocation_error": "relative", "coding": "alternating"},
]
STEPS = 21  # one more than the first exchange at which L-GreCo chooses


def digest(value: object) -> torch.Tensor:
    text = json.dumps(value, sort_keys=True).encode()
    return torch.tensor(list(hashlib.blake2b(text, digest_size=8).digest()), dtype=torch.uint8)


def train(wanted: dict) -> dict:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(256, 64), torch.nn.Linear(64, 256))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(model.parameters(), lr=1e-3),
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.layerwise(bits=3, **wanted),
        model=model,
    )
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    rng = torch.Generator().manual_seed(hvd.rank())
    same, states = True, set()
    for _ in range(STEPS):
        x = torch.randint(64, (32,), generator=rng)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), (x * 7 + 3) % 256).backward()
        optimizer.step()
        state = optimizer.state_dict()["horovod_qoda"]
        mine = digest(state)
        hashes = hvd.allgather(mine[None, :], name="state")
        same = same and bool((hashes == hashes[0]).all())
        states.add(json.dumps(state["adaptation"], sort_keys=True))
    parameters = torch.cat([p.detach().ravel() for p in model.parameters()])
    everywhere = hvd.allgather(parameters[None, :], name="parameters")
    return {
        "wanted": wanted,
        "same": same,
        "replicas": bool((everywhere == everywhere[0]).all()),
        "states": len(states),
    }


if __name__ == "__main__":
    hvd.init()
    for configuration in CONFIGURATIONS:
        result = train(configuration)
        if hvd.rank() == 0:
            print(json.dumps(result))

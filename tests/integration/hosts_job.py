"""A few steps on emulated hosts: which topology is in force, and whether replicas agree."""

import sys

import torch
from torch import nn

import horovod_qoda.torch as hvd


def main(topology: str, dynamic: str, forgetful: str = "") -> None:
    hvd.init(process_sets="dynamic" if dynamic == "dynamic" else None)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
    optimizer = hvd.DistributedQODA(
        model.parameters(),
        model.named_parameters(),
        compression=hvd.Compression.layerwise(topology=topology, bits=3),
    )
    records = []
    optimizer.add_listener(records.append)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    generator = torch.Generator().manual_seed(hvd.rank())
    try:
        for number in range(12):
            if forgetful and number == 6 and hvd.rank() == 1:
                optimizer.set_compression(topology=topology, bits=4)
            optimizer.zero_grad()
            inputs = torch.randn(16, 256, generator=generator)
            (model(inputs) - inputs).square().mean().backward()
            optimizer.step()
    except ValueError as e:
        print(f"refused on rank {hvd.rank()}: {e}", flush=True)
        return
    sums = [float(p.detach().double().sum()) for p in model.parameters()]
    same = all(other == sums for other in hvd.allgather_object(sums))
    record = records[-1]
    print(f"rank {hvd.rank()} {record.topology} {record.wire_bytes} {same}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

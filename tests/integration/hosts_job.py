"""A few steps on emulated hosts: which topology is in force, and whether replicas agree.

hosts_job.py TOPOLOGY dynamic|fixed [forgetful | native | host | device] [STEPS]

The last three train a small model: gradients are coded natively, or in Triton's interpreter, and
travel as HOROVOD_QODA_PAYLOADS says.
"""

import os
import sys

CODED = sys.argv[3] if sys.argv[3:] and sys.argv[3] != "forgetful" else ""
if CODED:
    os.environ["HOROVOD_QODA_KERNELS"] = "native" if CODED == "native" else "triton"
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["HOROVOD_QODA_PAYLOADS"] = "host" if CODED == "native" else CODED

import torch  # noqa: E402
from torch import nn  # noqa: E402

import horovod_qoda.torch as hvd  # noqa: E402

WIDTH, STEPS = (16, int((sys.argv[4:] or ["2"])[0])) if CODED else (256, 12)


def main(topology: str, dynamic: str, how: str = "", *_: str) -> None:
    hvd.init(process_sets="dynamic" if dynamic == "dynamic" else None)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))
    optimizer = hvd.DistributedQODA(
        model.parameters(),
        model.named_parameters(),
        compression=hvd.Compression.layerwise(topology=topology, bits=3, min_numel=256),
    )
    records = []
    optimizer.add_listener(records.append)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    generator = torch.Generator().manual_seed(hvd.rank())
    try:
        for number in range(STEPS):
            if how == "forgetful" and number == 6 and hvd.rank() == 1:
                optimizer.set_compression(topology=topology, bits=4)
            optimizer.zero_grad()
            inputs = torch.randn(16, WIDTH, generator=generator)
            (model(inputs) - inputs).square().mean().backward()
            optimizer.step()
    except ValueError as e:
        print(f"refused on rank {hvd.rank()}: {e}", flush=True)
        return
    sums = [float(p.detach().double().sum()) for p in model.parameters()]
    same = all(other == sums for other in hvd.allgather_object(sums))
    record = records[-1]
    print(f"rank {hvd.rank()} {record.topology} {record.wire_bytes} {same} {sums}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

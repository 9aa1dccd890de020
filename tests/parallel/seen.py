"""Trains a few steps under the monitor and a profiler; the names of ranges as JSON on rank 0."""

import json
import sys

import torch

import horovod_qoda.torch as hvd
from horovod_qoda.monitor import Monitor

STEPS = 8


def main(metrics: str) -> None:
    hvd.init()
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 32, bias=False)
    )
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(model.parameters()),
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.layerwise(topology="scatter_reduce"),
    )
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    monitor = Monitor(metrics if hvd.rank() == 0 else None)
    monitor.watch(optimizer, every=2)
    # The worker thread is seen only where all threads are asked for.
    every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], experimental_config=every_thread
    ) as profile:
        for _ in range(STEPS):
            with monitor.step() as values:
                optimizer.zero_grad()
                loss = model(torch.randn(16, 64)).square().mean()
                loss.backward()
                optimizer.step()
                values["loss"] = loss.item()
    monitor.close()
    if hvd.rank() == 0:
        names = {event.name for event in profile.events()}
        print(json.dumps(sorted(name for name in names if name.startswith("horovod_qoda"))))


if __name__ == "__main__":
    main(sys.argv[1])

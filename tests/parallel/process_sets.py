"""Process sets made by hvd.init(process_sets=[...]): two of three ranks train, the third alone."""

import torch

import horovod_qoda.torch as hvd

pair = hvd.ProcessSet([0, 2])
hvd.init(process_sets=[pair])
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Linear(16, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64), torch.nn.Linear(64, 1)
)
records = []
optimizer = hvd.DistributedOptimizer(
    torch.optim.SGD(model.parameters(), lr=0.05), model.named_parameters(), process_set=pair
)
optimizer.add_listener(records.append)
data = torch.Generator().manual_seed(hvd.rank())
for step in range(8):
    optimizer.zero_grad()
    if step == 5:
        with optimizer.no_sync():  # accumulates; on the rank outside nothing else ever happens
            model(torch.randn(8, 16, generator=data)).square().mean().backward()
    model(torch.randn(8, 16, generator=data)).square().mean().backward()
    optimizer.step()
parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
everyone = hvd.allgather(parameters.reshape(1, -1), name="parameters")
assert torch.equal(everyone[0], everyone[2]), "the pair's replicas differ"
assert not torch.equal(everyone[0], everyone[1]), "the rank outside took part"
wire = [record.wire_bytes for record in records]
assert len(wire) == (0 if hvd.rank() == 1 else 8), wire
assert not wire or wire[-1] < records[-1].raw_bytes / 4, wire
print(f"rank {hvd.rank()} passed", flush=True)

"""A script as Horovod's public examples are written: it knows nothing of this package."""

import argparse

import horovod.torch as hvd
import torch
import torch.nn.functional as F
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--fp16-allreduce", action="store_true")
parser.add_argument("--fail", action="store_true")
args = parser.parse_args()

hvd.init()
torch.manual_seed(42)
model = nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))
data = torch.utils.data.TensorDataset(torch.randn(512, 28, 28), torch.randint(0, 10, (512,)))
sampler = torch.utils.data.distributed.DistributedSampler(
    data, num_replicas=hvd.size(), rank=hvd.rank()
)
loader = torch.utils.data.DataLoader(data, batch_size=32, sampler=sampler)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01 * hvd.size(), momentum=0.5)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
compression = hvd.Compression.fp16 if args.fp16_allreduce else hvd.Compression.none
optimizer = hvd.DistributedOptimizer(
    optimizer,
    named_parameters=model.named_parameters(),
    compression=compression,
    op=hvd.Average,
    gradient_predivide_factor=1.0,
)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
records = []
if hasattr(optimizer, "add_listener"):
    optimizer.add_listener(records.append)
for epoch in range(args.epochs):
    sampler.set_epoch(epoch)
    for images, target in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), target)
        loss.backward()
        optimizer.step()
if args.fail:
    raise KeyError("the script's own mistake")
mean = hvd.allreduce(torch.tensor(loss.item()), name="avg_loss")
if hvd.rank() == 0:
    sent = records[-1] if records else None
    print(
        f"done epochs={args.epochs} loss={mean:.3f} "
        f"raw={sent.raw_bytes if sent else 0} wire={sent.wire_bytes if sent else 0}"
    )

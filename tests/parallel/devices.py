"""Ranks that code with kernels and ranks that code natively, in one job: devices.py MODE CASE …

--interpreter      rank 0's gradients go through Triton's interpreter, the others' are native
--interpreter=all  all go through the interpreter, and payloads travel as the tensors it made
--cuda             rank 0's gradients are on a device, the others' in the CPU's memory
--cuda=all         all are on that device

What every rank ends with is compared to the bit.
"""

import os
import sys

CUDA = sys.argv[1].startswith("--cuda")
ALL = sys.argv[1].endswith("=all")
FIRST = os.environ["OMPI_COMM_WORLD_RANK"] == "0"
if not CUDA:
    os.environ["HOROVOD_QODA_KERNELS"] = "triton" if FIRST or ALL else "native"
    if FIRST or ALL:
        os.environ["TRITON_INTERPRET"] = "1"
    os.environ["HOROVOD_QODA_PAYLOADS"] = "device"  # in force where all ranks can

import torch  # noqa: E402
from torch import nn  # noqa: E402

import horovod_qoda.torch as hvd  # noqa: E402
from horovod_qoda.exchange.codecs import HOST  # noqa: E402

DEVICE = "cuda" if CUDA and (FIRST or ALL) else "cpu"


class Watched(torch.optim.SGD):
    """Keeps what QODA would be told of an exchange."""

    sums = (0.0, 0.0, 0.0)

    def receive_sums(self, sum_sq, sum_sq_diff, aux):
        self.sums = (sum_sq, sum_sq_diff, aux)

    def last_move_sq(self):
        return 0.125 + hvd.rank()


def same_everywhere(tensors, name):
    mine = torch.cat([x.detach().double().cpu().reshape(-1) for x in tensors]).reshape(1, -1)
    everyone = hvd.allgather(mine, name=name)
    assert torch.equal(everyone.nan_to_num(), everyone[:1].expand_as(everyone).nan_to_num()), name
    return mine


def train(width, depth, dtype=torch.float32, steps=5, bad=-1, **options):
    """Means and sums are the same on all ranks in every step, sent during backward or not."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth))).to(dtype)
    model = model.to(DEVICE)
    settings = {"min_numel": 64, "bits": 4, **options}
    optimizer = hvd.DistributedOptimizer(
        Watched(model.parameters(), lr=0.01),
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.layerwise(**settings),
    )
    torch.manual_seed(1 + hvd.rank())
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(6, width).to(DEVICE, dtype)).float().square().mean()
        (loss * (float("inf") if step == bad and FIRST else 1.0)).backward()
        optimizer.synchronize()
        means = same_everywhere([p.grad for p in model.parameters()], f"mean {step}")
        sums = same_everywhere([torch.tensor(optimizer.sums, dtype=torch.float64)], "sums")
        assert step == bad or (means.isfinite().all() and sums.isfinite().all() and means.any())
        if step != bad:
            with optimizer.skip_synchronize():
                optimizer.step()
    assert optimizer._gradients.rule.on, "gradients were never sent during backward"
    buffers = optimizer._gradients.carrier.exchange.routes.buffers
    assert (buffers[0].codec is HOST) == (not FIRST and not ALL)
    assert buffers[0].codec.sends == (ALL and not CUDA)
    return optimizer


def allgather():
    train(12, 2, topology="allgather", bad=2)


def scatter_reduce():
    """Two owners: layers begin at multiples of 1,024, so 18 small ones make two chunks."""
    optimizer = train(8, 18, topology="scatter_reduce", steps=4)
    (buffer,) = optimizer._gradients.carrier.exchange.routes.buffers
    assert len(buffer.chunks) == 2


def bfloat16_levels():
    train(
        12, 2, torch.bfloat16, topology="allgather", quantizer="adaptive", bucket_size=64, steps=4
    )


def warming_up():
    train(12, 2, topology="allgather", warmup_steps=2, steps=4)


def wide():
    """Of a size for a device: several buffers, many coding blocks."""
    train(1024, 6, fusion_mb=8.0, steps=40)
    train(512, 4, topology="scatter_reduce", quantizer="uniform", steps=12)


if __name__ == "__main__":
    hvd.init()
    for case in [word for word in sys.argv[1:] if not word.startswith("--")]:
        globals()[case]()
        print(f"rank {hvd.rank()} passed {case}", flush=True)

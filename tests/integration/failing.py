"""A training job in which one rank does something terrible at step 5: failing.py WHAT RANK."""

import os
import signal
import sys
import time

import horovod.torch
import horovod.torch.mpi_ops as mpi_ops
import horovod.torch.optimizer as optimizers
import numpy as np
import torch

import horovod_qoda.torch as hvd
from horovod_qoda.transport import HorovodTransport

AT = 5

what, culprit = sys.argv[1], int(sys.argv[2])
hvd.init()
guilty = hvd.rank() == culprit
torch.manual_seed(0)
first = torch.nn.Linear(64, 256)
if what == "late_sparse":
    first = torch.nn.Embedding(64, 256, sparse=True)
model = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Linear(256, 64))
optimizer = hvd.DistributedOptimizer(
    torch.optim.SGD(model.parameters(), lr=0.1),
    model.named_parameters(),
    compression=hvd.Compression.fp16 if what == "late_stock" else hvd.Compression.layerwise,
)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)


class Trap(torch.autograd.Function):
    """The identity, until gradients come back through it."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if what == "hang":
            time.sleep(3600)
        if what == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "raise":
            raise KeyError("the script's own mistake")
        return gradient


def broken(*ignored):
    yield from ()
    raise ArithmeticError("the codec's own mistake")


for step in range(100 if what == "wait" else 10):
    if step == AT and what in ("freeze", "join", "alone"):
        # Horovod has read these long ago; from here on they are the limits of this package alone.
        os.environ["HOROVOD_STALL_CHECK_TIME_SECONDS"] = "2"
        os.environ["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] = "4"
    if step == AT and guilty:
        if what == "stop":
            break
        if what == "join":
            hvd.join()
            break
        if what.startswith("late"):
            time.sleep(10)
            sys.exit(0)
        if what == "alone":
            # Not before rank 0 has handed its tensor over: that waits for Horovod's lock too.
            time.sleep(2)
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "worker":
            optimizer._gradients.carrier.exchange.routes._flat = broken
    if step == AT and what == "alone":
        HorovodTransport().allgather("alone", np.zeros(4, np.uint8)).wait()
    if step == AT and what.startswith("late"):
        # A tensor that came too late to be told of the shutdown: no poll will ever find it done,
        # and who waits as Horovod does waits for ever.
        horovod.torch.poll = lambda handle: False
        mpi_ops.synchronize = optimizers.synchronize = lambda handle: time.sleep(3600)
    optimizer.zero_grad()
    sparse = what == "late_sparse"
    hidden = model[:2](torch.randint(64, (8,)) if sparse else torch.randn(8, 64))
    if step == AT and guilty:
        hidden = Trap.apply(hidden)
    model[2](hidden).square().mean().backward()
    if step == AT and guilty and what == "leave":
        # Overlap is on: the gradients are under way, and nobody will ask for the mean.
        assert optimizer._gradients.rule.on
        sys.exit(0)
    try:
        optimizer.step()
    except Exception:
        print(f"rank {hvd.rank()} failed in step {step}", flush=True)
        raise
    if what == "wait":
        print(f"rank {hvd.rank()} stepped", flush=True)
        time.sleep(1)
print(f"rank {hvd.rank()} came to the end", flush=True)

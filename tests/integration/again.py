"""Forks after init, and shuts Horovod down and initialises it again."""

import os
import sys

import torch

import horovod_qoda.torch as hvd


def train(model, optimizer, batches):
    for x in batches:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def wrapped():
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    options = {"named_parameters": model.named_parameters()}
    return model, hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), **options)


def fork_and_exit():
    """A child that leaves by the interpreter's usual way, with Horovod's atexit function."""
    child = os.fork()
    if not child:
        sys.exit(7)
    print("child ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def with_loader_processes():
    model, optimizer = wrapped()
    loader = torch.utils.data.DataLoader(
        torch.randn(64, 64), batch_size=8, num_workers=2, multiprocessing_context="fork"
    )
    train(model, optimizer, loader)
    print("loader's processes did not disturb", flush=True)


def shutdown_and_init():
    before = wrapped()
    train(*before, torch.randn(3, 8, 64))
    hvd.shutdown()
    try:
        train(*before, torch.randn(1, 8, 64))
    except Exception as e:
        print(f"after shutdown: {e}", flush=True)
    hvd.init()
    train(*before, torch.randn(3, 8, 64))
    train(*wrapped(), torch.randn(3, 8, 64))
    print(f"initialised again with {hvd.size()} ranks", flush=True)


if __name__ == "__main__":
    if "mpi4py" in sys.argv:
        # MPI belongs to mpi4py, so Horovod's shutdown leaves it alive.
        from mpi4py import MPI

        assert MPI.Is_initialized()
    hvd.init()
    for name in sys.argv[1:]:
        if name != "mpi4py":
            globals()[name]()

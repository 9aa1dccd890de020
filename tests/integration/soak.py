"""Thousands of exchanges of whatever gradients may look like; memory, threads and replicas watched.

    mpirun -np 4 python tests/integration/soak.py --steps 10000

One JSON line on rank 0 for every check, over all ranks, and one at the end. Exits with an error
where replicas differ, threads come up, or memory grows by more than 1 % after the warm-up.
"""

import argparse
import json
import os
import time

import numpy as np
import torch

import horovod_qoda.torch as hvd
from horovod_qoda.torch.replicas import hash_parameters

SHAPES = {
    "embed.weight": (300, 64),
    "attn.weight": (128, 128),
    "conv.weight": (32, 16, 3, 3),
    "linear.weight": (256, 100),
    "linear.bias": (256,),
    "scale": (1,),
}

GROWTH = 0.01
"""Share by which memory may grow after the warm-up; fragmentation settles within it."""


def gradient(shape, rng):
    """Random in kind too: scales over 20 decades, sparse, zero, constant, one wild value."""
    values = rng.standard_normal(shape).astype(np.float32) * np.float32(10.0 ** rng.uniform(-15, 5))
    kind = rng.integers(12)
    if kind == 0:
        values[:] = 0
    elif kind == 1:
        values *= rng.random(shape) < 0.01
    elif kind == 2:
        values[:] = values.flat[0]
    elif kind == 3:
        values.flat[rng.integers(values.size)] *= 1e6
    return torch.from_numpy(values)


def memory():
    """Resident bytes of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def look(model):
    """Whether replicas are equal; the largest resident memory and number of threads of a rank."""
    hashes = np.array(hash_parameters(model.values()), np.uint64).view(np.int64)
    everyone = hvd.allgather(torch.from_numpy(hashes.reshape(1, -1)), name="soak.hashes")
    mine = torch.tensor([[memory(), len(os.listdir("/proc/self/task"))]])
    sizes = hvd.allgather(mine, name="soak.sizes").max(dim=0).values
    return bool((everyone == everyone[0]).all()), int(sizes[0]), int(sizes[1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=100, help="steps between two checks")
    parser.add_argument("--warm-up", type=int, default=1_000, help="steps before memory counts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    hvd.init()
    torch.set_num_threads(1)
    rng = np.random.default_rng([args.seed, hvd.rank()])
    model = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(model.values(), lr=1e-3), named_parameters=model.items()
    )
    skipped, baseline, worst, threads = 0, 0, 0, 0
    begin = time.time()
    for step in range(1, args.steps + 1):
        optimizer.zero_grad()
        used = [n for n in model if rng.random() > 0.05]
        loss = sum((model[n] * gradient(SHAPES[n], rng)).sum() for n in used)
        if rng.random() < 0.01:
            loss = loss * float(rng.choice([np.nan, np.inf, -np.inf]))
        if used:
            loss.backward()
        optimizer.synchronize()
        if all(bool(p.grad.isfinite().all()) for p in model.values()):
            with optimizer.skip_synchronize():
                optimizer.step()
        else:
            skipped += 1
        if step % args.every:
            continue
        same, resident, tasks = look(model)
        if step <= args.warm_up:
            baseline, threads = resident, tasks
        worst = max(worst, resident / baseline - 1)
        if hvd.rank() == 0:
            line = {"step": step, "same": same, "MiB": round(resident / 2**20, 1), "threads": tasks}
            print(json.dumps(line), flush=True)
        assert same, f"replicas differ after step {step}, seed {args.seed}"
        assert tasks <= threads, f"{tasks} threads after step {step}, {threads} before"
        assert worst <= GROWTH, f"memory has grown by {worst:.2%} at step {step}"
        worst = 0 if step <= args.warm_up else worst
    if hvd.rank() == 0:
        end = {"steps": args.steps, "skipped": skipped, "growth": round(worst, 5)}
        print(json.dumps({**end, "seconds": round(time.time() - begin)}), flush=True)


if __name__ == "__main__":
    main()

"""What PyTorch's DistributedDataParallel does with the loops of docs/compatibility.md.

    python tests/ddp_column.py [CASE ...]

Two processes on this machine, over Gloo on CPU. Each case prints what came out on each rank, and
the script ends with an error where that is not what the document's DDP column was written from.
Nothing of this package runs here: another version of PyTorch may differ.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: the checkout, not tests/, belongs on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.distributed as dist

from tests.ddp.checks import CASES, SIZE, said

LIMIT = 120
"""Seconds for a case; a machine with much else to do takes long to start two processes."""


def main(names: list[str]) -> int:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    wrong = []
    for name in names or CASES:
        outcomes = run(name)
        for rank, (outcome, wanted) in enumerate(zip(outcomes, CASES[name][1], strict=True)):
            print(f"{name:36s} rank {rank}  {outcome}", flush=True)
            if wanted not in outcome:
                wrong.append(f"{name}, rank {rank}: not {wanted!r}")
    print(f"torch {torch.__version__}; other than expected: {'; '.join(wrong) or 'none'}")
    return 1 if wrong else 0


def run(name: str) -> list[str]:
    """Outcome of a case by rank, from processes that are forked: torch is imported once."""
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [fork.Pipe(duplex=False) for _ in range(SIZE)]
        ranks = [
            fork.Process(target=start, args=(name, rank, folder, pipes[rank][1]), daemon=True)
            for rank in range(SIZE)
        ]
        for process in ranks:
            process.start()
        deadline = time.monotonic() + LIMIT
        for process in ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        outcomes = []
        for process, (receiver, _) in zip(ranks, pipes, strict=True):
            if receiver.poll():
                outcomes.append(receiver.recv())
            else:
                outcomes.append("hangs" if process.is_alive() else f"ended with {process.exitcode}")
            process.kill()
    return outcomes


def start(name: str, rank: int, folder: str, pipe: Any) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=20), SIZE, rank)
    try:
        outcome = CASES[name][0](rank)
    except Exception as e:
        outcome = said(e)
    pipe.send(outcome)
    pipe.close()
    # Without the collective clean-up, which would wait for ranks that have failed.
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

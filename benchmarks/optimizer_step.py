"""Time of one optimizer step on a dense model of 4.4 M parameters, beside torch.optim.Adam.

All optimizers are stepped in turn, so that a busy machine slows them alike: read the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from horovod_qoda.qoda import QODA, ExtraAdam, OptimisticAdam

WIDTHS = (784, 1024, 1024, 512, 1)  # a critic, and a generator of the same kind
WIDTHS_BACK = (128, 1024, 1024, 784)


def parameters(device: str) -> list[torch.nn.Parameter]:
    """Weights and biases with gradients."""
    pairs = [
        *zip(WIDTHS, WIDTHS[1:], strict=False),
        *zip(WIDTHS_BACK, WIDTHS_BACK[1:], strict=False),
    ]
    generator = torch.Generator().manual_seed(0)
    found = []
    for inputs, outputs in pairs:
        for shape in ((outputs, inputs), (outputs,)):
            value = 0.05 * torch.randn(shape, generator=generator)
            found.append(torch.nn.Parameter(value.to(device)))
            found[-1].grad = 0.2 * found[-1].detach().clone()
    return found


def steps(device: str) -> dict[str, Callable[[], object]]:
    def qoda(received: bool, **settings: object) -> Callable[[], object]:
        optimizer = QODA(parameters(device), **settings)  # type: ignore[arg-type]

        def step() -> None:
            if received:
                optimizer.receive_sums(1.0, 1.0, 0.0)
            optimizer.step()

        return step

    extra = ExtraAdam(parameters(device))

    def both_halves() -> None:
        extra.extrapolation()
        extra.step()

    return {
        "torch Adam": torch.optim.Adam(parameters(device)).step,
        "torch Adam, fused": torch.optim.Adam(parameters(device), fused=True).step,
        "QODA coupled, sums from the exchange": qoda(True),
        "QODA coupled, sums from the exchange, no average": qoda(True, ergodic=False),
        "QODA coupled, own sums": qoda(False),
        "QODA separated, sums from the exchange": qoda(True, variant="separated"),
        "QODA separated, own sums": qoda(False, variant="separated"),
        "OptimisticAdam": OptimisticAdam(parameters(device)).step,
        "ExtraAdam, both halves": both_halves,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    wait = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    every = steps(args.device)
    times: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(args.rounds):
        for name, step in every.items():
            wait()
            begin = time.perf_counter()
            step()
            wait()
            times[name].append(time.perf_counter() - begin)
    reference = statistics.median(times["torch Adam"])
    print(f"{sum(p.numel() for p in parameters('cpu')):,} parameters, {args.threads} thread(s)")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:50s} {1e3 * median:8.2f} ms {median / reference:6.2f} x torch Adam")


if __name__ == "__main__":
    main()

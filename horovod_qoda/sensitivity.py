"""How much the loss feels noise in each layer, measured: weights for L-GreCo.

    from horovod_qoda import sensitivity
    felt = sensitivity.measure(model, lambda: loss(model(x), y), gather=hvd.allgather_object)
    hvd.Compression.layerwise(allocation="lgreco", rules=sensitivity.rules(felt))

Quantisation adds unbiased noise to a gradient, and the step passes it on to the parameters. The
expected change of the loss is then of second order in it, and in proportion to its squared error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from horovod_qoda.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

FLOOR = 1e-3
"""Least weight over the largest: a layer measured as 0, or below, must not be starved of bits."""


def measure(
    model: nn.Module,
    loss_fn: Callable[[], Tensor | float],
    *,
    relative_error: float = 0.01,
    probes: int = 8,
    seed: int = 0,
    prefix: str = "",
    gather: Callable[[list[float]], list[list[float]]] | None = None,
) -> dict[str, float]:
    """Loss change per unit of squared error in each layer's parameters.

    Noise of random signs, ``relative_error`` of the layer's RMS in size, is added to one layer and
    then taken away from it; of each pair of losses, (L(w + n) + L(w - n)) / 2 - L(w) over |n|^2 is
    the central estimate, free of first-order terms, and half the mean curvature along n. Means over
    ``probes`` pairs; 2 x probes x layers + 1 evaluations. May be negative where a model is not yet
    convex, or where probes are too few.

    Parameters, buffers (running means) and random number generators are afterwards what they were,
    to the bit; each loss starts from the same generator state, so dropout is the same in all.

    All ranks draw the same noise, from ``seed``, which asks for equal parameters on them
    (``broadcast_parameters``). Losses are each rank's own: with ``gather`` the results are means
    over ranks, in rank order and so equal to the bit. Without it they are this rank's, and equal
    only where the batch is.

    Args:
        model: its parameters of two or more dimensions and at least ``min_numel`` (1,024)
            coordinates that require gradients are measured; others travel uncompressed.
        loss_fn: the loss at the model's present parameters, always of the same batch or batches.
        relative_error: RMS of the noise over that of the layer; a layer of zeros takes 1 for its
            own. Too small drowns in the rounding of a float32 loss.
        probes: pairs a layer, at least 1.
        prefix: as in ``model.named_parameters(prefix)``.
        gather: a list from every rank, in rank order, given each rank's: ``hvd.allgather_object``.

    Returns:
        Name of the layer -> sensitivity, in the order of ``named_parameters``.

    Raises:
        ValueError: an argument is out of range, nothing is to be measured, or a loss is not finite
            (the layer is named).
    """
    import torch

    if not 0 < relative_error < 1:
        raise ValueError(f"relative_error must be between 0 and 1, not {relative_error!r}")
    if probes < 1:
        raise ValueError(f"probes must be at least 1, not {probes!r}")
    least = Settings().min_numel
    layers = {
        name: p
        for name, p in model.named_parameters(prefix)
        if p.requires_grad and p.dim() > 1 and p.numel() >= least
    }
    if not layers:
        raise ValueError(f"no parameter of the model has two dimensions and {least} coordinates")
    with torch.no_grad(), _unchanged(model) as again:

        def loss(where: str) -> float:
            again()
            value = float(loss_fn())
            if not math.isfinite(value):
                raise ValueError(f"the loss is {value} {where}: it cannot tell a sensitivity")
            return value

        plain = loss("without noise")
        found = []
        for index, (name, p) in enumerate(layers.items()):
            kept = p.clone()
            size = relative_error * (float(kept.double().square().mean().sqrt()) or 1.0)
            total = 0.0
            try:
                for probe in range(probes):
                    draw = np.random.default_rng([seed, index, probe])
                    bits = draw.integers(0, 2, p.numel(), dtype=np.uint8)
                    noise = torch.from_numpy(bits).to(p.device).to(p.dtype).view_as(p)
                    noise = (2 * noise - 1) * size
                    both = 0.0
                    for sign in (1, -1):
                        p.copy_(kept + sign * noise)
                        both += loss(f"with noise in {name}")
                    total += (both / 2 - plain) / (p.numel() * size**2)
            finally:
                p.copy_(kept)
            found.append(total / probes)
    ranks = [found] if gather is None else gather(found)
    means = [sum(values) / len(ranks) for values in zip(*ranks, strict=True)]
    return dict(zip(layers, means, strict=True))


def rules(sensitivities: Mapping[str, float], floor: float = FLOOR) -> dict[str, Any]:
    """Rules that pass :func:`measure`'s result to L-GreCo, largest weight 1.

    Raises:
        ValueError: no sensitivity is positive.
    """
    most = max(sensitivities.values(), default=0.0)
    if not 0 < most < math.inf:
        raise ValueError("no layer has a positive sensitivity: take more probes or other batches")
    return {
        name.replace("[", "[[]"): {"sensitivity": max(value / most, floor)}
        for name, value in sensitivities.items()
    }


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Gives a function that puts buffers and random generators back; called at the end too."""
    import torch

    buffers = [(b, b.clone()) for b in model.buffers()]
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def again() -> None:
        for buffer, kept in buffers:
            buffer.copy_(kept)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)

    try:
        yield again
    finally:
        again()

"""What benchmarks/end_to_end.py trains: one module each, whose forward pass is the scalar loss.

One scalar and one backward pass a step, so that Horovod, DistributedDataParallel and this package
run the very same loop. Weights, batches and noise come from seeds; each rank has its own batches.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

NAMES = ("exchange-1", "exchange-16", "exchange-64", "wgan", "transformer")


@dataclass(frozen=True)
class Workload:
    """A module whose forward gives the loss of a batch, batches, and a measure of quality."""

    module: nn.Module
    batch: Callable[[int], Any]
    """Step -> arguments of the module's forward, on this rank."""
    quality: Callable[[], float]
    """Less is better; nan where there is none."""
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)


def make(name: str, rank: int, seed: int) -> Workload:
    torch.manual_seed(seed)
    if name.startswith("exchange-"):
        return _exchange(int(name.partition("-")[2]), rank, seed)
    return {"wgan": _wgan, "transformer": _transformer}[name](rank, seed)


class Pile(nn.Module):
    """Layers of a megabyte whose gradients are given: nearly no compute, so the exchange alone."""

    def __init__(self, megabytes: int, rank: int, seed: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList(torch.zeros(256, 1024) for _ in range(megabytes))
        generator = torch.Generator().manual_seed(1000 * seed + rank)
        self._gradients = [torch.randn(256, 1024, generator=generator) for _ in self.layers]

    def forward(self) -> Tensor:
        return torch.stack(
            [(p * g).sum() for p, g in zip(self.layers, self._gradients, strict=True)]
        ).sum()


def _exchange(megabytes: int, rank: int, seed: int) -> Workload:
    return Workload(Pile(megabytes, rank, seed), lambda step: (), lambda: float("nan"), lr=0.0)


class Game(nn.Module):
    """WGAN-GP as one scalar: its gradient is each player's own, from one backward pass."""

    PENALTY = 10.0  # arXiv 1704.00028

    def __init__(self) -> None:
        super().__init__()
        import _models

        self.generator, self.critic = _models.build("dense")

    def forward(self, real: Tensor, noise: Tensor, mix: Tensor) -> Tensor:
        fake = self.generator(noise)
        still = fake.detach()
        between = (mix * real + (1 - mix) * still).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        loss_d = self.critic(still).mean() - self.critic(real).mean()
        loss_d = loss_d + self.PENALTY * (slope.norm(dim=1) - 1).square().mean()
        # The generator's loss must not reach the critic's weights.
        frozen = {k: v.detach() for k, v in self.critic.named_parameters()}
        return loss_d - torch.func.functional_call(self.critic, frozen, (fake,)).mean()


def _wgan(rank: int, seed: int) -> Workload:
    import _data
    import _metrics
    import _models

    game = Game()
    images = _data.load(None)
    real = torch.from_numpy(images.train).float() / 127.5 - 1
    held = torch.from_numpy(images.heldout).float() / 127.5 - 1
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    noise = torch.randn(len(held), _models.LATENT, generator=torch.Generator().manual_seed(9))

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.randint(len(real), (32,), generator=generator)
        return (
            real[chosen],
            torch.randn(32, _models.LATENT, generator=generator),
            torch.rand(32, 1, generator=generator),
        )

    @torch.no_grad()
    def quality() -> float:
        return _metrics.sliced_wasserstein(game.generator(noise), held)

    return Workload(game, batch, quality, lr=1e-4, betas=(0.5, 0.9))


class Transformer(nn.Module):
    """A plain decoder of bytes: 4 layers of 256, 3.3 M parameters. Forward gives nats a byte."""

    WIDTH, LAYERS, LENGTH = 256, 4, 64

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, self.WIDTH)
        self.place = nn.Parameter(0.02 * torch.randn(self.LENGTH, self.WIDTH))
        layer = nn.TransformerEncoderLayer(
            self.WIDTH, 4, 4 * self.WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, self.LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(self.WIDTH, 256)
        mask = nn.Transformer.generate_square_subsequent_mask(self.LENGTH)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        hidden = self.body(self.embed(text[:, :-1]) + self.place, mask=self.mask, is_causal=True)
        return functional.cross_entropy(self.head(hidden).flatten(0, 1), text[:, 1:].flatten())


def _transformer(rank: int, seed: int) -> Workload:
    model = Transformer()
    # Text that every machine has: Python's own library, the same files in the same order.
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    text = torch.frombuffer(bytearray(b"".join(f.read_bytes() for f in files)), dtype=torch.uint8)
    cut = len(text) * 19 // 20
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    length = Transformer.LENGTH + 1

    def pick(low: int, high: int, count: int, source: torch.Generator) -> Tensor:
        starts = torch.randint(low, high - length, (count,), generator=source)
        return torch.stack([text[s : s + length] for s in starts.tolist()]).long()

    @torch.no_grad()
    def quality() -> float:
        return float(model(pick(cut, len(text), 64, torch.Generator().manual_seed(9))))

    return Workload(model, lambda step: (pick(0, cut, 8, generator),), quality, lr=1e-3)

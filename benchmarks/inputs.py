"""Inputs of the codec's benchmarks: Gaussian, Student-t, and gradients of the demo's networks.

    python benchmarks/inputs.py [--data FOLDER] [--steps 60] [--out FILE]

trains the demo's dense WGAN-GP on one process and saves the last gradients of its weight matrices,
by default in the user's cache, where the benchmarks find them. FOLDER holds Fashion-MNIST's files;
without it the images are those the demo would find.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
BATCH = 32  # of one rank of the demo
LATENT = 64
STEPS = 60
IMAGES = "images"  # the array that says which images the gradients are of


def default_file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "horovod_qoda" / "wgan-gradients.npz"


def make_gradients(file: Path, steps: int, data: Path | None = None) -> str:
    """Trains for ``steps`` joint steps and saves the gradients, one array per weight matrix.

    Returns the name of the images, which is saved too.
    """
    import torch

    sys.path.insert(0, str(EXAMPLES))
    import _data
    import _models

    torch.manual_seed(0)
    generator, critic = _models.build("dense")
    named = [*generator.named_parameters("generator"), *critic.named_parameters("critic")]
    optimizer = torch.optim.Adam([p for _, p in named], lr=1e-4, betas=(0.5, 0.9))
    found = _data.load(_data.locate(data))
    images = torch.tensor(found.train).float() / 127.5 - 1.0
    for _ in range(steps):
        real = images[torch.randint(len(images), (BATCH,))]
        fake = generator(torch.randn(BATCH, LATENT))
        mix = torch.rand(BATCH, 1)
        between = (mix * real + (1 - mix) * fake.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = 10 * (slope.norm(dim=1) - 1).square().mean()
        optimizer.zero_grad()
        (critic(fake.detach()).mean() - critic(real).mean() + penalty).backward()
        (-critic(fake).mean()).backward(inputs=list(generator.parameters()))
        optimizer.step()
    file.parent.mkdir(parents=True, exist_ok=True)
    layers = {name: p.grad.ravel().numpy() for name, p in named if p.grad.dim() > 1}
    np.savez(file, **layers, **{IMAGES: np.array(found.name)})
    return found.name


def load(name: str, n: int, file: Path | None = None) -> list[np.ndarray]:
    """Layers of float32, n coordinates together: "gaussian", "student" or "gradients".

    Gradients come from ``file``, by default the one in the cache, which is made where it is
    missing; they are repeated until there are n of them.
    """
    rng = np.random.default_rng(0)
    if name == "gaussian":
        return [rng.standard_normal(n, dtype=np.float32)]
    if name == "student":
        return [rng.standard_t(3, n).astype(np.float32)]
    file = file or default_file()
    if not file.exists():
        make_gradients(file, STEPS)
    with np.load(file) as saved:
        once = [saved[key] for key in saved.files if key != IMAGES]
    layers: list[np.ndarray] = []
    left = n
    while left > 0:
        layer = once[len(layers) % len(once)][:left]
        layers.append(layer)
        left -= len(layer)
    return layers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's four files")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=default_file())
    args = parser.parse_args()
    print(f"gradients on {make_gradients(args.out, args.steps, args.data)}: {args.out}")

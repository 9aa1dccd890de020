"""WGAN-GP on real images over Horovod ranks, with quantized gradient exchange and QODA updates.

    python launch/run.py -np 4 -- python examples/wgan.py --steps 1000
    python launch/run.py -np 4 -- python examples/wgan.py --optimizer adam --compression none

Both players move at once, from gradients at one point, so one optimizer owns them and a joint step
is one exchange. Results are in runs/NAME: metrics.jsonl, samples.png, curves.png, checkpoint.pt.

Lines that concern this package carry the comment "# QODA:"; all others are an ordinary Horovod
script.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _data
import _metrics
import _models
import _progress
import torch
from _arguments import plain, positive
from torch import Tensor, nn

import horovod_qoda.torch as hvd  # QODA: instead of `import horovod.torch as hvd`
from horovod_qoda import flags  # QODA: the compressor's settings as flags
from horovod_qoda.monitor import Monitor, read_lines  # QODA: bytes and times of every exchange

# Per optimizer: generator's and critic's lr, factor on both losses, steps of linear lr warm-up.
# The Adams do not feel the factor, and their lr is the one of arXiv 1704.00028 for WGAN-GP.
#
# QODA's rates are (1 + sum of squared gradient differences)^(-1/2). Raw gradients of a WGAN-GP have
# norms of 5 to 40: that sum is in the hundreds after a step and, where the first steps overshot,
# stays so large that nothing moves any more. The factor 0.01 makes the "1 +" worth the first few
# hundred steps. With it 6 diverges and 3 can still overshoot in the first 30 steps, which slows
# the next hundreds; 2 is as good after 400 steps. The warm-up is for the critic, whose slope the
# penalty does not hold yet: at 3 without it its gradient's norm rises fivefold in six steps.
#
# A convolution's weight gathers its gradient from every pixel, so the largest lr that trains is
# smaller: at 1 and 1 the generator's pixels saturate within 20 steps.
DEFAULTS = {
    "qoda": {"lr_g": 2.0, "lr_d": 2.0, "loss_scale": 0.01, "lr_warmup": 20},
    "optimistic-adam": {"lr_g": 1e-4, "lr_d": 1e-4, "loss_scale": 1.0, "lr_warmup": 0},
    "adam": {"lr_g": 1e-4, "lr_d": 1e-4, "loss_scale": 1.0, "lr_warmup": 0},
}
CONV_RATES = {"lr_g": 0.3, "lr_d": 1.0}

# Held-out images, and as many samples, that an evaluation compares. The distance between two sets
# of real images of this size, the floor of the metric, is near 0.015.
EVALUATION = 4096


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="WGAN-GP with one compressed exchange per joint step.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--optimizer", choices=list(DEFAULTS), default="qoda")
    parser.add_argument("--compression", choices=["layerwise", "none", "fp16"], default="layerwise")
    parser.add_argument("--model", choices=["dense", "conv"], default="dense")
    parser.add_argument("--steps", type=positive, default=1000, help="joint steps")
    # 32 images on each of 4 ranks are a batch of 128, and a dense step takes 0.05 s of one core.
    parser.add_argument("--batch", type=positive, default=32, help="images a rank and step")
    parser.add_argument("--lr-g", type=float, help="generator's lr (default: by optimizer)")
    parser.add_argument("--lr-d", type=float, help="critic's lr (default: by optimizer)")
    parser.add_argument("--loss-scale", type=float, help="factor on both losses")
    parser.add_argument("--lr-warmup", type=int, help="steps over which lr rises from 0")
    # 10 is the weight of arXiv 1704.00028; at 1 the critic's slope grew past 4.
    parser.add_argument("--penalty", type=float, default=10.0, help="gradient penalty's weight")
    parser.add_argument("--model-seed", type=int, default=0, help="of weights, batches and noise")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST, or: digits")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--name", default="wgan", help="results go to RUNS/NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--eval-every", type=positive, default=250, help="steps")
    parser.add_argument("--progress", type=float, default=5.0, help="seconds between updates")
    flags.add_arguments(parser)  # QODA: --bits, --quantizer, --topology, --rule, ...
    # QODA: both players are 12 MB, one buffer by default; with two the first leaves during backward
    parser.set_defaults(fusion_mb=8.0)
    args = parser.parse_args()
    convolutional = args.optimizer == "qoda" and args.model == "conv"
    for name, value in (DEFAULTS[args.optimizer] | (CONV_RATES if convolutional else {})).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def make_optimizer(args: argparse.Namespace, generator: nn.Module, critic: nn.Module) -> Any:
    """One optimizer for both players, so that a joint step is one exchange."""
    groups = [
        {"params": list(generator.parameters()), "lr": args.lr_g},
        {"params": list(critic.parameters()), "lr": args.lr_d},
    ]
    # QODA: names of both players' layers, told apart by a prefix; rules match them
    named = [*generator.named_parameters("G"), *critic.named_parameters("D")]
    compression = {
        # QODA: replaces hvd.Compression.none or .fp16
        "layerwise": hvd.Compression.layerwise(**dataclasses.asdict(flags.from_arguments(args))),
        "none": hvd.Compression.none,
        "fp16": hvd.Compression.fp16,
    }[args.compression]
    if args.optimizer == "qoda":
        # QODA: the optimizer for min-max problems
        return hvd.DistributedQODA(groups, named, compression=compression)
    if args.optimizer == "optimistic-adam":
        inner: torch.optim.Optimizer = hvd.OptimisticAdam(groups, betas=(0.5, 0.9))  # QODA: too
    else:
        inner = torch.optim.Adam(groups, betas=(0.5, 0.9))
    return hvd.DistributedOptimizer(inner, named_parameters=named, compression=compression)


def losses(
    generator: nn.Module, critic: nn.Module, real: Tensor, noise: Tensor, penalty: float
) -> tuple[Tensor, Tensor, float]:
    """Critic's and generator's loss at the present point, and critic(real) − critic(fake)."""
    fake = generator(noise)
    detached = fake.detach()
    mix = torch.rand(len(real), 1, device=real.device)
    between = (mix * real + (1 - mix) * detached).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # Together, so that the weights are read once and have one gradient to add.
    on_real, on_fake = critic(torch.cat([real, detached])).chunk(2)
    gap = on_real.mean() - on_fake.mean()
    loss_d = -gap + penalty * (slope.norm(dim=1) - 1).square().mean()
    loss_g = -critic(fake).mean()
    return loss_d, loss_g, gap.item()


def batches(images: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Shuffled batches without end, [size, 784] in [-1, 1], each image once an epoch."""
    chooser = torch.Generator().manual_seed(seed)
    size = min(size, len(images))
    while True:
        order = torch.randperm(len(images), generator=chooser)
        for start in range(0, len(images) - size + 1, size):
            yield to_range(images[order[start : start + size]])


def to_range(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1.0


class Evaluation:
    """Compares the generator with held-out images, always from the same noise."""

    def __init__(
        self, generator: nn.Module, optimizer: Any, images: _data.Images, device: str
    ) -> None:
        self._generator, self._optimizer = generator, optimizer
        count = min(EVALUATION, len(images.heldout), len(images.train))
        chooser = torch.Generator().manual_seed(1)
        chosen = torch.randperm(len(images.heldout), generator=chooser)[:count]
        self.real = to_range(torch.from_numpy(images.heldout[chosen.numpy()]))
        self.noise = torch.randn(count, _models.LATENT, generator=chooser).to(device)
        # Strided over the whole set, which the digits need: theirs is not shuffled.
        others = images.train[:: len(images.train) // count][:count].copy()
        self.floor = _metrics.sliced_wasserstein(to_range(torch.from_numpy(others)), self.real)

    @torch.no_grad()
    def samples(self) -> Tensor:
        return self._generator(self.noise).cpu()

    def averaged_samples(self) -> Tensor | None:
        """Samples at the ergodic average, which QODA's guarantee is about; None for the others."""
        if not hasattr(self._optimizer, "average"):
            return None
        with self._optimizer.average():  # QODA: the average is in the model while this lasts
            return self.samples()

    def __call__(self) -> dict[str, float | None]:
        averaged = self.averaged_samples()
        return {
            "distance": _metrics.sliced_wasserstein(self.samples(), self.real),
            "distance_average": None
            if averaged is None
            else _metrics.sliced_wasserstein(averaged, self.real),
            "floor": self.floor,
        }


def main() -> None:
    args = parse()
    hvd.init()
    rank, size, first = hvd.rank(), hvd.size(), hvd.rank() == 0
    torch.manual_seed(args.model_seed)

    # Rank 0 looks for the images, and downloads them if need be; the others wait for its answer.
    folder = _data.locate(args.data) if first else None
    images = _data.load(hvd.broadcast_object(folder, root_rank=0, name="data"))
    mine = torch.from_numpy(_data.shard(images.train, rank, size).copy())

    generator, critic = _models.build(args.model)
    # Broadcast from the CPU's memory, which works with every build of Horovod.
    hvd.broadcast_parameters(generator.state_dict(), root_rank=0)
    hvd.broadcast_parameters(critic.state_dict(), root_rank=0)
    device = args.device
    if device == "cuda":
        device = f"cuda:{hvd.local_rank() % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    generator.to(device)
    critic.to(device)
    optimizer = make_optimizer(args, generator, critic)
    if args.device == "cpu" or hvd.cuda_built():
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    warmup = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / max(args.lr_warmup, 1))
    )

    torch.manual_seed(args.model_seed * size + rank + 1)  # from here on each rank draws its own
    loader = batches(mine, args.batch, torch.initial_seed())
    run = args.runs / args.name
    monitor = Monitor(run / "metrics.jsonl" if first else None)  # QODA:
    monitor.watch(optimizer)  # QODA: every exchange is counted, now and then layer by layer
    evaluate = Evaluation(generator, optimizer, images, device) if first else None
    if evaluate is not None:
        print(f"wgan: {images.name}; {_models.parameters(generator, critic):,} parameters")
        monitor.write("start", ranks=size, data=images.name, arguments=plain(args))
        monitor.write("eval", **evaluate())
        start = evaluate.samples()[:64]

    bar = _progress.progress(args.steps, args.name, args.progress, shown=first)
    for step in range(1, args.steps + 1):
        with monitor.step() as values:
            noise = torch.randn(args.batch, _models.LATENT).to(device)
            real = next(loader).to(device)
            optimizer.zero_grad()
            loss_d, loss_g, gap = losses(generator, critic, real, noise, args.penalty)
            (args.loss_scale * loss_d).backward()  # reaches the critic alone: fakes are detached
            (args.loss_scale * loss_g).backward(inputs=list(generator.parameters()))
            optimizer.step()  # QODA: the one exchange, then both players move
            warmup.step()
            values.update(critic_gap=gap, loss_d=loss_d.item(), loss_g=loss_g.item())
        bar.update()
        if evaluate is not None and (step % args.eval_every == 0 or step == args.steps):
            result = evaluate()
            monitor.write("eval", **result)
            bar.set_postfix(distance=result["distance"], ratio=monitor.totals.ratio)
    bar.close()

    if evaluate is not None:
        import _plots  # here, because only one rank needs matplotlib

        monitor.write("summary", ranks=size, **monitor.totals.as_dict())
        monitor.close()
        panels = {"start": start, f"step {args.steps}": evaluate.samples()}
        averaged = evaluate.averaged_samples()
        if averaged is not None:
            panels["ergodic average"] = averaged
        panels = {k: v[:64].clone() for k, v in {**panels, "held-out": evaluate.real}.items()}
        torch.save(
            {
                "generator": generator.state_dict(),
                "critic": critic.state_dict(),
                "optimizer": optimizer.state_dict(),  # QODA: with what compression has adapted
                "arguments": plain(args),
                "samples": panels,
            },
            run / "checkpoint.pt",
        )
        _plots.samples(run / "samples.png", panels)
        _plots.curves(run / "curves.png", {args.compression: read_lines(run / "metrics.jsonl")})
        print(f"wgan: results are in {run}")


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError) as error:  # a bad flag or a bad file, not a bug
        sys.exit(f"wgan.py: {error}")

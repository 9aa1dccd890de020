"""QODA on three variational inequalities with known gaps: fewer exchanges, then fewer bits.

    python examples/variational_inequality.py            # gap.png and a table, about two minutes
    python examples/variational_inequality.py --noise relative --iterations 5000

K nodes are simulated in one process: each draws its own noise around the same field, its vector is
compressed, and all use the mean of the decoded vectors. Bits are the true lengths of the payloads
of ``Compression.layerwise``; where Horovod is not installed they are estimated by the entropy of a
dithered quantizer's symbols.

Problems (docs/theory.md §1, §6):

- bilinear: min_x max_y (x − x*)ᵀB(y − y*); plain descent-ascent spirals out.
- quadratic: the gradient of a convex quadratic, co-coercive; everything converges.
- matrix game: min_x max_y xᵀMy over two simplices, by Euclidean projection.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from _problems import Problem, bilinear, matrix_game, quadratic
from torch import Tensor

from horovod_qoda import theory
from horovod_qoda.qoda import QODA

Vectors = Tensor  # (nodes, d)
Compressor = Callable[[Tensor], tuple[Tensor, float]]  # vector -> what arrives, bits sent


# --- nodes and what they send --------------------------------------------------------------------


def float32(vector: Tensor) -> tuple[Tensor, float]:
    return vector.float().double(), 32.0 * vector.numel()


def layerwise(bits: float, generator: torch.Generator) -> tuple[Compressor, str]:
    """The package's compressor, or a stand-in where it cannot be imported; and which it is."""
    try:
        from horovod_qoda.torch.compression import Compression
    except ImportError as error:
        return dithered(bits, generator), f"dithered stand-in, no Horovod ({error})"
    compression = Compression.layerwise(bits=bits)

    def compress(vector: Tensor) -> tuple[Tensor, float]:
        payload, ctx = compression.compress(vector)
        return compression.decompress(payload, ctx), 8.0 * payload.numel()

    return compress, f"Compression.layerwise(bits={bits:g})"


def dithered(bits: float, generator: torch.Generator) -> Compressor:
    """Subtractive dither at the step whose rate bound is `bits` (docs/theory.md §8)."""
    c = (math.exp2(2 * bits) / (2 * math.pi * math.e) - 1 / 3) ** -0.5

    def compress(vector: Tensor) -> tuple[Tensor, float]:
        step = c * float(vector.square().mean().sqrt())
        if step == 0.0:
            return vector.clone(), 0.0
        u = torch.rand(vector.shape, generator=generator, dtype=vector.dtype)
        k = torch.floor(vector / step + u)
        _, counts = k.unique(return_counts=True)
        rate = theory.entropy((counts / counts.sum()).numpy())
        return (k - u + 0.5) * step, 32.0 + rate * vector.numel()

    return compress


def make_noise(name: str, generator: torch.Generator) -> Callable[[Tensor, int], Vectors]:
    """(A(z), nodes) -> one noisy vector a node: absolute σ² = 1, relative σ_R = ½."""

    def noisy(exact: Tensor, nodes: int) -> Vectors:
        if name == "none":
            return exact.expand(nodes, -1)
        size = 1.0 if name == "absolute" else 0.5**0.5 * float(torch.linalg.vector_norm(exact))
        draw = torch.randn(nodes, exact.numel(), generator=generator, dtype=exact.dtype)
        return exact + draw * (size / exact.numel() ** 0.5)

    return noisy


@dataclass
class Cluster:
    """K nodes that evaluate the field at the same point and exchange what they get."""

    problem: Problem
    noise: Callable[[Tensor, int], Vectors]
    compress: Compressor
    nodes: int
    exchanges: int = 0
    bits: float = field(default=0.0)  # sent by each node so far, mean over nodes

    def exchange(self, z: Tensor) -> Vectors:
        """The decoded vectors of all nodes at z; one exchange."""
        sent = [self.compress(v) for v in self.noise(self.problem.operator(z), self.nodes)]
        self.exchanges += 1
        self.bits += sum(bits for _, bits in sent) / self.nodes
        return torch.stack([vector for vector, _ in sent])


# --- methods: each yields the ergodic average after every iteration ------------------------------


def qoda(cluster: Cluster, variant: str) -> Iterator[Tensor]:
    """The package's optimizer, fed as the distributed wrapper feeds it; one exchange a step."""
    problem, nodes = cluster.problem, cluster.nodes

    class Projected(QODA):
        def project_(self, params: list[Tensor], points: list[Tensor]) -> None:
            for point in points:
                point.copy_(problem.project(point))

    z = torch.nn.Parameter(problem.start.clone())
    optimizer = Projected([z], variant=variant)
    previous = torch.zeros(nodes, z.numel(), dtype=z.dtype)
    while True:
        vectors = cluster.exchange(z.detach())
        z.grad = vectors.mean(0)
        optimizer.receive_sums(
            float(vectors.square().sum()) / nodes**2,
            float((vectors - previous).square().sum()) / nodes**2,
        )
        previous = vectors
        optimizer.step()
        with optimizer.average():
            mean = z.detach().clone()
        yield mean


def q_genx(cluster: Cluster) -> Iterator[Tensor]:
    """Extra-gradient with dual averaging (arXiv 2308.09187); two exchanges a step."""
    start, project = cluster.problem.start, cluster.problem.project
    base, dual, total = start.clone(), torch.zeros_like(start), 0.0
    mean, t = torch.zeros_like(start), 0
    while True:
        first = cluster.exchange(base)
        lead = project(base - (1.0 + total) ** -0.5 * first.mean(0))
        second = cluster.exchange(lead)
        t += 1
        mean = mean + (lead - mean) / t
        dual = dual - second.mean(0)
        total += float((first - second).square().sum()) / cluster.nodes**2
        base = project(start + (1.0 + total) ** -0.5 * dual)
        yield mean


def descent_ascent(cluster: Cluster, step: float = 0.1) -> Iterator[Tensor]:
    """Simultaneous gradient descent-ascent with a constant step; one exchange a step."""
    z, t = cluster.problem.start.clone(), 0
    mean = torch.zeros_like(z)
    while True:
        t += 1
        mean = mean + (z - mean) / t
        z = cluster.problem.project(z - step * cluster.exchange(z).mean(0))
        yield mean


METHODS: dict[str, Callable[[Cluster], Iterator[Tensor]]] = {
    "QODA coupled": lambda cluster: qoda(cluster, "coupled"),
    "QODA separated": lambda cluster: qoda(cluster, "separated"),
    "Q-GenX": q_genx,
    "SGDA": descent_ascent,
}


# --- runs, table, figure -------------------------------------------------------------------------


# The gap at which bits are compared, over the last one of float32 QODA. Above 1, since noise would
# otherwise decide who just about touches the target.
SLACK = 1.5


@dataclass
class Curve:
    """What one run showed, at log-spaced iterations."""

    problem: str
    noise: str
    method: str
    quantized: bool
    exchanges: list[int]
    bits: list[float]
    gaps: list[float]

    def slope(self) -> float:
        """Exponent of the gap over exchanges, from a twentieth of the run on."""
        late = [i for i, n in enumerate(self.exchanges) if n >= self.exchanges[-1] / 20]
        x, y = np.log(np.array(self.exchanges)[late]), np.log(np.array(self.gaps)[late])
        return float(np.polyfit(x, y, 1)[0])


def run(method: str, cluster: Cluster, noise: str, quantized: bool, iterations: int) -> Curve:
    checkpoints = {round(iterations ** (i / 30)) for i in range(1, 31)}
    curve = Curve(cluster.problem.name, noise, method, quantized, [], [], [])
    for t, mean in zip(range(1, iterations + 1), METHODS[method](cluster), strict=False):
        if t in checkpoints:
            curve.exchanges.append(cluster.exchanges)
            curve.bits.append(cluster.bits)
            curve.gaps.append(cluster.problem.gap(mean))
    return curve


def bits_to_reach(curve: Curve, gap: float) -> float:
    """Bits sent when the curve first crosses `gap`, on log-log lines; inf where it never does."""
    for i, found in enumerate(curve.gaps):
        if found > gap:
            continue
        if i == 0:
            return curve.bits[0]
        share = math.log(curve.gaps[i - 1] / gap) / math.log(curve.gaps[i - 1] / found)
        return curve.bits[i - 1] * (curve.bits[i] / curve.bits[i - 1]) ** share
    return math.inf


def print_table(curves: list[Curve]) -> None:
    print(
        f"{'problem':12s} {'noise':9s} {'method':15s} {'sent':9s} {'exchanges':>9s} {'slope':>7s} "
        f"{'gap':>9s} {'Mbit':>7s} {'Mbit to target':>15s}"
    )
    for curve in curves:
        final = next(
            c.gaps[-1]
            for c in curves
            if (c.problem, c.noise) == (curve.problem, curve.noise) and c.method == "QODA coupled"
        )
        needed = bits_to_reach(curve, SLACK * final)
        print(
            f"{curve.problem:12s} {curve.noise:9s} {curve.method:15s} "
            f"{'quantized' if curve.quantized else 'float32':9s} {curve.exchanges[-1]:9d} "
            f"{curve.slope():7.2f} {curve.gaps[-1]:9.2e} {curve.bits[-1] / 1e6:7.2f} "
            f"{'not reached' if math.isinf(needed) else f'{needed / 1e6:.2f}':>15s}"
        )
    print(f"target: {SLACK} times the last gap of float32 QODA coupled; Mbit: sent by each node")


def plot(curves: list[Curve], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    problems = list(dict.fromkeys(curve.problem for curve in curves))
    noises = list(dict.fromkeys(curve.noise for curve in curves))
    colors = {method: f"C{i}" for i, method in enumerate(METHODS)}
    figure, axes = plt.subplots(
        len(problems),
        2 * len(noises),
        figsize=(9 * len(noises), 3.4 * len(problems)),
        squeeze=False,
    )
    for row, problem in enumerate(problems):
        for column in range(2 * len(noises)):
            noise, axis = noises[column // 2], axes[row][column]
            for curve in curves:
                if (curve.problem, curve.noise) != (problem, noise):
                    continue
                over = curve.bits if column % 2 else curve.exchanges
                label = curve.method + (" quantized" if curve.quantized else "")
                style = "--" if curve.quantized else "-"
                axis.loglog(over, curve.gaps, style, color=colors[curve.method], label=label)
            shown = [
                gap
                for curve in curves
                if (curve.problem, curve.noise) == (problem, noise) and curve.method != "SGDA"
                for gap in curve.gaps
            ]
            axis.set_ylim(0.5 * min(shown), 3 * max(shown))
            axis.set_title(f"{problem}, noise: {noise}")
            axis.set_xlabel("bits sent by a node" if column % 2 else "exchanges")
            axis.set_ylabel("gap at the ergodic average")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--d", type=int, default=1024, help="coordinates of both players, even")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--bits", type=float, default=3.0, help="of the quantized runs")
    parser.add_argument(
        "--noise", nargs="+", default=["none", "absolute"], choices=["none", "relative", "absolute"]
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("gap.png"))
    args = parser.parse_args()
    if args.d < 4 or args.d % 2 or args.iterations < 40 or args.nodes < 1:
        parser.error(
            "--d must be even and at least 4, --iterations at least 40, --nodes at least 1"
        )

    generator = torch.Generator().manual_seed(args.seed)
    quantizer, description = layerwise(args.bits, generator)
    print(f"{args.nodes} nodes, {args.d} coordinates, quantized by {description}")
    curves = []
    for make in (bilinear, quadratic, matrix_game):
        problem = make(args.d // 2, np.random.default_rng(args.seed))
        for noise in args.noise:
            for quantized in (False, True):
                for method in METHODS:
                    if quantized and method == "SGDA":
                        continue
                    compress = quantizer if quantized else float32
                    cluster = Cluster(problem, make_noise(noise, generator), compress, args.nodes)
                    curves.append(run(method, cluster, noise, quantized, args.iterations))
    print_table(curves)
    plot(curves, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

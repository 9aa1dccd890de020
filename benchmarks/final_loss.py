"""Final loss at equal coded bits: which quantiser, and which steps, under SGD, Adam and QODA.

    python benchmarks/final_loss.py --optimizers adam --bits 0.75 --seeds 0 1 2

One process trains a small language model (the next of 1,024 Python tokens from four, read from the
standard library's sources). Every step's gradient goes through a real payload of the codec: one
rank, so that the quantiser's noise is not averaged away. Layers of the one-stream quantiser have
steps proportional to RMS^a; their common factor is steered so that payloads take the bits asked
for. Level quantisers have the number of levels nearest to them. Biases travel raw.

Prints, for every configuration, mean bits per quantised coordinate, the relative squared error and
the held-out loss over seeds; ``--json FILE`` keeps the runs, and those in it are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from horovod_qoda.coding import SEGMENT, Header, decode, encode, max_payload_bytes
from horovod_qoda.layout import ALIGN
from horovod_qoda.qoda import QODA
from horovod_qoda.quantization import step_factor
from horovod_qoda.quantization.adaptive import count_for_rate, fit_levels
from horovod_qoda.quantization.families import level_sequence
from horovod_qoda.quantization.histogram import normalised_histograms

VOCABULARY, CONTEXT, WIDTH, HIDDEN = 1024, 4, 32, 128
BATCH, STEPS, REFIT = 64, 300, 25
BUCKET = 1024
# Each the best of three tried without compression, factors of 2 or 3 apart.
RATES = {"sgd": 0.5, "adam": 2e-3, "qoda": 10.0}
POWERS = {"auto": 1.0, "auto a=1/2": 0.5, "auto a=0": 0.0, "rounded": 1.0, "dithered": 1.0}
LEVELS = ("uniform", "adaptive", "exponential")
ZERO_SHARE = 0.01


def tokens() -> Tensor:
    """Tokens of Python sources, int64; number 0 is every token that is not frequent."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = "\n".join(p.read_text(errors="ignore") for p in sorted(folder.glob("*.py"))[:30])
    words = re.findall(r"\w+|[^\w\s]|\n", text)
    names, counts = np.unique(words, return_counts=True)
    frequent = names[np.argsort(-counts, kind="stable")][: VOCABULARY - 1]
    number = {word: i + 1 for i, word in enumerate(frequent)}
    return torch.tensor([number.get(word, 0) for word in words])


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Embedding(VOCABULARY, WIDTH), nn.Flatten(), nn.Linear(CONTEXT * WIDTH, HIDDEN),
        nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, VOCABULARY),
    )  # fmt: skip


class Channel:
    """Quantises the gradients of all matrices through one payload.

    Attributes:
        bits: of every step, per coordinate.
        errors: of every step, squared and relative.
    """

    def __init__(self, matrices: list[nn.Parameter], config: str, bits: float, seed: int) -> None:
        self.matrices, self.config, self.wanted, self.seed = matrices, config, bits, seed
        self.bits: list[float] = []
        self.errors: list[float] = []
        sizes = [p.numel() for p in matrices]
        places = np.cumsum([0, *(-(-n // ALIGN) * ALIGN for n in sizes)])
        self.rows = np.zeros(len(matrices), SEGMENT)
        self.rows["offset"], self.rows["numel"] = places[:-1], sizes
        self.rows["layer"] = self.rows["type"] = np.arange(len(matrices))
        self.values, self.out = np.zeros((2, places[-1]), np.float32)
        self.levels: list[np.ndarray] = []
        self.factor = step_factor(bits)
        self.rows["quantizer"] = 1
        if config in LEVELS:
            self.rows["quantizer"] = 3 if config == "maxmin" else 2
            self.rows["bucket"] = BUCKET
            self.rows["levels"] = np.arange(len(matrices))
            self.levels = [level_sequence(config, bits, BUCKET, "linf") for _ in matrices]

    def __call__(self, step: int) -> None:
        views = [self.values[r["offset"] :][: r["numel"]] for r in self.rows]
        for p, view in zip(self.matrices, views, strict=True):
            view[:] = p.grad.ravel().numpy()
        if self.config in POWERS:
            self._steps(views)
        elif self.config == "adaptive" and step % REFIT == 0:
            self._fit(views)
        header = Header(1, step, 0, 0, 0, self.seed)
        payload = np.empty(max_payload_bytes(self.rows), np.uint8)
        length = encode(self.values, self.rows, header, payload, levels=self.levels)
        decode(payload[:length], self.rows, self.out, expect=header, levels=self.levels)
        count = int(self.rows["numel"].sum())
        self.bits.append(8 * length / count)
        power = float(np.sum(self.values.astype(np.float64) ** 2))
        error = self.out.astype(np.float64) - self.values
        self.errors.append(float(np.sum(error**2)) / power if power else 0.0)
        self.factor *= 2.0 ** (0.3 * (self.bits[-1] - self.wanted))
        for p, r in zip(self.matrices, self.rows, strict=True):
            p.grad.copy_(torch.from_numpy(self.out[r["offset"] :][: r["numel"]]).view(p.shape))

    def _steps(self, views: list[np.ndarray]) -> None:
        rms = np.array([math.sqrt(float(np.mean(v.astype(np.float64) ** 2))) for v in views])
        whole = math.sqrt(np.average(rms**2, weights=[len(v) for v in views]))
        power = POWERS[self.config]
        steps = self.factor * rms**power * whole ** (1 - power)
        self.rows["step"] = np.where(rms > 0, steps, 0)
        for row, v in zip(self.rows, views, strict=True):
            row["reconstruction"] = self._dithered(v, float(row["step"]))

    def _dithered(self, v: np.ndarray, step: float) -> bool:
        if self.config in ("rounded", "dithered"):
            return self.config == "dithered"
        if step == 0 or np.count_nonzero(v == 0) >= ZERO_SHARE * len(v):
            return False
        fraction = np.modf(np.abs(v.astype(np.float64)) / step)[0]
        return bool(np.mean(fraction * (1 - fraction)) > 1 / 12)

    def _fit(self, views: list[np.ndarray]) -> None:
        for i, v in enumerate(views):
            counts, weighted = normalised_histograms(v, BUCKET, "linf")
            if weighted[1:-1].any():
                count = count_for_rate(counts, weighted, self.wanted, BUCKET)
                self.levels[i] = fit_levels(weighted, count)


def batch_loss(net: nn.Module, text: Tensor, count: int, chooser: torch.Generator) -> Tensor:
    """Loss of windows drawn from the first nine tenths of the text."""
    at = torch.randint(_split(text) - CONTEXT, (count,), generator=chooser)
    return _loss(net, text[at[:, None] + torch.arange(CONTEXT + 1)])


def held_out_loss(net: nn.Module, text: Tensor) -> float:
    """Loss of every third window of the last tenth."""
    with torch.no_grad():
        return _loss(net, text[_split(text) :].unfold(0, CONTEXT + 1, 3)).item()


def _split(text: Tensor) -> int:
    return len(text) * 9 // 10


def _loss(net: nn.Module, windows: Tensor) -> Tensor:
    return nn.functional.cross_entropy(net(windows[:, :-1]), windows[:, -1])


def train(optimizer: str, config: str, bits: float, seed: int, rate: float, text: Tensor) -> Any:
    torch.manual_seed(seed)
    net = model()
    make: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "qoda": QODA}
    updates = make[optimizer](net.parameters(), lr=rate)
    matrices = [p for p in net.parameters() if p.dim() > 1]
    channel = None if config == "float32" else Channel(matrices, config, bits, seed)
    chooser = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        updates.zero_grad()
        batch_loss(net, text, BATCH, chooser).backward()
        if channel is not None:
            channel(step)
        updates.step()
    late = slice(STEPS // 10, None)
    return {
        "optimizer": optimizer, "config": config, "wanted": bits, "seed": seed, "rate": rate,
        "loss": held_out_loss(net, text),
        "bits": statistics.fmean(channel.bits[late]) if channel else 32.0,
        "error": statistics.fmean(channel.errors[late]) if channel else 0.0,
    }  # fmt: skip


def show(rows: list[dict[str, Any]], optimizer: str, bits: float) -> None:
    print(
        f"\n{optimizer}, {bits} bits\n| quantiser | bits | relative error | loss | over float32 |"
    )
    print("|---|---|---|---|---|")
    mine = [r for r in rows if r["optimizer"] == optimizer and r["wanted"] == bits]
    plain = {r["seed"]: r["loss"] for r in mine if r["config"] == "float32"}
    for config in dict.fromkeys(r["config"] for r in mine):
        of = [r for r in mine if r["config"] == config]
        loss = [r["loss"] for r in of]
        over = [r["loss"] - plain[r["seed"]] for r in of if r["seed"] in plain]
        spread = statistics.stdev(over) if len(over) > 1 else 0.0
        print(
            f"| {config} | {statistics.fmean(r['bits'] for r in of):.2f} "
            f"| {statistics.fmean(r['error'] for r in of):.3f} | {statistics.fmean(loss):.3f} "
            f"| {statistics.fmean(over):+.3f} ± {spread:.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizers", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--configs", nargs="+", default=["float32", *POWERS, *LEVELS])
    parser.add_argument("--bits", type=float, nargs="+", default=[0.75])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rate", type=float, help="learning rate, to search for it")
    parser.add_argument("--json", type=Path, help="file of finished runs, read and added to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = tokens()
    rows = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    for optimizer in args.optimizers:
        rate = args.rate or RATES[optimizer]
        for bits in args.bits:
            for seed in args.seeds:
                for config in args.configs:
                    what = (optimizer, config, bits, seed, rate)
                    keys = ("optimizer", "config", "wanted", "seed", "rate")
                    if any(tuple(r[k] for k in keys) == what for r in rows):
                        continue
                    rows.append(train(*what, text))
                    if args.json:
                        args.json.write_text(json.dumps(rows, indent=1))
            show([r for r in rows if r["rate"] == rate], optimizer, bits)


if __name__ == "__main__":
    main()

"""A Transformer-XL language model over Horovod ranks, with quantized gradient exchange.

    python launch/run.py -np 2 -- python examples/transformer_xl.py --steps 300
    python launch/run.py -np 4 -- python examples/transformer_xl.py --compression none
    python launch/run.py -np 4 -- python examples/transformer_xl.py --data wikitext-103 --symbols 0

By default it learns Python from the standard library's own sources, which are on every machine;
--data takes a folder laid out as WikiText-103 (wiki.train.tokens, wiki.valid.tokens). Results are
in runs/NAME: metrics.jsonl, curves.png, checkpoint.pt, and a table at the end.

Lines that concern this package carry the comment "# QODA:"; all others are an ordinary Horovod
script.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _curves
import _progress
import _text
import numpy as np
import torch
from _arguments import plain, positive
from _transformer_xl import Shape, TransformerXL
from torch import Tensor

import horovod_qoda.torch as hvd  # QODA: instead of `import horovod.torch as hvd`
from horovod_qoda import flags  # QODA: the compressor's settings as flags
from horovod_qoda.monitor import Monitor, read_lines  # QODA: bytes and times of every exchange

# Streams of held-out text, whatever the number of ranks, so that losses can be compared.
HELD_OUT_STREAMS = 8


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Transformer-XL with compressed gradients.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--compression", choices=["layerwise", "none", "fp16"], default="layerwise")
    parser.add_argument("--optimizer", choices=["adam", "sgd"], default="adam")
    parser.add_argument("--steps", type=positive, default=300)
    # Not tuned: what matters is that all compressors that are compared have the same.
    parser.add_argument("--lr", type=float, default=2e-3, help="at its highest, after the warm-up")
    parser.add_argument("--lr-warmup", type=int, default=20, help="steps over which lr rises")
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    parser.add_argument("--batch", type=positive, default=8, help="streams of text a rank")
    parser.add_argument("--segment", type=positive, default=64, help="symbols a stream and step")
    for field in dataclasses.fields(Shape)[1:]:
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--data", type=Path, help="folder of WikiText; default: Python's sources")
    parser.add_argument("--symbols", type=int, default=8192, help="vocabulary; 0: every word")
    parser.add_argument("--megabytes", type=float, default=4.0, help="of Python's sources")
    parser.add_argument("--model-seed", type=int, default=0, help="of weights and streams")
    parser.add_argument("--name", default="transformer-xl", help="results go to RUNS/NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--eval-every", type=positive, default=100, help="steps")
    parser.add_argument("--eval-symbols", type=positive, default=32768, help="of held-out text")
    parser.add_argument("--progress", type=float, default=5.0, help="seconds between updates")
    flags.add_arguments(parser)  # QODA: --bits, --quantizer, --topology, --rule, ...
    return parser.parse_args()


def make_optimizer(args: argparse.Namespace, model: TransformerXL) -> Any:
    compression = {
        # QODA: replaces hvd.Compression.none or .fp16
        "layerwise": hvd.Compression.layerwise(**dataclasses.asdict(flags.from_arguments(args))),
        "none": hvd.Compression.none,
        "fp16": hvd.Compression.fp16,
    }[args.compression]
    if args.optimizer == "adam":
        inner: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), args.lr)
    else:
        inner = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9)
    return hvd.DistributedOptimizer(
        inner, named_parameters=model.named_parameters(), compression=compression
    )


def segments(streams: np.ndarray, length: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Symbols and their successors, [n, length] int64, one segment after the other; and whether
    they start the text, so that nothing is to be remembered."""
    for start in range(0, streams.shape[1] - 1, length):
        part = torch.from_numpy(streams[:, start : start + length + 1].astype(np.int64))
        yield part[:, :-1], part[:, 1:], start == 0


def endless(streams: np.ndarray, length: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    while True:
        yield from segments(streams, length)


class Evaluation:
    """Loss on held-out text; every rank reads its share of the streams."""

    def __init__(self, model: TransformerXL, corpus: _text.Corpus, args: argparse.Namespace):
        self._model, self._length = model, args.segment
        text = corpus.heldout[: args.eval_symbols]
        streams = _text.streams(text, HELD_OUT_STREAMS)
        self._mine = streams[hvd.rank() :: hvd.size()]
        predicted = streams[:, 1:]
        # The first symbol of a stream is not predicted, so its bytes do not count.
        self._bytes = None if corpus.bytes is None else int(corpus.bytes[predicted].sum())

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``nats`` and ``perplexity`` a symbol, and ``bits_per_byte``; equal on all ranks."""
        self._model.eval()
        total, count, memory = 0.0, 0, self._model.no_memory(len(self._mine))
        for symbols, targets, _ in segments(self._mine, self._length) if len(self._mine) else ():
            loss, memory = self._model(symbols, targets, memory)
            total += loss.item() * targets.numel()
            count += targets.numel()
        self._model.train()
        sums = torch.tensor([total, count], dtype=torch.float64)
        total, count = hvd.allreduce(sums, op=hvd.Sum, name="evaluation").tolist()
        result = {"nats": total / count, "perplexity": math.exp(min(total / count, 700.0))}
        if self._bytes is not None:
            result["bits_per_byte"] = total / math.log(2) / self._bytes
        return result


def main() -> None:
    args = parse()
    hvd.init()
    rank, size, first = hvd.rank(), hvd.size(), hvd.rank() == 0
    corpus = _text.load(args.data, args.symbols, args.megabytes)
    torch.manual_seed(args.model_seed)
    sizes = {f.name: getattr(args, f.name) for f in dataclasses.fields(Shape)[1:]}
    model = TransformerXL(Shape(corpus.symbols, **sizes))
    optimizer = make_optimizer(args, model)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step, args.lr_warmup, args.steps)
    )

    # The seed turns the text, so that streams start elsewhere; each rank takes its own streams.
    turned = np.roll(corpus.train, -7919 * args.model_seed)
    streams = _text.streams(turned, args.batch * size)[rank * args.batch : (rank + 1) * args.batch]
    torch.manual_seed(args.model_seed * size + rank + 1)
    run = args.runs / args.name
    monitor = Monitor(run / "metrics.jsonl" if first else None)  # QODA:
    monitor.watch(optimizer)  # QODA: every exchange is counted, now and then layer by layer
    evaluate = Evaluation(model, corpus, args)
    if first:
        count = sum(p.numel() for p in model.parameters())
        print(f"transformer_xl: {corpus.name}; {corpus.symbols:,} symbols; {count:,} parameters")
    monitor.write("start", ranks=size, data=corpus.name, arguments=plain(args))
    monitor.write("eval", **evaluate())

    bar = _progress.progress(args.steps, args.name, args.progress, shown=first)
    memory = model.no_memory(args.batch)
    text = endless(streams, args.segment)
    for step in range(1, args.steps + 1):
        with monitor.step() as values:
            symbols, targets, new = next(text)
            if new:
                memory = model.no_memory(args.batch)
            optimizer.zero_grad()
            loss, memory = model(symbols, targets, memory)
            loss.backward()
            optimizer.synchronize()  # QODA: the exchange; gradients are means over ranks from here
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            with optimizer.skip_synchronize():
                optimizer.step()
            schedule.step()
            values.update(loss=loss.item(), norm=norm.item())
        bar.update()
        if step % args.eval_every == 0 or step == args.steps:
            result = evaluate()
            monitor.write("eval", **result)
            bar.set_postfix(nats=result["nats"], ratio=monitor.totals.ratio)
    bar.close()
    monitor.write("summary", ranks=size, **monitor.totals.as_dict())
    monitor.close()

    if first:
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),  # QODA: with what compression has adapted
                "arguments": plain(args),
            },
            run / "checkpoint.pt",
        )
        lines = read_lines(run / "metrics.jsonl")
        _curves.plot(run / "curves.png", {args.compression: lines})
        print(_curves.table(lines, symbols_per_step=args.batch * args.segment * size))
        print(f"transformer_xl: results are in {run}")


def learning_rate(step: int, warmup: int, steps: int) -> float:
    """Share of the highest rate: up in a line, then down along a cosine to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError) as error:  # a bad flag or a bad file, not a bug
        sys.exit(f"transformer_xl.py: {error}")

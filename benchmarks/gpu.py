"""The codec for CUDA tensors, stage by stage, against the device's copy bandwidth.

    python benchmarks/gpu.py [--mb 64 256] [--bits 3] [--ranks 4] [--json FILE]
    TRITON_INTERPRET=1 python benchmarks/gpu.py --mb 0.002 --shrink 200    (does the code run?)

Every kernel's time comes from PyTorch's profiler; whole calls are timed on the host's clock, since
they wait for the device inside. A stage's bound is the time in which a device-to-device copy moves
the stage's bytes (each input read once, each output written once); `share` is bound / measured. A
whole exchange is that of one rank with itself, coded by the kernels and by the native codec; with
those of two models' gradients goes a wire of 1, 10 and 100 Gbit/s, by arithmetic (_gpu_wire.py).
Small payloads are coded by the device and by the CPU: from which size on the device is faster.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import _gpu_rivals as rivals
import _gpu_wire as wire
import numpy as np
import torch

import horovod_qoda.native._codec as _codec
from horovod_qoda import coding, kernels
from horovod_qoda.coding import SEGMENT, Header
from horovod_qoda.coding.payload import symbols
from horovod_qoda.exchange import Exchange, placement
from horovod_qoda.kernels.geometry import BLOCK
from horovod_qoda.layout import build
from horovod_qoda.quantization import step_factor, step_size, uniform
from horovod_qoda.settings import Settings
from horovod_qoda.transport import local_transports

WARM_UP, REPEATS = 3, 15
LAYER = 4 << 20  # coordinates of a layer: a large matrix of a transformer

SMALL = [4096, 16384, 65536, 2 * 65536, 4 * 65536, 8 * 65536, 16 * 65536]
"""Symbols of payloads that the CPU may code faster than the device."""

TARGETS = {"quantize_tiles": 0.6, "float32 -> payload": 0.25, "payloads -> sum": 0.25}
"""Shares of the copy bound that stages with these words in their names should reach."""


def median_s(call: Callable[[], object], wait: Callable[[], None]) -> float:
    for _ in range(WARM_UP):
        call()
    wait()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def kernel_s(call: Callable[[], object]) -> dict[str, float]:
    """Mean device time in one call, by kernel and by direction of copies."""
    from torch.profiler import ProfilerActivity, profile

    call()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        for _ in range(5):
            call()
        torch.cuda.synchronize()
    return {
        row.key: row.device_time_total / 1e6 / 5
        for row in recorded.key_averages()
        if row.device_time_total > 0 and row.device_type == torch.autograd.DeviceType.CUDA
    }


def exchange(shapes: wire.Shapes, bits: float, device: str, codec: str) -> wire.Measured:
    """From the first gradient put to the last mean in its place; one rank, so no bytes travel."""
    settings = Settings(bits=bits)
    named = [(f"{i}.weight", shape, "torch.float32") for i, shape in enumerate(shapes)]
    layout = build(named, settings)
    gradients = [torch.randn(shape, device=device) for shape in shapes]
    means = [torch.empty_like(g) for g in gradients]
    os.environ[placement.VARIABLE] = codec
    (alone,) = local_transports(1)
    one = Exchange(layout, settings, alone, 0, devices=[g.device for g in gradients])
    records = []

    def once() -> None:
        for layer, gradient in enumerate(gradients):
            one.put(layer, gradient)
        for layer, mean in enumerate(means):
            there = one.mean(layer)
            flat = torch.from_numpy(there) if isinstance(there, np.ndarray) else there
            mean.copy_(flat.view(mean.shape))
        records.append(one.finish()[0])

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = median_s(once, wait)
    one.close()
    flat = torch.cat([g.reshape(-1) for g in gradients])
    half = torch.empty_like(flat, dtype=torch.float16)
    return wire.Measured(
        coordinates=flat.numel(),
        total=seconds,
        encode=float(np.median([r.encode_s for r in records])),
        decode=float(np.median([r.decode_s for r in records])),
        payload=float(np.median([r.payload_bytes for r in records])),
        cast=median_s(lambda: (half.copy_(flat), flat.copy_(half)), wait),
    )


def layers(n: int, quantizer: int, values: torch.Tensor, bits: float) -> np.ndarray:
    """Layers of LAYER coordinates and a rest, with steps for about ``bits`` bits a coordinate."""
    starts = np.arange(0, n, LAYER)
    rows = np.zeros(len(starts), SEGMENT)
    rows["offset"], rows["layer"] = starts, np.arange(len(starts))
    rows["numel"] = np.minimum(n - starts, LAYER)
    rows["quantizer"], rows["bucket"] = quantizer, 1024 if quantizer == 2 else 0
    for row in rows:
        part = values[int(row["offset"]) :][: int(row["numel"])].double()
        row["step"] = step_size(step_factor(bits), float(part.square().sum()), part.numel())
    rows["reconstruction"] = np.arange(len(rows)) % 2 if quantizer == 1 else 0
    return rows


def even(mb: float) -> wire.Shapes:
    """Layers of LAYER coordinates, or one of what there is."""
    n = int(mb * 2**20) // 4
    count = max(n // LAYER, 1)
    return [(max(n // count // 1024, 1), min(n, 1024))] * count


def measure(mb: float, bits: float, ranks: int, device: str) -> list[dict[str, object]]:
    n = int(mb * 2**20) // 4
    on_gpu = device == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    generator = torch.Generator(device).manual_seed(1)
    values = torch.randn(n, generator=generator, device=device)
    other = torch.empty_like(values)
    half = torch.empty(n, dtype=torch.float16, device=device)
    copy_s = median_s(lambda: other.copy_(values), wait)
    rate = 8 * n / copy_s
    found: list[dict[str, object]] = []

    def note(stage: str, seconds: float, moved: float) -> None:
        found.append(
            {
                "mb": mb,
                "stage": stage,
                "ms": 1e3 * seconds,
                "bytes": moved,
                "share": moved / rate / seconds,
            }
        )

    note("device copy", copy_s, 8 * n)
    note("torch cast to float16", median_s(lambda: half.copy_(values), wait), 6 * n)
    spans = values.split(LAYER)
    note("copy_stats", median_s(lambda: kernels.copy_stats(spans), wait), 4 * n)
    header = Header(1, 2, 0, 0, 0, 3)
    for name, quantizer in (("one stream", 1), ("levels, 1024 a bucket", 2)):
        rows = layers(n, quantizer, values, bits)
        levels = [uniform(3)]
        out = kernels.pinned(rows)
        length = kernels.encode(values, rows, header, out, levels=levels)
        payload = out[:length].clone().numpy()
        by_cpu = np.empty(coding.max_payload_bytes(rows), np.uint8)
        expected = coding.encode(values.cpu().numpy(), rows, header, by_cpu, levels=levels)
        if length != expected or not np.array_equal(payload, by_cpu[:length]):
            raise SystemExit(f"{name}: the payload is not the CPU's; the times would mean nothing")

        def encode(rows=rows, out=out, levels=levels):
            return kernels.encode(values, rows, header, out, levels=levels)

        def decode(payload=payload, rows=rows, levels=levels, k=1):
            kernels.decode_sum([payload] * k, rows, other, expect=[header] * k, levels=levels)

        bits_found = 8 * length / n
        note(f"{name}: float32 -> payload ({bits_found:.2f} bits)", median_s(encode, wait), 4 * n)
        note(f"{name}: payload -> float32", median_s(decode, wait), 4 * n + length)
        many = median_s(lambda decode=decode: decode(k=ranks), wait)
        note(f"{name}: {ranks} payloads -> sum", many, 4 * n + ranks * length)
        # A code is one byte; the words of a block are as long as the payload.
        moved = {
            "quantize_tiles": 5 * n,
            "encode_streams": n + length,
            "pack_blocks": 2 * length,
            "decode_streams": n + length,
            "sum_tiles": 5 * n,
        }
        for call in (encode, decode) if on_gpu else ():
            for kernel, seconds in kernel_s(call).items():
                note(f"{name}:   {kernel}", seconds, moved.get(kernel, 0))
    step = float(layers(n, 1, values, bits)["step"][0])
    for stage in itertools.chain(rivals.hooks(values), rivals.ans(values, step)):
        if isinstance(stage, str):
            print(stage)
        else:
            name, call, moved = stage
            note(name, median_s(call, wait), moved)
    for codec in ("triton", "native"):
        note(f"whole exchange, {codec} codec", exchange(even(mb), bits, device, codec).total, 8 * n)
    return found


def small_payloads(sizes: list[int], bits: float, device: str) -> list[dict[str, float]]:
    """float32 -> payload of one layer, coded by the device and by the CPU, in turns; ms."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    header = Header(1, 2, 0, 0, 0, 3)
    found = []
    for n in sizes:
        values = torch.randn(n, device=device)
        rows = layers(n, 1, values, bits)
        out = kernels.pinned(rows)
        coders = [kernels.Coder(device, host_coded) for host_coded in (0, n)]

        def encode(coder, values=values, rows=rows, out=out):
            return kernels.encode(values, rows, header, out, coder=coder)

        there, here = zip(
            *([median_s(lambda c=c: encode(c), wait) for c in coders] for _ in range(3)),
            strict=True,
        )
        found.append({"symbols": n, "device_ms": 1e3 * min(there), "cpu_ms": 1e3 * min(here)})
    return found


def cpu_coder_s(n: int, bits: float) -> float:
    """The CPU's part of such a payload: n symbols of a byte to coding blocks; needs no device."""
    values = np.random.default_rng(1).standard_normal(n, np.float32)
    rows = layers(n, 1, torch.from_numpy(values), bits)
    codes = np.empty(n, np.uint8)
    symbols(values, rows, Header(1, 2, 0, 0, 0, 3), codes)
    freq = _codec.normalize(np.bincount(codes, minlength=256).astype(np.uint64), False)[None]
    at = np.arange(0, n, BLOCK)
    runs = np.stack([at, np.minimum(n - at, BLOCK), 0 * at], axis=1)
    out, table = np.empty(4 * n, np.uint8), (freq, np.zeros(29, np.uint8))
    large = np.full(np.count_nonzero(codes == 0), 1e6, np.float32)
    return median_s(lambda: _codec.code_symbols(codes, large, runs, [table], out), lambda: None)


def best_limit(found: list[dict[str, float]]) -> str:
    """Up to which size the CPU has won at every size measured."""
    won = itertools.takewhile(lambda row: row["cpu_ms"] < row["device_ms"], found)
    limit = max((int(row["symbols"]) for row in won), default=0)
    return f"payloads are coded fastest with {placement.HOST_CODED}={limit}"


def verdicts(found: list[dict[str, object]]) -> list[str]:
    """Each target, and whether all stages that it is for reach it at all sizes."""
    lines = []
    for words, target in TARGETS.items():
        shares = [float(str(row["share"])) for row in found if words in str(row["stage"])]
        said = f"least {min(shares):.3f}" if shares else "not measured here"
        met = "" if not shares else ", met" if min(shares) >= target else ", NOT met"
        lines.append(f"target {target:.2f} of the copy bound, {words}: {said}{met}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mb", type=float, nargs="+", default=[64, 256], help="MiB of gradients")
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--ranks", type=int, default=4, help="payloads in the sum")
    parser.add_argument("--shrink", type=int, default=1, help="divides the models' dimensions")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device, name = "cuda", ""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    elif os.environ.get("TRITON_INTERPRET") == "1":
        global WARM_UP, REPEATS
        device, WARM_UP, REPEATS = "cpu", 1, 1
        print("NO DEVICE HERE: Triton's interpreter runs the kernels, and times say nothing of one")
    else:
        sys.exit("benchmarks/gpu.py measures a CUDA device, and there is none here")
    found = []
    for mb in options.mb:
        found += measure(mb, options.bits, options.ranks, device)
    for row in found:
        print(f"{row['mb']:6g} MiB  {row['stage']:52} {row['ms']:9.3f} ms  {row['share']:6.3f}")
    print(*verdicts(found if device == "cuda" else []), sep="\n")
    small = small_payloads(SMALL if device == "cuda" else SMALL[:1], options.bits, device)
    for n in SMALL:
        ms = 1e3 * cpu_coder_s(n, options.bits)
        print(f"{n:7d} symbols to coding blocks by one core of the CPU: {ms:.3f} ms")
    for row in small:
        print(
            f"{row['symbols']:7d} symbols, float32 -> payload: coded by the device "
            f"{row['device_ms']:.3f} ms, by the CPU {row['cpu_ms']:.3f} ms"
        )
    print(best_limit(small) if device == "cuda" else "who codes small payloads: not measured here")
    models = {"Transformer-XL": wire.transformer_xl(), "WGAN": wire.wgan()}
    exchanges = {}
    for model, shapes in models.items():
        shrunk = wire.shrunk(shapes, options.shrink) if options.shrink > 1 else shapes
        exchanges[model] = exchange(shrunk, options.bits, device, "triton")
        print(*wire.report(model, exchanges[model], options.ranks), sep="\n")
    report = {
        "device": name or "none: Triton's interpreter",
        "torch": torch.__version__,
        "rows": found,
        "small_payloads": small,
        "exchanges": {model: asdict(measured) for model, measured in exchanges.items()},
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

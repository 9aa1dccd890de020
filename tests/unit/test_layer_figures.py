"""Figures of layers against the exchange's own counts, and the lines that the monitor writes."""

from __future__ import annotations

import importlib.util
import math
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from horovod_qoda import layer_figures, layout
from horovod_qoda.coding import entropy
from horovod_qoda.coding.tables import normalize
from horovod_qoda.exchange import Exchange
from horovod_qoda.monitor import LAYERS_SHARE, Monitor, read_lines
from horovod_qoda.quantization import gaussian_rate
from horovod_qoda.settings import Settings
from horovod_qoda.transport import local_transports

SHAPES = {"big": (512, 600), "small": (64, 64), "bias": (64,), "dead": (64, 64)}


def exchanged(count: int = 3, ranks: int = 2, **changes):
    """Rank 0's exchange after some rounds on Gaussian gradients, and its last record."""
    settings = Settings(**changes)
    plan = layout.build([(n, s, "torch.float32") for n, s in SHAPES.items()], settings)
    result: list = [None] * ranks

    def rank(transport):
        exchange = Exchange(plan, settings, transport, 0)
        exchange.agree()
        generator = torch.Generator().manual_seed(transport.rank)
        for _ in range(count):
            for i, (name, shape) in enumerate(SHAPES.items()):
                scale = 0.0 if name == "dead" else 10.0**-i
                exchange.put(i, scale * torch.randn(shape, generator=generator))
            for i in range(len(SHAPES)):
                exchange.mean(i)
            record, _ = exchange.finish()
        result[transport.rank] = (exchange, record)

    threads = [threading.Thread(target=rank, args=(t,)) for t in local_transports(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(result), "an exchange did not end"
    return result[0]


@pytest.mark.parametrize("topology", ["allgather", "scatter_reduce"])
def test_figures_of_a_gaussian_layer_are_those_of_the_theory(topology):
    exchange, record = exchanged(bits=3.0, topology=topology)
    known = layer_figures.model(exchange)
    assert known["names"] == list(SHAPES) and known["numel"] == [307200, 4096, 64, 4096]
    figures = layer_figures.measure(exchange, record.wire_bytes)
    by = {n: {k: v[i] for k, v in figures.items()} for i, n in enumerate(SHAPES)}
    factor = exchange.adaptation.factors.values[0]
    assert by["big"]["entropy"] == pytest.approx(gaussian_rate(factor), abs=0.05)
    assert by["big"]["bits"] == pytest.approx(record.coded_bits, abs=0.1)
    # Dithered or rounded: factor^2 / 12, or at most twice that on dense data.
    assert factor**2 / 12.5 < by["big"]["error"] < factor**2 / 5.5
    assert by["bias"] == {
        "bits": 32.0, "entropy": pytest.approx(math.nan, nan_ok=True), "error": 0.0,
        "raw_bytes": 256.0, "wire_bytes": by["bias"]["wire_bytes"],
    }  # fmt: skip
    assert by["dead"]["bits"] == by["dead"]["wire_bytes"] == 0.0 and math.isnan(by["dead"]["error"])


def test_bytes_of_layers_add_up_to_those_of_the_exchange():
    exchange, record = exchanged()
    figures = layer_figures.measure(exchange, record.wire_bytes)
    assert sum(figures["wire_bytes"]) == pytest.approx(record.wire_bytes)
    assert sum(figures["raw_bytes"]) == record.raw_bytes


@pytest.mark.parametrize("quantizer", ["uniform", "exponential", "ternary", "rounded", "dithered"])
def test_every_quantizer_can_be_looked_at(quantizer):
    exchange, record = exchanged(quantizer=quantizer)
    figures = layer_figures.measure(exchange, record.wire_bytes)
    assert 0 < figures["entropy"][0] <= figures["bits"][0] + 0.05 < 8
    assert figures["bits"][0] == pytest.approx(record.coded_bits, abs=0.25)
    assert 0 < figures["error"][0] < 10


def test_a_layer_by_power_sgd_has_the_bits_of_its_matrices():
    exchange, record = exchanged(quantizer="powersgd", low_rank=4)
    figures = layer_figures.measure(exchange, record.wire_bytes)
    assert figures["bits"][0] == 32 * 4 * (512 + 600) / (512 * 600)
    assert math.isnan(figures["error"][0]) and figures["wire_bytes"][0] > 0


def test_coded_bits_are_entropy_with_a_table_of_their_own_and_more_with_another():
    rng = np.random.default_rng(0)
    counts = np.bincount(rng.normal(128, 3, 100_000).astype(int).clip(1, 255), minlength=256)
    own = layer_figures.coded_bits(counts, None)
    assert entropy(counts) <= own <= entropy(counts) + 0.01
    wide = np.bincount(rng.normal(128, 20, 100_000).astype(int).clip(1, 255), minlength=256)
    other = layer_figures.coded_bits(counts, normalize(wide))
    assert other > own + 0.5
    # An agreed table that lacks one of the symbols is not used.
    narrow = normalize(np.bincount([127, 128, 129] * 100, minlength=256))
    assert layer_figures.coded_bits(counts, narrow) == own
    assert layer_figures.coded_bits(np.zeros(256, np.int64), None) == 0.0


def test_a_sample_is_whole_windows_of_the_layer():
    values = np.arange(10**6, dtype=np.float32)
    taken = layer_figures.sample(values).reshape(-1, layer_figures.WINDOW)
    assert len(taken) == layer_figures.WINDOWS and (np.diff(taken, axis=1) == 1).all()
    assert taken[0, 0] == 0 and taken[-1, -1] == values[-1]
    assert (layer_figures.sample(values[:5000]) == values[:5000]).all()


class Optimizer:
    """What the monitor sees of a DistributedOptimizer."""

    def __init__(self, exchange):
        self.listeners = []
        self._gradients = SimpleNamespace(carrier=SimpleNamespace(exchange=exchange))

    def add_listener(self, listener):
        self.listeners.append(listener)

    def ended(self, record):
        for listener in self.listeners:
            listener(record)


def test_the_monitor_writes_layers_at_the_interval(tmp_path):
    exchange, record = exchanged()
    optimizer = Optimizer(exchange)
    with Monitor(tmp_path / "m.jsonl", skip_steps=0) as monitor:
        monitor.watch(optimizer, every=2)
        for number in range(4):
            with monitor.step():
                optimizer.ended(type(record)(**{**vars(record), "exchange": number}))
        totals = monitor.totals
    lines = read_lines(tmp_path / "m.jsonl")
    assert [x["event"] for x in lines].count("model") == 1
    layers = [x for x in lines if x["event"] == "layers"]
    assert [x["exchange"] for x in layers] == [0, 2]
    assert layers[0]["bits"][2] == 32.0 and layers[0]["error"][3] is None
    assert totals.exchanges == 4 and 0 < totals.monitor_s <= totals.step_s * 100
    assert totals.as_dict()["overhead"] == totals.monitor_s / totals.step_s


def test_looking_at_layers_keeps_to_its_share_of_the_time(tmp_path):
    exchange, record = exchanged()
    optimizer = Optimizer(exchange)

    def end(number):
        with monitor.step():
            optimizer.ended(type(record)(**{**vars(record), "exchange": number}))

    begin = time.perf_counter()
    with Monitor(tmp_path / "m.jsonl", skip_steps=0) as monitor:
        monitor.watch(optimizer)
        end(0)
        spent = monitor.totals.monitor_s
        end(50)
        again = 100
        while time.perf_counter() - begin < 1.5 * spent / LAYERS_SHARE:
            time.sleep(spent)
            end(again)
            again += 50
    looked = [x for x in read_lines(tmp_path / "m.jsonl") if x["event"] == "layers"]
    # The line of the step was counted too, so the rest is a little shorter than that.
    assert [x["exchange"] for x in looked[:1]] == [0] and len(looked) == 2
    assert looked[1]["exchange"] > 50


def test_watching_stock_horovod_counts_and_has_no_layers(tmp_path):
    _, record = exchanged()
    optimizer = Optimizer(None)
    with Monitor(tmp_path / "m.jsonl") as monitor:
        monitor.watch(optimizer, every=1)
        with monitor.step():
            optimizer.ended(record)
    assert [x["event"] for x in read_lines(tmp_path / "m.jsonl")] == ["step"]
    with pytest.raises(ValueError, match="every must be at least 0"):
        monitor.watch(optimizer, every=-1)


def test_the_step_is_a_range_of_the_profiler():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        with Monitor().step():
            torch.ones(2) + 1
    assert any(event.key == "horovod_qoda.step" for event in profile.key_averages())


def test_tensorboard_is_optional_and_gets_the_same_figures(tmp_path):
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(ImportError, match="pip install tensorboard"):
            Monitor(tensorboard=tmp_path)
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    exchange, record = exchanged()
    optimizer = Optimizer(exchange)
    with Monitor(tensorboard=tmp_path) as monitor:
        monitor.watch(optimizer, every=1)
        with monitor.step() as values:
            optimizer.ended(record)
            values["loss"] = 0.5
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"step/loss", "step/wire_bytes", "bits/big"} <= set(events.Tags()["scalars"])
    assert events.Scalars("step/wire_bytes")[0].value == record.wire_bytes

"""The exchange with its floats on a device: the same bits as on the host, in every topology.

In Triton's interpreter, or on a device (`gpu`). Ranks are threads; tests/parallel/test_devices.py
has real ones, of both kinds in one job.
"""

from __future__ import annotations

import os
from dataclasses import astuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="Triton is not installed: pip install horovod-qoda[gpu]")

from horovod_qoda.coding import PayloadError  # noqa: E402
from horovod_qoda.exchange import Exchange, frames, travel  # noqa: E402
from horovod_qoda.exchange.codecs import HOST  # noqa: E402
from horovod_qoda.exchange.device import DeviceCodec  # noqa: E402
from horovod_qoda.exchange.placement import (  # noqa: E402
    HOST_CODED,
    VARIABLE,
    Placement,
    why_not,
)
from horovod_qoda.kernels import host_coder  # noqa: E402
from horovod_qoda.kernels.check import equals_native  # noqa: E402
from horovod_qoda.layout import build  # noqa: E402
from horovod_qoda.settings import Settings  # noqa: E402
from horovod_qoda.transport import LocalTransport, local_hosts, local_transports  # noqa: E402
from tests.threads import in_threads  # noqa: E402

DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
SMALL = [("a.weight", (9, 40)), ("a.bias", (7,)), ("b.weight", (3, 50)), ("empty", (0, 3))]
# Layers begin at multiples of 1,024, so these few coordinates make two chunks.
CUT = [*SMALL, *((f"c{i}.weight", (1, 8)) for i in range(16)), ("d.weight", (2, 40))]


@pytest.fixture
def by(monkeypatch):
    """``by(codec)``: what the exchanges made from now on use, ``triton`` or ``native``."""
    return lambda codec: monkeypatch.setenv(VARIABLE, codec)


def gradients_of(rank, step, shapes):
    """Of every dtype, some strided or absent; in step 2 one that is not finite on one rank."""
    g = torch.Generator().manual_seed(100 * step + rank)
    found = [torch.randn(s, generator=g) * 0.1 ** (i % 3) for i, (_, s) in enumerate(shapes)]
    if step == 1:
        found[0] = found[0].to(torch.bfloat16)
        found[1] = found[1].to(torch.float16)
        found[2] = found[2].t().contiguous().t()
        found[-1] = None if rank else found[-1].double()
    if step == 2 and rank == 1:
        found[0].view(-1)[5] = float("nan")
    return [None if x is None else x.to(DEVICE) for x in found]


def run(settings, shapes, steps, size=2):
    """By rank: for each step the means, QODA's sums and the bytes sent; then what has adapted.

    With two levels, two hosts of ``size`` ranks.
    """
    layout = build([(n, s, "torch.float32") for n, s in shapes], settings)
    by_hosts = settings.topology == "two_level"
    ranks = local_transports(2 * size if by_hosts else size)
    hosts = local_hosts(2, size) if by_hosts else [None] * size

    def rank(place):
        transport, mine = place
        exchange = Exchange(
            layout, settings, transport, 0, True, lambda: 0.25, mine, [DEVICE] * len(shapes)
        )
        exchange.agree()
        found = []
        for step in steps:
            for layer, gradient in enumerate(gradients_of(transport.rank, step, shapes)):
                exchange.put(layer, gradient)
            means = [as_array(exchange.mean(i)) for i in range(len(shapes))]
            record, sums = exchange.finish()
            found.append((means, astuple(sums), record.payload_bytes, record.coded_bits))
        on = [(type(b.codec), b.codec.sends) for b in exchange.routes.buffers]
        exchange.close()
        vectors = exchange.local_state_dict()["vectors"]
        return found, exchange.adaptation.state_dict(), vectors, on

    return in_threads(list(zip(ranks, hosts, strict=True)), rank)


def as_array(mean):
    return mean.cpu().numpy().copy() if isinstance(mean, torch.Tensor) else mean.copy()


def check_same(mine, theirs):
    for (found, state, vectors, _), (other, other_state, other_vectors, _) in zip(
        mine, theirs, strict=True
    ):
        for step, (a, b) in enumerate(zip(found, other, strict=True)):
            for layer, (x, y) in enumerate(zip(a[0], b[0], strict=True)):
                np.testing.assert_array_equal(x, y, err_msg=f"step {step}, layer {layer}")
            np.testing.assert_equal(a[1:], b[1:])
        np.testing.assert_equal(state, other_state)
        assert vectors.keys() == other_vectors.keys()
        for name, vector in vectors.items():
            assert torch.equal(vector, other_vectors[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "shapes", "quantizer"),
    [
        ("allgather", SMALL, "auto"),
        ("scatter_reduce", CUT, "auto"),
        ("allgather", SMALL, "adaptive"),
    ],
)
def test_means_sums_bytes_and_state_are_those_of_the_host(by, topology, shapes, quantizer):
    settings = Settings(
        bits=4, topology=topology, quantizer=quantizer, bucket_size=64, min_numel=64
    )
    steps = (1, 2, 3) if quantizer == "auto" and topology == "allgather" else (2, 3)
    by("triton")
    mine = run(settings, shapes, steps)
    by("native")
    theirs = run(settings, shapes, steps)
    assert all(kind is DeviceCodec and not sends for *_, on in mine for kind, sends in on)
    assert not any(kind is DeviceCodec for *_, on in theirs for kind, _ in on)
    check_same(mine, theirs)


def test_symbols_that_the_cpu_codes_make_the_same_exchange(by, monkeypatch):
    settings = Settings(bits=4, topology="allgather", bucket_size=64, min_numel=64)
    monkeypatch.setenv(HOST_CODED, str(1 << 20))
    coded = []
    code = host_coder.code
    monkeypatch.setattr(host_coder, "code", lambda *a: coded.append(1) or code(*a))
    by("triton")
    mine = run(settings, SMALL, (1, 2))
    assert coded, "the CPU coded nothing"
    by("native")
    check_same(mine, run(settings, SMALL, (1, 2)))


def test_who_codes_small_payloads_is_said_and_no_number_is_refused(by, monkeypatch):
    by("triton")
    layout = build([("w", (40, 40), "torch.float32")], Settings(min_numel=64))
    monkeypatch.setenv(HOST_CODED, "5000")
    placement = Placement(layout, [DEVICE])
    codec = placement.codec(layout.buffers[0])
    assert codec.coder.host_coded == 5000
    assert "up to 5000 symbols are coded by the CPU" in placement.describe()[1]
    codec.sends = True
    assert "has no effect: payloads stay on their devices" in placement.describe()[1]
    for bad in ("-1", "64k", "", "1.5"):
        monkeypatch.setenv(HOST_CODED, bad)
        with pytest.raises(ValueError, match=f"{HOST_CODED}={bad}: use a number of symbols"):
            Placement(layout, [DEVICE])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("payloads", "shapes", "each", "warmup"), [("host", SMALL, 2, 0), ("device", CUT, 3, 1)]
)
def test_two_levels_sum_and_code_on_the_device(by, monkeypatch, payloads, shapes, each, warmup):
    """Of three ranks one has an empty shard: there are two chunks."""
    monkeypatch.setenv(travel.VARIABLE, payloads)
    settings = Settings(bits=4, topology="two_level", min_numel=64, warmup_steps=warmup)
    steps = (0, 2, 3)
    by("triton")
    mine = run(settings, shapes, steps, each)
    by("native")
    theirs = run(settings, shapes, steps, each)
    sends = payloads == "device"
    assert all(kind is DeviceCodec and sent == sends for *_, on in mine for kind, sent in on)
    check_same(mine, theirs)


@pytest.mark.parametrize(("topology", "shapes"), [("allgather", SMALL), ("scatter_reduce", CUT)])
def test_payloads_that_travel_as_tensors_are_the_same(by, monkeypatch, topology, shapes):
    """Their meta parts are longer than the first look at them."""
    monkeypatch.setenv(travel.VARIABLE, "device")
    monkeypatch.setattr(frames, "_LOOK", 170)
    settings = Settings(bits=4, topology=topology, min_numel=64)
    by("triton")
    mine = run(settings, shapes, (2, 3))
    by("native")
    theirs = run(settings, shapes, (2, 3))
    assert all(kind is DeviceCodec and sends for *_, on in mine for kind, sends in on)
    check_same(mine, theirs)


def test_bytes_changed_on_the_way_between_devices_are_refused(by, monkeypatch):
    monkeypatch.setenv(travel.VARIABLE, "device")
    by("triton")
    layout = build([("w", (3, 40), "torch.float32")], settings := Settings(min_numel=64))

    def rank(transport):
        exchange = Exchange(layout, settings, transport, 0, devices=[DEVICE])
        exchange.agree()
        send = transport.allgather

        def changed(name, data):
            if transport.rank == 1:
                data[-70] ^= 1
            return send(name, data)

        transport.allgather = changed
        exchange.put(0, torch.ones(3, 40, device=DEVICE) * (1 + transport.rank))
        with pytest.raises(PayloadError, match="rank 1: checksum of block"):
            exchange.mean(0)
        exchange.close()

    in_threads(local_transports(2), rank)


class Refusing(LocalTransport):
    def why_not(self, device):
        return "no tensors" if self.rank else ""


def test_all_ranks_send_the_same_way_and_say_why(by, monkeypatch):
    by("triton")
    codec, alone = DeviceCodec(torch.device(DEVICE)), local_transports(1)[0]
    sent = travel.offer([codec, HOST], alone)
    assert "=host" in travel.why_from_host([sent])
    monkeypatch.setenv(travel.VARIABLE, "device")
    sent = travel.offer([codec, HOST], alone)
    assert travel.why_from_host([sent, sent]) == ""
    assert "travel as tensors" in travel.describe([sent, sent], alone)
    other = travel.offer([HOST, HOST], alone)
    assert travel.why_from_host([sent, other]).startswith("rank 1 codes other buffers")
    refused = travel.offer([codec, HOST], Refusing(1, 2, None))
    assert travel.why_from_host([sent, refused]) == "no tensors on rank 1"
    said = travel.describe([sent, refused], alone)
    assert travel.FROM_HOST in said and f"although {travel.VARIABLE}=device" in said
    assert travel.describe([other, other], alone) == ""
    monkeypatch.setenv(travel.VARIABLE, "nccl")
    with pytest.raises(ValueError, match="host or device"):
        travel.wanted()


def test_uncompressed_exchanges_pass_the_host_and_come_back(by):
    settings = Settings(min_numel=64, warmup_steps=2, topology="allgather")
    by("triton")
    mine = run(settings, SMALL, (0, 1))
    by("native")
    check_same(mine, run(settings, SMALL, (0, 1)))


def test_one_small_case_shows_whether_the_kernels_work_here():
    assert equals_native(DEVICE, (200, 70, 64, 64, 5))
    assert why_not(DEVICE) == ""


def test_memory_is_the_same_from_exchange_to_exchange(by):
    by("triton")
    exchange, gradient = alone((3, 40)), torch.randn(3, 40, device=DEVICE)
    before = None
    for _ in range(3):
        exchange.put(0, gradient)
        mean = exchange.mean(0)
        exchange.finish()
        (codec,) = exchange.routes.placement.codecs
        found = [mean.data_ptr(), *(x.data_ptr() for x in codec.coder.memory.every())]
        assert before is None or found == before
        before = found
    exchange.close()


def alone(shape, **options):
    """An exchange of one rank with itself, of one layer."""
    settings = Settings(bits=4, min_numel=64, topology="allgather", **options)
    layout = build([("w", shape, "torch.float32")], settings)
    return Exchange(layout, settings, local_transports(1)[0], 0, True, devices=[DEVICE])


@pytest.mark.gpu
def test_the_device_allocates_nothing_after_warm_up(by):
    by("triton")
    exchange, gradient = alone((300, 1000)), torch.randn(300, 1000, device=DEVICE)
    counts = []
    for _ in range(9):  # the next one, number 9, is an update
        exchange.put(0, gradient)
        gradient.copy_(exchange.mean(0).view(gradient.shape))
        exchange.finish()
        counts.append(torch.cuda.memory_stats()["allocation.all.allocated"])
    exchange.close()
    assert counts[5] == counts[-1], counts


@pytest.mark.gpu
def test_gradients_still_being_computed_are_waited_for_on_the_device_alone(by):
    by("triton")
    exchange, gradient = alone((300, 1000)), torch.zeros(300, 1000, device=DEVICE)
    means = []
    for value in (1.0, 2.0):
        producer, there = torch.cuda.Stream(), torch.cuda.Event()
        producer.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(producer):
            torch.cuda._sleep(500_000_000)
            gradient.fill_(value)
            there.record()
            exchange.put(0, gradient)
        assert not there.query(), "put() has waited for the gradient"
        means.append(as_array(exchange.mean(0)))
        exchange.finish()
    exchange.close()
    by("native")
    other = alone((300, 1000))
    for value, mean in zip((1.0, 2.0), means, strict=True):
        other.put(0, torch.full((300, 1000), value, device=DEVICE))
        np.testing.assert_array_equal(mean, as_array(other.mean(0)))
        other.finish()
    other.close()


@pytest.mark.parametrize(
    ("devices", "options", "why"),
    [
        (("cuda:0", "cpu"), {}, "in the CPU's memory share their buffers"),
        (("mps:0", "mps:0"), {}, "no kernels for mps"),
        (("cuda:0", "cuda:0"), {"quantizer": "powersgd"}, "PowerSGD"),
        (("cuda:9", "cuda:9"), {}, "cuda:9"),
    ],
)
def test_what_falls_back_to_the_host_says_why(by, devices, options, why):
    by("auto")
    settings = Settings(min_numel=64, **options)
    layout = build([(n, (40, 40), "torch.float32") for n in "ab"], settings)
    placement = Placement(layout, devices)
    codecs = [placement.codec(plan) for plan in layout.buffers if plan.size]
    assert not any(isinstance(codec, DeviceCodec) for codec in codecs)
    (said,) = placement.describe()
    assert "copied to the host as float32" in said and why in said
    by("triton")
    if DEVICE != "cpu":
        with pytest.raises(RuntimeError, match=VARIABLE):
            Placement(layout, devices).codec(layout.buffers[0])


def test_the_variable_asks_for_the_host_and_refuses_what_it_does_not_know(by):
    settings = Settings(min_numel=64)
    layout = build([("w", (40, 40), "torch.float32")], settings)
    by("native")
    placement = Placement(layout, ["cuda:0"])
    assert not isinstance(placement.codec(layout.buffers[0]), DeviceCodec)
    assert "=native asks for it" in placement.describe()[0]
    by("cuda")
    with pytest.raises(ValueError, match="auto, native or triton"):
        placement.codec(layout.buffers[0])


def test_nothing_is_said_of_gradients_in_the_cpus_memory(by):
    by("auto")
    settings = Settings()
    layout = build([("w", (40, 40), "torch.float32")], settings)
    placement = Placement(layout, None)
    placement.codec(layout.buffers[0])
    assert placement.describe() == []

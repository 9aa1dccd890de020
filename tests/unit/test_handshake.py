"""Ranks that agree again during training, and ranks of which only some want to."""

import zlib

import numpy as np
import pytest
import torch

from horovod_qoda.coding import PayloadError
from horovod_qoda.exchange import Exchange, MismatchError, handshake
from horovod_qoda.exchange.codecs import HOST
from horovod_qoda.exchange.frames import split_frames
from horovod_qoda.layout import build
from horovod_qoda.settings import Settings
from horovod_qoda.transport import local_transports
from tests.threads import in_threads

SHAPES = [("w", (64, 64)), ("v", (40, 1000))]


def exchange_of(transport, settings):
    layout = build([(n, s, "torch.float32") for n, s in SHAPES], settings)
    return Exchange(layout, settings, transport, 0)


def step(exchange, number):
    """One exchange, as the optimizer runs it."""
    exchange.agree()
    g = torch.Generator().manual_seed(100 * number + exchange.transport.rank)
    for layer, (_, shape) in enumerate(SHAPES):
        exchange.put(layer, torch.randn(shape, generator=g))
    means = [exchange.mean(i).copy() for i in range(len(SHAPES))]
    return means, exchange.finish()[0]


def test_a_rank_that_alone_wants_a_handshake_fails_and_so_do_the_others():
    def rank(transport):
        exchange = exchange_of(transport, Settings(topology="allgather"))
        step(exchange, 0)
        if transport.rank == 1:
            exchange.disagree()
        # The rank that asks hears of it at once, the others when they decode.
        expected = MismatchError if transport.rank == 1 else PayloadError
        with pytest.raises(expected, match=r"call set_compression\(\) on every rank"):
            step(exchange, 1)

    in_threads(local_transports(3), rank)


def test_all_ranks_that_want_one_go_on():
    def rank(transport):
        exchange = exchange_of(transport, Settings())
        first = step(exchange, 0)[1].exchange
        exchange.disagree()
        return first, step(exchange, 1)[1].exchange

    assert in_threads(local_transports(3), rank) == [(0, 1)] * 3


def test_new_settings_in_the_middle_adapt_anew_from_there():
    def rank(transport):
        exchange = exchange_of(transport, Settings(bits=4))
        for number in range(3):
            step(exchange, number)
        other = exchange_of(transport, Settings(bits=2))
        other.load_state_dict(exchange.state_dict())
        # Exchange 3 counts symbols again, as exchange 0 did; so do those after it.
        out = [step(other, number) for number in range(3, 30)]
        assert [r.exchange for _, r in out] == list(range(3, 30))
        counted = [r.exchange for _, r in out if not np.isnan(r.entropy_bits)]
        again = exchange_of(transport, Settings(bits=2))
        again.load_state_dict(other.state_dict())
        return counted, np.mean([r.coded_bits for _, r in out[-5:]]), again.state_dict()["since"]

    for counted, bits, since in in_threads(local_transports(2), rank):
        assert counted == [3, 4, 7, 12, 22] and since == 3
        assert bits == pytest.approx(2, rel=0.03)


def test_builds_that_frame_payloads_differently_say_so(monkeypatch):
    builds = iter((1, 2, 1))
    equal = handshake._equal
    monkeypatch.setattr(
        handshake,
        "_equal",
        lambda transport, name, hashes: equal(transport, name, [next(builds), *hashes[1:]]),
    )

    def rank(transport):
        with pytest.raises(MismatchError, match="install the same release on every rank"):
            exchange_of(transport, Settings()).agree()

    in_threads(local_transports(3), rank)


@pytest.mark.parametrize("field", [1, 2, 3, 4, 5])
def test_a_frame_that_changed_on_its_way_is_refused(field):
    frames = np.zeros((2, 64), np.uint8)
    fields = frames.view(np.uint64)
    fields[:, :5] = 64, 10, 20, 30, 40
    fields[:, 5] = zlib.crc32(frames[0, :40])
    assert [len(part) for part in split_frames(frames.ravel(), HOST)] == [64, 64]
    fields[1, field] ^= 1 << 20
    with pytest.raises(PayloadError, match="frame of sender 1"):
        list(split_frames(frames.ravel(), HOST))

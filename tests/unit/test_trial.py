"""topology="measured": the faster of compressed and raw steps stays, on all ranks alike."""

import logging
import time

import pytest
import torch

from horovod_qoda.exchange import Exchange
from horovod_qoda.exchange.adaptation import is_update
from horovod_qoda.exchange.trial import AGAIN, CODED, RAW, RUNS, Trial
from horovod_qoda.layout import build
from horovod_qoda.settings import Settings
from horovod_qoda.transport import LocalTransport, local_transports
from tests.threads import in_threads

SETTINGS = Settings(topology="measured", bits=3)


class Slow(LocalTransport):
    """Connected threads of which one kind of collective takes 0.2 s."""

    slow = ""

    def _allreduce(self, name, data):
        time.sleep(0.2 * (self.slow == "raw" and data.size > 10_000))
        return super()._allreduce(name, data)

    def _allgather(self, name, data):
        time.sleep(0.2 * (self.slow == "coded" and data.size > 1_000))
        return super()._allgather(name, data)


def run(slow, steps, states=None):
    def rank(transport):
        transport.__class__ = Slow
        transport.slow = slow
        layout = build([("w", (200, 300), "torch.float32")], SETTINGS)
        exchange = Exchange(layout, SETTINGS, transport, 0)
        if states:
            exchange.load_state_dict(states[transport.rank])
        exchange.agree()
        generator = torch.Generator().manual_seed(transport.rank)
        topologies = []
        for _ in range(steps):
            exchange.put(0, torch.randn(200, 300, generator=generator))
            exchange.mean(0)
            topologies.append(exchange.finish()[0].topology)
        exchange.close()
        return topologies, exchange.state_dict()

    return in_threads(local_transports(2), rank)


@pytest.mark.parametrize(("slow", "stays"), [("raw", "allgather"), ("coded", "raw")])
def test_the_faster_one_stays_and_is_said_once(slow, stays, caplog):
    with caplog.at_level(logging.INFO, logger="horovod_qoda"):
        results = run(slow, 30)
    assert results[0][0] == results[1][0], "ranks went different ways"
    topologies = results[0][0]
    end = RUNS[-1][1]
    assert topologies[:end] == [
        "raw" if Trial().way(age) == RAW else "allgather" for age in range(end)
    ]
    assert set(topologies[end:]) == {stays}
    said = [r.message for r in caplog.records if "from now on" in r.message]
    assert len(said) == 1, said
    assert ("uncompressed" if stays == "raw" else " compressed") in said[0]


def test_a_resumed_job_keeps_what_was_decided():
    states = [state for _, state in run("coded", 30)]
    again = run("raw", 3, states)  # the other way would be faster now: no new trial is made
    assert {t for topologies, _ in again for t in topologies} == {"raw"}


@pytest.mark.parametrize("saved", [8, 12, 18, 22])
@pytest.mark.parametrize(("slow", "stays"), [("raw", "allgather"), ("coded", "raw")])
def test_a_trial_that_was_cut_off_starts_anew(saved, slow, stays):
    states = [state for _, state in run(slow, saved)]
    results = run(slow, 34 - saved + (saved > AGAIN) * 2, states)
    assert results[0][0] == results[1][0], "ranks went different ways"
    topologies = results[0][0]
    begin = topologies.index("raw")
    assert begin == (10 if saved <= 10 else max(saved, AGAIN)) - saved
    first, end = RUNS[0][0], RUNS[-1][1]
    trial = topologies[begin : begin + end - first]
    assert trial == ["raw" if Trial().way(age) == RAW else "allgather" for age in range(first, end)]
    assert set(topologies[begin + end - first :]) == {stays}


def test_a_checkpoint_of_one_rank_begins_a_trial_on_two():
    one = Exchange(
        build([("w", (200, 300), "torch.float32")], SETTINGS), SETTINGS, local_transports(1)[0], 0
    )
    assert run("", 12, [one.state_dict()] * 2)[0][0].count("raw") == 2


def test_no_update_falls_into_a_run_without_compression():
    for age in range(11, 3100):
        trial = Trial()
        trial.resume(age)
        ages = range(age, age + 100)
        raw = [n for n in ages if trial.way(n) == RAW]
        assert len(raw) == sum(end - first for first, end, way in RUNS if way == RAW)
        assert raw[0] < max(age, AGAIN) + 10
        assert not any(is_update(n) for n in raw), age


def test_without_times_to_compare_compression_stays():
    trial = Trial()
    trial.decide(float("inf"), 0.1, say=True)
    assert trial.winner == CODED

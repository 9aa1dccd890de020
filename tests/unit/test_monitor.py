"""The monitor's totals against sums made by hand, its file, and the predicted step time."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_qoda.exchange import ExchangeRecord
from horovod_qoda.monitor import Monitor, Totals, link_bytes, predict, read_lines


def record(number=0, **changes) -> ExchangeRecord:
    values = {
        "exchange": number,
        "topology": "scatter_reduce",
        "coordinates": 1000,
        "raw_bytes": 4000,
        "payload_bytes": 390,
        "wire_bytes": 400,
        "coded_bits": 3.0,
        "entropy_bits": math.nan,
        "encode_s": 0.25,
        "decode_s": 0.5,
        "exchange_s": 1.0,
        "busy_s": 2.0,
        "wait_s": 0.5,
    }
    return ExchangeRecord(**{**values, **changes})


def test_sizes_and_rates_are_summed_over_all_exchanges():
    totals = Totals()
    totals.count(record(0, coded_bits=4.0, entropy_bits=3.9, wire_bytes=500))
    totals.count(record(1, coded_bits=3.0))
    totals.count(record(2, coded_bits=2.0, entropy_bits=1.9, wire_bytes=300))
    assert (totals.exchanges, totals.raw_bytes, totals.wire_bytes) == (3, 12000, 1200)
    assert totals.ratio == 10.0
    assert totals.coded_bits == pytest.approx(3.0)
    # The entropy stands beside the coded bits of the same exchanges, not of all.
    assert totals.sampled == 2
    assert totals.sampled_coded_bits == pytest.approx(3.0)
    assert totals.entropy_bits == pytest.approx(2.9)


def test_raw_exchanges_have_no_rate():
    totals = Totals()
    nan = math.nan
    totals.count(record(topology="raw", wire_bytes=4000, coded_bits=nan))
    assert totals.ratio == 1.0
    assert math.isnan(totals.coded_bits) and math.isnan(totals.entropy_bits)
    totals.count(record(coded_bits=3.0))
    assert totals.coded_bits == 3.0


def test_the_step_is_split_and_the_hidden_share_is_what_did_not_block():
    totals = Totals()
    totals.time(3.0, [record(), record()])
    totals.time(1.0, [record(wait_s=0.0)])
    assert totals.per_step() == {
        "step_s": 2.0,
        "compute_s": 1.5,
        "wait_s": 0.5,
        "encode_s": 0.375,
        "exchange_s": 1.5,
        "decode_s": 0.75,
        "busy_s": 3.0,
    }
    assert totals.hidden == pytest.approx(1 - 1.0 / 6.0)


def test_the_first_steps_count_in_sizes_but_not_in_times():
    monitor = Monitor(skip_steps=2)
    for number in range(5):
        with monitor.step():
            monitor(record(number))
    assert monitor.totals.exchanges == 5
    assert monitor.totals.timed_steps == 3
    assert monitor.totals.wait_s == pytest.approx(1.5)


def test_nothing_measured_is_nan_not_zero_or_an_error():
    totals = Totals()
    assert math.isnan(totals.ratio) and math.isnan(totals.hidden)
    assert all(math.isnan(value) for value in totals.per_step().values())


def test_lines_hold_values_and_records_and_are_strict_json(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    with Monitor(path) as monitor:
        with monitor.step() as values:
            monitor(record(0, entropy_bits=2.9))
            monitor(record(1))
            values["loss"] = math.inf
        monitor.write("eval", distance=0.5, nested={"a": [math.nan, 1.0]})
        monitor.write("summary", **monitor.totals.as_dict())
    text = path.read_text()
    for line in text.splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    step, evaluation, summary = read_lines(path)
    assert (step["event"], step["step"], step["loss"]) == ("step", 1, None)
    assert (step["wire_bytes"], step["encode_s"]) == (800, 0.5)
    assert (step["exchange"], step["topology"], step["coded_bits"]) == (1, "scatter_reduce", 3.0)
    assert step["step_s"] >= 0
    assert evaluation["nested"] == {"a": [None, 1.0]}
    assert (summary["exchanges"], summary["ratio"], summary["hidden"]) == (2, 10.0, None)
    assert not any(key.startswith("_") for key in summary)


def test_a_step_that_raises_leaves_nothing_for_the_next(tmp_path):
    path = tmp_path / "m.jsonl"
    with Monitor(path, skip_steps=0) as monitor:
        with pytest.raises(RuntimeError, match="boom"), monitor.step():
            monitor(record(0))
            raise RuntimeError("boom")
        with monitor.step():
            monitor(record(1))
    (line,) = read_lines(path)
    assert (line["step"], line["exchange"], line["wire_bytes"]) == (1, 1, 400)
    assert monitor.totals.wait_s == 0.5


def test_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"event": "step", "step": 1}\n{"event": "st')
    assert read_lines(path) == [{"event": "step", "step": 1}]


@pytest.mark.parametrize("ranks", [1, 2, 4, 16])
def test_link_bytes_are_those_of_the_collectives_added_up(ranks):
    d = 10_000
    assert link_bytes("raw", 4 * d, ranks) == pytest.approx(2 * (ranks - 1) / ranks * 4 * d)
    assert link_bytes("allgather", 500, ranks) == (ranks - 1) * 500
    # All-to-all of K parts, one of them to itself, then one part gathered from each other rank.
    part = 1200.0
    handed = ranks * part + part
    received = (ranks - 1) * part + (ranks - 1) * part
    assert link_bytes("scatter_reduce", handed, ranks) == pytest.approx(received)


@given(
    ranks=st.integers(2, 64),
    wire=st.floats(1e3, 1e9),
    rate=st.floats(1e6, 1e11),
    compute=st.floats(0, 10),
    encode=st.floats(0, 10),
)
def test_a_prediction_is_its_parts_and_falls_with_the_rate(ranks, wire, rate, compute, encode):
    for topology in ("raw", "allgather", "scatter_reduce"):
        slow = predict(topology, ranks, wire, rate, compute_s=compute, encode_s=encode)
        fast = predict(topology, ranks, wire, 10 * rate, compute_s=compute, encode_s=encode)
        moved = 8 * link_bytes(topology, wire, ranks) / rate
        assert slow == pytest.approx(compute + encode + moved)
        assert compute + encode <= fast <= slow


def test_prediction_of_a_known_case():
    # 16 MB of fp32 over 4 ranks at 1 Gbit/s: a ring moves 1.5 x 16 MB each way.
    assert predict("raw", 4, 16e6, 1e9, compute_s=0.1) == pytest.approx(0.1 + 0.192)
    assert predict("raw", 1, 16e6, 1e9, compute_s=0.1) == 0.1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: link_bytes("ring", 1, 2), "topology must be one of raw, allgather"),
        (lambda: link_bytes("raw", 1, 0), "ranks must be at least 1"),
        (lambda: predict("raw", 2, 1, 0, compute_s=0), "bits_per_second must be positive"),
        (lambda: Monitor(skip_steps=-1), "skip_steps must be at least 0"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()

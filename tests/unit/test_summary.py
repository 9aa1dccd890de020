"""What rank 0 says of its first exchange: which layers travel in which way, and the ratio."""

from __future__ import annotations

import logging
import math

import pytest

from horovod_qoda.exchange import ExchangeRecord
from horovod_qoda.layout import build
from horovod_qoda.settings import Settings
from horovod_qoda.torch.summary import describe, summarize

SHAPES = [("embed.weight", (500, 64)), ("fc.weight", (100, 300)), ("b", (100,)), ("tiny", (9, 9))]
TOTAL, RAW = 32_000 + 30_000 + 100 + 81, 100 + 81


def record(**changes) -> ExchangeRecord:
    values = {
        "exchange": 0, "topology": "scatter_reduce", "coordinates": 62_000, "raw_bytes": 4 * TOTAL,
        "payload_bytes": 30_000, "wire_bytes": 30_080, "coded_bits": 3.0, "entropy_bits": math.nan,
        "encode_s": 0.0, "decode_s": 0.0, "exchange_s": 0.0, "busy_s": 0.0, "wait_s": 0.0,
    }  # fmt: skip
    return ExchangeRecord(**{**values, **changes})


def said(settings: Settings, topology="scatter_reduce", first: str | None = None) -> str:
    """``first``: how the first exchange travelled, where not as the others."""
    layout = build([(n, s, "torch.float32") for n, s in SHAPES], settings)
    stages = 2 if topology == "scatter_reduce" else 1
    return describe(layout, settings, topology, stages, record(topology=first or topology), 4)


def test_what_is_compressed_what_is_not_and_why():
    text = said(Settings(bits=2.5))
    assert "2 of 4 layers (62,000 coordinates) are quantised to about 2.5 bits (auto)" in text
    assert "scatter_reduce over 4 ranks" in text
    assert "raw: 2 because fewer than min_numel = 1024 coordinates" in text
    assert "248,724 bytes of gradients became 30,080 on the wire (2 stages)" in text
    expected = 32 * TOTAL / (62_000 * 2.5 + 32 * RAW)
    assert text.endswith(f"expected ratio {expected:.1f} a stage")


def test_rules_count_and_are_named():
    text = said(Settings(rules={"embed*": "raw", "fc*": {"quantizer": "ternary"}}), "allgather")
    assert "1 of 4 layers (30,000 coordinates) are quantised" in text and "(ternary)" in text
    assert "1 because a rule says raw" in text and "(1 stage)" in text


def test_thin_matrices_have_a_part_in_the_expected_ratio():
    text = said(Settings(quantizer="powersgd", low_rank=2, rules={"fc*": {"bits": 4}}))
    numbers = 2 * (500 + 64)
    assert f"1 of 4 layers (32,000 coordinates) are sent by PowerSGD as {numbers:,} numbers" in text
    expected = 32 * TOTAL / (30_000 * 4 + 32 * (numbers + RAW))
    assert text.endswith(f"expected ratio {expected:.1f} a stage")
    assert "quantised" not in said(Settings(quantizer="powersgd", low_rank=2))


def test_a_first_exchange_that_warms_up_is_not_taken_for_the_rest():
    text = said(Settings(warmup_steps=7), first="raw")
    assert "the first 7 exchanges are float32 (warmup_steps)" in text and "on the wire" not in text
    assert "about 3 bits" in text and "expected ratio" in text
    # A job that resumes past the warm-up compresses its first exchange.
    assert "on the wire" in said(Settings(warmup_steps=7))


@pytest.mark.parametrize("rules", [{"*": "raw"}, {}])
def test_nothing_compressed_is_said_loudly(rules):
    settings = Settings(rules=rules, min_numel=1 if rules else 10**6)
    text = said(settings)
    assert text.startswith("NOTHING IS COMPRESSED: all 4 layers travel raw (4 because ")


@pytest.mark.parametrize(("wire", "loud"), [(4 * TOTAL, True), (2 * TOTAL, False)])
def test_stock_horovod_is_a_warning_and_loud_where_it_halves_nothing(wire, loud, caplog):
    with caplog.at_level(logging.INFO, logger="horovod_qoda"):
        summarize(object(), record(topology="raw", wire_bytes=wire), 2)
    (message,) = caplog.records
    assert message.levelno == logging.WARNING
    assert ("NOTHING IS COMPRESSED" in message.getMessage()) == loud
    assert f"not layerwise, so gradients travel by stock Horovod, {wire:,} bytes" in caplog.text

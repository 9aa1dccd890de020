"""Settings: bad values are refused by name; argument beats flag beats environment beats default."""

import argparse

import pytest

from horovod_qoda.flags import add_arguments, from_arguments
from horovod_qoda.settings import Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bits", -1),
        ("bits", 0),
        ("bits", 9),
        ("bits", float("nan")),
        ("bits", float("inf")),
        ("quantizer", "best"),
        ("bucket_size", -4),
        ("bucket_size", 15),
        ("bucket_size", 96),
        ("bucket_size", 2048),
        ("norm", "l3"),
        ("levels", -1),
        ("levels", 127),
        ("topology", "ring"),
        ("min_numel", 0),
        ("warmup_steps", -1),
        ("fusion_mb", 0),
        ("fusion_mb", -2.0),
        ("seed", -1),
        ("seed", 2**32),
        ("threads", 0),
        ("level_solver", "newton"),
        ("types", "shape"),
        ("coding", "huffman"),
        ("allocation", "lgrec"),
        ("allocation_error", "absolute"),
        ("allocation_alpha", 0),
        ("sensitivity", -1.0),
        ("rules", {"a": {"bits": 0}}),
        ("rules", {"a": {"colour": 1}}),
        ("rules", {"a": -3}),
    ],
)
def test_bad_value_names_the_setting(name, value):
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bits", "3"),
        ("bits", True),
        ("bucket_size", 512.0),
        ("levels", 2.5),
        ("min_numel", 1.5),
        ("seed", 0.5),
        ("threads", True),
        ("rules", {"a": "soft"}),
    ],
)
def test_wrong_type_names_the_setting(name, value):
    with pytest.raises(TypeError, match=name if name != "rules" else "rules"):
        Settings(**{name: value})


def test_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="'bit'"):
        Settings.resolve(bit=3)


def test_order_of_precedence(monkeypatch):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert Settings.resolve().bits == 3.0
    monkeypatch.setenv("HOROVOD_QODA_BITS", "4.5")
    monkeypatch.setenv("HOROVOD_QODA_TOPOLOGY", "allgather")
    assert Settings.resolve().bits == 4.5
    from_flags = from_arguments(parser.parse_args(["--bits", "2.5"]))
    assert (from_flags.bits, from_flags.topology) == (2.5, "allgather")
    assert Settings.resolve(bits=6).bits == 6


def test_bad_environment_names_the_variable(monkeypatch):
    monkeypatch.setenv("HOROVOD_QODA_BUCKET_SIZE", "many")
    with pytest.raises(ValueError, match="HOROVOD_QODA_BUCKET_SIZE"):
        Settings.resolve()


def test_rules_from_flags_and_environment(monkeypatch):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--rule", "*.bias=raw", "--rule", "emb*=bits:6,quantizer:uniform"])
    want = {"*.bias": "raw", "emb*": {"bits": 6.0, "quantizer": "uniform"}}
    assert from_arguments(args).rules == want
    monkeypatch.setenv("HOROVOD_QODA_RULES", "*.bias=raw;emb*=4")
    assert Settings.resolve().rules == {"*.bias": "raw", "emb*": 4.0}


def test_rules_apply_in_order():
    s = Settings(rules={"*": 4, "head.*": {"quantizer": "uniform"}, "*.bias": "raw"})
    assert s.for_layer("body.weight").bits == 4
    assert (s.for_layer("head.weight").bits, s.for_layer("head.weight").quantizer) == (4, "uniform")
    assert s.for_layer("head.bias") is None


def test_rule_without_a_layer_is_an_error():
    with pytest.raises(ValueError, match=r"'embd\*' matches no layer"):
        Settings(rules={"embd*": 6}).check_rules({"embed.weight": "embedding", "out.w": "linear"})
    with pytest.raises(ValueError, match="type:embedding, type:linear"):
        Settings(rules={"type:conv*": 6}).check_rules({"e": "embedding", "out": "linear"})


def test_rules_by_kind_of_layer():
    s = Settings(rules={"type:embedding": {"bits": 6}, "type:norm": "raw", "emb.low": 2})
    assert s.for_layer("emb.tokens", "embedding").bits == 6
    assert s.for_layer("emb.low", "embedding").bits == 2
    assert s.for_layer("emb.tokens", "norm") is None
    assert s.for_layer("embedding", "linear").bits == s.bits


@pytest.mark.parametrize(
    "wrong", [{"levels": 5}, {"rules": {"a": {"levels": 5}}}, {"types": "global"}]
)
def test_allocation_refuses_what_contradicts_it(wrong):
    with pytest.raises(ValueError, match="allocation"):
        Settings(allocation="lgreco", **wrong)

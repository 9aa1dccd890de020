"""Settings of the layer-wise compressor: one frozen dataclass, checked when it is made.

A value is looked up in this order: an argument in the script, a flag of the command line, the
environment variable ``HOROVOD_QODA_<NAME>``, the default below.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

QUANTIZERS = (
    "auto", "dithered", "rounded", "uniform", "exponential", "ternary", "adaptive", "maxmin",
    "powersgd",
)  # fmt: skip
ONE_STREAM_QUANTIZERS = ("auto", "dithered", "rounded")
NORMS = ("linf", "l2")
TOPOLOGIES = ("auto", "allgather", "scatter_reduce", "two_level", "measured")
TYPES = ("kind", "layer", "global")
CODINGS = ("main", "alternating")
ALLOCATIONS = ("none", "lgreco")
ALLOCATION_ERRORS = ("squared", "frobenius", "relative")
RULE_KEYS = (
    "bits", "quantizer", "bucket_size", "norm", "levels", "low_rank", "sensitivity"
)  # fmt: skip
LOW_RANK = 4
KIND_PREFIX = "type:"
"""A rule whose pattern begins so names a kind of layer, not a layer."""
ENV_PREFIX = "HOROVOD_QODA_"

given_flags: dict[str, Any] = {}
"""Values from the command line (:mod:`horovod_qoda.flags`), for every later ``resolve``."""


def _option(default: Any, help: str) -> Any:
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """What the user asked of the compressor; immutable, equal on all ranks.

    Raises:
        ValueError: a value is out of range; the message names the setting and what is allowed.
        TypeError: a value has the wrong type.
    """

    # 3 bits is where the error of the mean of a few ranks drops below minibatch noise.
    bits: float = _option(3.0, "mean coded bits per coordinate over the stages used, 0.5 to 8")
    # "auto" picks the reconstruction with less variance for each layer.
    quantizer: str = _option("auto", "one of " + ", ".join(QUANTIZERS))
    # One float32 norm per 1024 coordinates costs 0.03 bit; smaller buckets buy little variance.
    bucket_size: int = _option(
        1024, "coordinates that share a norm (level quantizers): a power of two 16..1024, 0 = layer"
    )
    # With buckets of 1024 and 3 to 5 bits the L-infinity norm has the least variance.
    norm: str = _option("linf", "bucket norm of level quantizers: linf or l2")
    levels: int | None = _option(
        None, "number s of inner levels of level quantizers, 0..126; default: the s nearest to bits"
    )
    # The largest rank of the paper's experiments (arXiv 1905.13727).
    low_rank: int = _option(LOW_RANK, "rank of the matrices that powersgd sends, 1 to 65536")
    # Coordinate descent costs rank 0 some 5 ms an update and type, one ratio a tenth of it or less.
    level_solver: str = _option(
        "alq", "how adaptive levels are fitted: alq (coordinate descent) or amq (one ratio)"
    )
    # Layers of one kind look alike, and a code table each would cost more than it saves.
    types: str = _option(
        "kind", "layers that share levels and code tables: those of a kind, each layer, or global"
    )
    # The layout tells the decoder each type, so a table of its own costs a type nothing.
    coding: str = _option(
        "main", "code tables: main (one for each type) or alternating (one for all of them)"
    )
    # Equal bits everywhere need no measurement; docs/tuning.md shows where L-GreCo gains.
    allocation: str = _option("none", "bits of each layer: none (as given) or lgreco (measured)")
    # Variances add up in squares.
    allocation_error: str = _option(
        "squared", "error that lgreco budgets: squared, frobenius or relative to the layer's RMS"
    )
    allocation_alpha: float = _option(1.0, "lgreco's error budget over that of equal bits")
    sensitivity: float = _option(
        1.0, "weight of a layer's error in lgreco against other layers'; meant for rules"
    )
    # All-gather needs one stage, scatter-reduce moves fewer bytes from 3 to 4 ranks on.
    topology: str = _option("auto", "one of " + ", ".join(TOPOLOGIES))
    rules: Mapping[str, Any] = _option(
        {},
        "overrides, pattern of layer names or type:KIND -> 'raw', bits or a dict of settings",
    )
    # Below 1024 coordinates the tables and coder states cost more than they save.
    min_numel: int = _option(1024, "layers with fewer coordinates travel as float32")
    warmup_steps: int = _option(0, "first exchanges sent uncompressed")
    # Large enough that headers vanish, small enough that encoding overlaps with backward.
    fusion_mb: float = _option(16.0, "float32 megabytes of gradients in one exchange buffer")
    seed: int = _option(0, "seed of the counter-based random numbers, 0..2^32-1")
    # Ranks of one host usually own all its cores between them.
    threads: int = _option(1, "threads of the codec on each rank")

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", dict(self.rules))
        _number("bits", self.bits, 0.5, 8)
        _choice("quantizer", self.quantizer, QUANTIZERS)
        _bucket("bucket_size", self.bucket_size)
        _choice("norm", self.norm, NORMS)
        if self.levels is not None:
            _integer("levels", self.levels, 0, 126)
        _integer("low_rank", self.low_rank, 1, 65536)
        _choice("level_solver", self.level_solver, ("alq", "amq"))
        _choice("types", self.types, TYPES)
        _choice("coding", self.coding, CODINGS)
        _choice("allocation", self.allocation, ALLOCATIONS)
        _choice("allocation_error", self.allocation_error, ALLOCATION_ERRORS)
        _number("allocation_alpha", self.allocation_alpha, 1e-3, 1e3)
        _number("sensitivity", self.sensitivity, 1e-12, 1e12)
        _choice("topology", self.topology, TOPOLOGIES)
        _integer("min_numel", self.min_numel, 1, 2**40)
        _integer("warmup_steps", self.warmup_steps, 0, 2**40)
        _number("fusion_mb", self.fusion_mb, 0.0625, 1024)
        _integer("seed", self.seed, 0, 2**32 - 1)
        _integer("threads", self.threads, 1, 1024)
        for pattern, rule in self.rules.items():
            _check_rule(pattern, rule)
        quantizers = [
            self.quantizer,
            *(r.get("quantizer") for r in self.rules.values() if _is_dict(r)),
        ]
        if self.low_rank != LOW_RANK and "powersgd" not in quantizers:
            raise ValueError(
                f"low_rank = {self.low_rank} has no effect: no layer is sent by powersgd; set "
                "quantizer='powersgd', or low_rank in a rule"
            )
        fixed = [self.levels, *(r.get("levels") for r in self.rules.values() if _is_dict(r))]
        if self.allocation != "none" and any(levels is not None for levels in fixed):
            raise ValueError("allocation chooses the number of levels: leave levels unset")
        if self.allocation != "none" and self.types == "global":
            raise ValueError("allocation gives every layer bits of its own: types cannot be global")

    @classmethod
    def resolve(cls, **given: Any) -> Settings:
        """Settings from arguments, then flags, then the environment, then the defaults.

        Args:
            **given: settings by name; a value of ``None`` counts as not given.

        Raises:
            TypeError: an unknown name.
            ValueError: a bad value, also from the environment (the variable is named).
        """
        names = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(given) - names)
        if unknown:
            raise TypeError(
                f"unknown compression setting {unknown[0]!r}; known: {', '.join(sorted(names))}"
            )
        values = {
            **given_flags,
            **{name: value for name, value in given.items() if value is not None},
        }
        for f in dataclasses.fields(cls):
            text = os.environ.get(ENV_PREFIX + f.name.upper())
            if f.name not in values and text is not None:
                try:
                    values[f.name] = parse(f.name, text)
                except ValueError as e:
                    raise ValueError(f"{ENV_PREFIX}{f.name.upper()}={text!r}: {e}") from None
        return cls(**values)

    def for_layer(self, name: str, kind: str = "") -> Settings | None:
        """Settings of one layer after its rules; ``None`` when a rule sends it raw.

        Rules are applied in the order given, so a later match overrides an earlier one. One with
        ``low_rank`` means PowerSGD, and one with ``bits`` a quantiser.
        """
        merged: Settings | None = self
        for pattern, rule in self.rules.items():
            if not matches(pattern, name, kind):
                continue
            if rule == "raw":
                merged = None
            else:
                before = merged or self
                changes = dict(rule) if _is_dict(rule) else {"bits": rule}
                if "low_rank" in changes:
                    changes["quantizer"] = "powersgd"
                elif "bits" in changes and before.quantizer == "powersgd":
                    changes.setdefault("quantizer", "auto")
                if changes.get("quantizer", before.quantizer) != "powersgd":
                    changes["low_rank"] = LOW_RANK
                merged = dataclasses.replace(before, **changes)
        return merged

    def check_rules(self, kinds: Mapping[str, str]) -> None:
        """Raises ValueError for a rule that matches none of the layers (name -> kind)."""
        for pattern in self.rules:
            if any(matches(pattern, name, kind) for name, kind in kinds.items()):
                continue
            known = list(kinds)
            if pattern.startswith(KIND_PREFIX):
                known = [KIND_PREFIX + kind for kind in dict.fromkeys(kinds.values())]
            raise ValueError(
                f"rules: pattern {pattern!r} matches no layer; the model has {len(kinds)} "
                f"layers: {', '.join(known[:5])}{', ...' if len(known) > 5 else ''}"
            )

    def canonical(self) -> dict[str, str]:
        """Every setting as text, for hashing and for comparing ranks."""
        return {
            f.name: json.dumps(getattr(self, f.name), sort_keys=False, default=str)
            for f in dataclasses.fields(self)
        }


def matches(pattern: str, name: str, kind: str) -> bool:
    """Whether a rule's pattern means the layer: by its name, or as ``type:KIND`` by its kind."""
    if pattern.startswith(KIND_PREFIX):
        return fnmatch.fnmatchcase(kind, pattern[len(KIND_PREFIX) :])
    return fnmatch.fnmatchcase(name, pattern)


def parse(name: str, text: str) -> Any:
    """The value of a setting in a flag or a variable; raises ValueError where it is none."""
    if name == "rules":
        pairs = [item.partition("=") for item in text.split(";") if item.strip()]
        return {pattern.strip(): _parse_rule(pattern, spec.strip()) for pattern, _, spec in pairs}
    default = {f.name: f.default for f in dataclasses.fields(Settings)}.get(name)
    if isinstance(default, str):
        return text
    return float(text) if isinstance(default, float) else int(text)


def _parse_rule(pattern: str, spec: str) -> Any:
    if spec == "raw":
        return spec
    if ":" not in spec:
        try:
            return float(spec)
        except ValueError:
            raise ValueError(
                f"rule {pattern}={spec}: use raw, a number of bits or key:value"
            ) from None
    pairs = [item.partition(":") for item in spec.split(",")]
    return {key.strip(): parse(key.strip(), value.strip()) for key, _, value in pairs}


def _check_rule(pattern: str, rule: Any) -> None:
    if rule == "raw":
        return
    changes = rule if _is_dict(rule) else {"bits": rule}
    unknown = sorted(set(changes) - set(RULE_KEYS))
    if unknown:
        raise ValueError(
            f"rules[{pattern!r}]: unknown setting {unknown[0]!r}; allowed: {', '.join(RULE_KEYS)}"
        )
    if "low_rank" in changes and changes.get("quantizer", "powersgd") != "powersgd":
        raise ValueError(
            f"rules[{pattern!r}]: low_rank is for quantizer powersgd, not {changes['quantizer']}"
        )
    try:
        Settings(**({"quantizer": "powersgd"} if "low_rank" in changes else {}) | changes)
    except (TypeError, ValueError) as e:
        raise type(e)(f"rules[{pattern!r}]: {e}") from None


def _is_dict(rule: Any) -> bool:
    return isinstance(rule, Mapping)


def _number(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must be between {low} and {high}, not {value!r}")


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, not {value!r}")


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def _bucket(name: str, value: Any) -> None:
    _integer(name, value, 0, 1024)
    if value and (value < 16 or value & (value - 1)):
        raise ValueError(f"{name} must be 0 or a power of two from 16 to 1024, not {value!r}")

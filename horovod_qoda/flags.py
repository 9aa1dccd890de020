"""A flag of the command line for every setting."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from horovod_qoda.settings import Settings, given_flags, parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds one flag for every setting; a flag that is not given stays ``None``."""
    group = parser.add_argument_group("compression settings")
    for f in dataclasses.fields(Settings):
        text = f.metadata["help"]
        if f.name == "rules":
            group.add_argument(
                "--rule",
                dest="rules",
                action="append",
                metavar="PATTERN=SPEC",
                help="PATTERN=raw, PATTERN=BITS or PATTERN=key:value,key:value; repeatable",
            )
        else:
            group.add_argument(
                "--" + f.name.replace("_", "-"),
                type=_parser(f.name),
                default=None,
                metavar=f.name.upper(),
                help=f"{text} (default: {f.default})",
            )


def from_arguments(args: argparse.Namespace) -> Settings:
    """Settings from the flags of :func:`add_arguments`, the environment and the defaults."""
    return Settings.resolve(**_given(args))


def use_flags(args: argparse.Namespace) -> None:
    """Makes flags of :func:`add_arguments` count in every later :meth:`Settings.resolve`."""
    Settings.resolve(**_given(args))
    given_flags.update({name: value for name, value in _given(args).items() if value is not None})


def _given(args: argparse.Namespace) -> dict[str, Any]:
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Settings)}
    if given["rules"] is not None:
        given["rules"] = parse("rules", ";".join(given["rules"]))
    return given


def _parser(name: str) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        return parse(name, text)

    convert.__name__ = name  # argparse names it where a text is refused
    return convert

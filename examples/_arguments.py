"""What the examples' command lines have in common."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from horovod_qoda import flags


def positive(text: str) -> int:
    """Type of a flag that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments and the compressor's settings, as logs and checkpoints keep them."""
    given = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return {**given, **dataclasses.asdict(flags.from_arguments(args))}

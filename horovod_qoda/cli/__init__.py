"""``horovod-qoda doctor | model | plot``: before, around and after a job.

Nothing heavy is imported before a subcommand needs it: ``doctor`` must start where PyTorch or
Horovod is broken, since saying so is its purpose.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

COMMANDS = {
    "doctor": "is everything in order, how fast are codec and network, will compression pay",
    "model": "predict the step time for other numbers of ranks, links, models and bits",
    "plot": "curves of one or several runs: loss, bytes, bits per layer, phase times",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="horovod-qoda", description="Checks, predicts and shows compressed Horovod jobs."
    )
    parsers = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        parsers.add_parser(name, help=text, add_help=False)
    known, rest = parser.parse_known_args(argv)
    module = importlib.import_module(f"horovod_qoda.cli.{known.command}")
    return int(module.main(rest))

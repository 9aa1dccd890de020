"""Runs an unchanged Horovod script through the plugin.

    horovodrun -np 4 python -m horovod_qoda --bits 2.5 train.py --epochs 3
    mpirun -np 16 python -m horovod_qoda -m package.train

Inside the script ``import horovod.torch as hvd`` is this package. Horovod's public examples pass
``compression=hvd.Compression.none`` explicitly, so ``none`` and ``fp16`` are replaced here and the
first optimizer says so; ``--respect-script`` keeps them.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys

from horovod_qoda import flags


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m horovod_qoda",
        description="Runs a Horovod script with compressed gradients.",
    )
    flags.add_arguments(parser)
    parser.add_argument(
        "--respect-script",
        action="store_true",
        help="keep the script's none or fp16",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="run a module, not a file")
    parser.add_argument("script", help="the script's path, or a module's name after -m")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="the script's own arguments")
    args = parser.parse_args()
    try:
        flags.use_flags(args)
    except (TypeError, ValueError) as e:
        parser.error(str(e))

    from horovod_qoda.torch import facade

    facade.install(replace=not args.respect_script)
    if args.module:
        # What `python -m` does: the module's arguments, and the working folder on the path.
        sys.argv = [args.script, *args.args]
        sys.path[0] = os.getcwd()
        runpy.run_module(args.script, run_name="__main__", alter_sys=True)
    else:
        if not os.path.exists(args.script):
            parser.error(f"there is no script {args.script!r}")
        sys.argv = [args.script, *args.args]
        sys.path[0] = os.path.dirname(os.path.abspath(args.script))
        runpy.run_path(args.script, run_name="__main__")


if __name__ == "__main__":
    main()

"""Puts this package where scripts look for ``horovod.torch``."""

from __future__ import annotations

import sys
from typing import Any

import horovod
import horovod.torch as stock
import horovod.torch.optimizer as stock_optimizer
from horovod.torch.compression import FP16Compressor, NoneCompressor

import horovod_qoda.torch as plugin
from horovod_qoda.logs import logger
from horovod_qoda.torch.compression import LayerwiseCompressor


def install(replace: bool) -> None:
    """Makes ``import horovod.torch`` mean ``horovod_qoda.torch`` in this process.

    Args:
        replace: scripts that name ``Compression.none`` or ``fp16`` get layer-wise compression.
    """
    distributed = plugin.DistributedOptimizer

    def DistributedOptimizer(
        optimizer: Any, named_parameters: Any = None, compression: Any = None, *args: Any, **kw: Any
    ) -> Any:
        if replace and compression in (NoneCompressor, FP16Compressor):
            logger().info(
                f"the script's {compression.__name__} is replaced by layer-wise compression; "
                "--respect-script keeps it"
            )
            compression = None
        wanted = LayerwiseCompressor if compression is None else compression
        return distributed(optimizer, named_parameters, wanted, *args, **kw)

    DistributedOptimizer.__doc__ = distributed.__doc__
    names = vars(plugin).copy()
    names["DistributedOptimizer"] = DistributedOptimizer
    module = type(stock)("horovod.torch", plugin.__doc__)
    module.__dict__.update({k: v for k, v in names.items() if not k.startswith("__")})
    # Submodules are still found where Horovod has them.
    module.__path__ = stock.__path__
    module.__spec__ = stock.__spec__
    module.__file__ = stock.__file__
    sys.modules["horovod.torch"] = module
    horovod.torch = module
    # Horovod tells its own optimizers by the module of this very function.
    DistributedOptimizer.__module__ = stock_optimizer.__name__
    stock_optimizer.DistributedOptimizer = DistributedOptimizer

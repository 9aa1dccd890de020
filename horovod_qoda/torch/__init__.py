"""The drop-in for ``horovod.torch``: the same names, with compressed gradients.

import horovod_qoda.torch as hvd        # was: import horovod.torch as hvd
"""

from horovod_qoda import _horovod

_horovod.require()

# ruff: noqa: E402, F401
import sys as _sys

from horovod.torch import *  # noqa: F403
from horovod.torch import global_process_set

from horovod_qoda.coding import PayloadError
from horovod_qoda.exchange import ExchangeRecord, MismatchError
from horovod_qoda.qoda import QODA, ExtraAdam, OptimisticAdam
from horovod_qoda.torch.compression import Compression
from horovod_qoda.torch.optimizer import DistributedOptimizer, DistributedQODA
from horovod_qoda.torch.overlap import OverlapError
from horovod_qoda.torch.startup import init
from horovod_qoda.waiting import StalledError

# Scripts import submodules too: those that have no counterpart here are Horovod's own.
for _name in [n for n in _sys.modules if n.startswith("horovod.torch.")]:
    _alias = _name.replace("horovod.torch", __name__, 1)
    _sys.modules.setdefault(_alias, _sys.modules[_name])

"""The drop-in for ``horovod.torch``: the same names, with compressed gradients.

import horovod_qoda.torch as hvd        # was: import horovod.torch as hvd
"""

from horovod_qoda import _horovod

_horovod.require()

# ruff: noqa: E402, F401
from horovod.torch import *  # noqa: F403
from horovod.torch import global_process_set

from horovod_qoda.coding import PayloadError
from horovod_qoda.exchange import ExchangeRecord, MismatchError
from horovod_qoda.qoda import QODA, ExtraAdam, OptimisticAdam
from horovod_qoda.torch.compression import Compression
from horovod_qoda.torch.optimizer import DistributedOptimizer, DistributedQODA
from horovod_qoda.torch.overlap import OverlapError

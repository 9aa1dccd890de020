"""The drop-in for ``horovod.torch``: the same names, with compressed gradients.

import horovod_qoda.torch as hvd        # was: import horovod.torch as hvd
"""

from horovod_qoda import _horovod

_horovod.require()

from horovod.torch import *  # noqa: E402,F403
from horovod.torch import (  # noqa: E402
    global_process_set as global_process_set,
)

from horovod_qoda.coding import PayloadError  # noqa: E402
from horovod_qoda.exchange import ExchangeRecord, MismatchError  # noqa: E402
from horovod_qoda.qoda import QODA, ExtraAdam, OptimisticAdam  # noqa: E402
from horovod_qoda.torch.compression import Compression  # noqa: E402
from horovod_qoda.torch.optimizer import DistributedOptimizer, DistributedQODA  # noqa: E402
from horovod_qoda.torch.overlap import OverlapError  # noqa: E402

__all__ = [
    "QODA",
    "Compression",
    "DistributedOptimizer",
    "DistributedQODA",
    "ExchangeRecord",
    "ExtraAdam",
    "MismatchError",
    "OptimisticAdam",
    "OverlapError",
    "PayloadError",
]

"""What one exchange costs: bytes, messages and seconds, as pure functions of sizes and speeds.

The formulas, their derivation and how well they predict are in ``docs/scaling.md``. All times are
seconds, sizes bytes, bandwidths bytes a second in each direction of a host's link.
"""

from horovod_qoda.cost.exchange import RAW, TOPOLOGIES, UNBIASED, Exchange, payload_bytes
from horovod_qoda.cost.links import link_bytes, predict
from horovod_qoda.cost.load import Load, load
from horovod_qoda.cost.machine import Machine
from horovod_qoda.cost.times import best, crossover, seconds, step

__all__ = [
    "RAW",
    "TOPOLOGIES",
    "UNBIASED",
    "Exchange",
    "Load",
    "Machine",
    "best",
    "crossover",
    "link_bytes",
    "load",
    "payload_bytes",
    "predict",
    "seconds",
    "step",
]

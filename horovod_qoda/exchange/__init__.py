"""Averaging gradients over ranks: the worker, the topologies and what they adapt."""

from horovod_qoda.exchange.exchange import Exchange, Sums
from horovod_qoda.exchange.handshake import MismatchError, agree_on_parameters
from horovod_qoda.exchange.records import ExchangeRecord
from horovod_qoda.exchange.routes import choose_topology

__all__ = [
    "Exchange",
    "ExchangeRecord",
    "MismatchError",
    "Sums",
    "agree_on_parameters",
    "choose_topology",
]

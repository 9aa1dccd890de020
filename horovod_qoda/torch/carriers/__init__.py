"""Who carries the gradients of one optimizer: our exchange, or stock Horovod's all-reduce."""

from horovod_qoda.torch.carriers.carrier import Carrier, Result
from horovod_qoda.torch.carriers.layerwise import LayerwiseCarrier
from horovod_qoda.torch.carriers.sparse import sparse_mean
from horovod_qoda.torch.carriers.stock import CountedCompression, StockCarrier

__all__ = [
    "Carrier",
    "CountedCompression",
    "LayerwiseCarrier",
    "Result",
    "StockCarrier",
    "sparse_mean",
]

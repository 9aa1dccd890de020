"""Sparse gradients: rows of all ranks one after the other, as stock Horovod sends them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import torch

from horovod_qoda.transport import HorovodHandle


def sparse_mean(
    gradient: torch.Tensor, name: str, op: Any, process_set: Any
) -> Callable[[], torch.Tensor]:
    """Starts two all-gathers, of indices and values; returns what waits for the sparse result.

    The tensors and names of Horovod's ``sparse_allreduce_async``. That waits in a way that never
    ends for a tensor which was queued just after Horovod's end.

    Raises:
        HorovodInternalError: also from what is returned; another rank has failed.
    """
    rank = process_set.rank()
    # Transposed: all-gather joins along the first dimension.
    parts = {"values": gradient._values(), "indices": gradient._indices().t().contiguous()}
    handles = {
        kind: HorovodHandle(
            hvd, hvd.allgather_async(part, name=f"{name}.{kind}", process_set=process_set),
            rank, f"{name}.{kind}",
        )
        for kind, part in reversed(parts.items())
    }  # fmt: skip

    def wait() -> torch.Tensor:
        values, indices = handles["values"].wait(), handles["indices"].wait()
        if op == hvd.Average:
            values = values / process_set.size()
        # Checked on the ranks that made them, and torch warns where nobody says.
        return torch.sparse_coo_tensor(indices.t(), values, gradient.shape, check_invariants=False)

    return wait

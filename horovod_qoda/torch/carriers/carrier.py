"""What sends the gradients of one optimizer and hands their means back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from horovod_qoda.exchange import ExchangeRecord, Sums

Result = tuple[Callable[[], torch.Tensor] | int, Any]
"""What stock ``synchronize()`` takes for a parameter: a handle, or a callable, and a context."""


class Carrier(ABC):
    """Sends gradients when told and hands back what stock ``synchronize()`` waits for."""

    name: str
    wants_sums: bool
    in_place = False
    """Whether the collective writes into the gradient while it is under way."""
    agreed = True
    """Whether a gradient may be sent before the next :meth:`agree`."""

    def settle(self, sparse: np.ndarray) -> None:  # noqa: B027  stock Horovod needs none of these
        """Before the first exchange: which layers have a sparse gradient on this rank."""

    def agree(self) -> None:  # noqa: B027
        """Before anything is sent in a step: settles, once, whether all ranks mean the same."""

    def disagree(self) -> None:  # noqa: B027
        """State was loaded somewhere: the next :meth:`agree` has to ask again."""

    def no_gradient(self, layer: int, p: torch.Tensor) -> torch.Tensor:
        """What a rank sends for a layer that it did not use."""
        return torch.zeros_like(p)

    @abstractmethod
    def put(self, layer: int, p: torch.Tensor) -> None:
        """Sends the gradient of a layer as it is now."""

    @abstractmethod
    def result(self, layer: int, p: torch.Tensor) -> Result:
        """Handle of the averaged gradient."""

    @abstractmethod
    def finish(self) -> tuple[ExchangeRecord, Sums]:
        """Ends the exchange after all results have been taken."""

    @abstractmethod
    def abandon(self) -> None:
        """Gives up an exchange that has failed half-way, so that another can start."""

    def state_dict(self) -> dict[str, Any]:
        """What is adapted during training, the same on all ranks."""
        return {}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:  # noqa: B027
        """Takes it back; None where the checkpoint has none."""

    @abstractmethod
    def local_state_dict(self) -> dict[str, Any]:
        """What differs between ranks."""

    @abstractmethod
    def load_local_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what this rank saved."""

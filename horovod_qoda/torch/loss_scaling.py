"""``torch.amp.GradScaler`` without ``synchronize()``: averages first, then looks for overflows.

A scaler looks for overflows in a rank's own gradients and calls ``step()`` where it finds none: a
rank that overflowed alone would leave the others waiting for it. Optimizers that scale by
themselves are called on every rank and handed the scaler instead; that is what ``step()`` declares.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch.amp.grad_scaler import OptState

# torch says at each such step that it will pass tensors in place of the scaler one day. They leave
# no way to tell the scaler what the other ranks found; refuse_tensors() notices when it has come.
warnings.filterwarnings("ignore", "GradScaler is going to stop passing itself", FutureWarning)


def overflowed(optimizer: Any, scaler: Any) -> bool:
    """Averages the gradients, unless ``skip_synchronize()`` says that they are, and unscales them.

    Args:
        optimizer: a wrapped optimizer, called by ``scaler.step(optimizer)``.
        scaler: the ``torch.amp.GradScaler``; it takes over what was found, for its ``update()``.

    Returns:
        Whether any rank's gradients have overflowed: the same on all ranks, because NaN and Inf on
        one rank are NaN in the mean.
    """
    # By its stage: a rank without gradients has unscaled them and found nothing.
    unscaled = scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.UNSCALED
    if not unscaled and _needs_unscaled(optimizer):
        scaler.unscale_(optimizer)
        unscaled = True
    if optimizer._should_synchronize:
        if unscaled and _found(optimizer, scaler):
            _spoil(optimizer)
        optimizer.synchronize()
        if unscaled:  # what was found then was this rank's own
            scaler._check_inf_per_device(optimizer)
    if not unscaled:
        scaler.unscale_(optimizer)
    return _found(optimizer, scaler)


def _found(optimizer: Any, scaler: Any) -> bool:
    return any(bool(found) for found in scaler._found_inf_per_device(optimizer).values())


def _spoil(optimizer: Any) -> None:
    """Tells the other ranks of an overflow that clipping may have hidden since."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.mul_(float("nan"))


def refuse_tensors(optimizer: Any) -> None:
    """Raises RuntimeError where a scaler has set ``found_inf`` and not passed itself."""
    if getattr(optimizer, "found_inf", None) is not None:
        raise RuntimeError(
            "scaler.step(optimizer): this version of PyTorch does not hand over the scaler, which "
            "then could not learn that another rank has overflowed; install an earlier one, or "
            "train without GradScaler"
        )


def _needs_unscaled(optimizer: Any) -> bool:
    """QODA's rates come from the gradients as they are exchanged."""
    return optimizer._should_synchronize and hasattr(optimizer, "receive_sums")

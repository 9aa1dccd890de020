"""May gradients leave during backward? Watch a few steps, then decide on all ranks at once.

What must be averaged is ``p.grad`` as it stands when ``synchronize()`` is reached. A gradient may
leave earlier only if nothing happens to it after its hook: no second backward, no clipping, no
unscaling. The first steps therefore exchange at ``synchronize()`` and watch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from horovod_qoda.transport import Transport

WATCHED_STEPS = 3
"""GANs that train the critic several times per generator step show it within that many."""

SAMPLES = 16
"""Values compared beside the version counter, which ``GradScaler.unscale_`` does not advance."""


class OverlapError(RuntimeError):
    """A gradient changed after it had been sent."""


class Witness(NamedTuple):
    """What a gradient looked like when its hook fired."""

    pointer: int
    version: int
    sample: torch.Tensor

    @classmethod
    def of(cls, gradient: torch.Tensor) -> Witness:
        return cls(_values(gradient).data_ptr(), gradient._version, _sample(gradient).clone())

    def is_of(self, gradient: torch.Tensor) -> bool:
        """Whether it is this very tensor, unchanged as far as its version says."""
        same = _values(gradient).data_ptr() == self.pointer
        return same and gradient._version == self.version


def _values(gradient: torch.Tensor) -> torch.Tensor:
    return gradient._values() if gradient.is_sparse else gradient


def _sample(gradient: torch.Tensor) -> torch.Tensor:
    values = _values(gradient.detach())
    flat = values.reshape(-1) if values.is_contiguous() else values.flatten()
    return flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]


def changed(witnesses: Mapping[int, Witness], gradients: Sequence[torch.Tensor | None]) -> set[int]:
    """Layers whose gradient is not as it was when its hook fired; one wait for each device."""
    found, asked = set(), defaultdict(list)
    for layer, witness in witnesses.items():
        now = gradients[layer]
        sample = _sample(now) if now is not None and witness.is_of(now) else None
        if sample is None or sample.shape != witness.sample.shape:
            found.add(layer)
        else:
            same = (sample.nan_to_num() == witness.sample.nan_to_num()).all()
            asked[sample.device].append((layer, same))
    for answers in asked.values():
        flags = torch.stack([same for _, same in answers]).tolist()
        found |= {layer for (layer, _), same in zip(answers, flags, strict=True) if not same}
    return found


class OverlapRule:
    """Counts hooks, keeps witnesses, and turns overlap on or leaves it off for all ranks.

    Args:
        wanted: ``"auto"``, ``True`` (on after the first step) or ``False``.
        names: layer names, by index.
    """

    def __init__(self, wanted: bool | str, names: list[str]) -> None:
        if wanted not in ("auto", True, False):
            raise ValueError(f"overlap must be 'auto', True or False, not {wanted!r}")
        self.on = False
        self.decided = wanted is False
        self.reason = "overlap=False was asked for" if wanted is False else ""
        self._names = names
        self._watch = WATCHED_STEPS if wanted == "auto" else 1
        self._forced = wanted is True
        self._steps = 0
        self._fault = -1
        self._retired = False
        self._fired: dict[int, int] = {}
        self._witness: dict[int, Witness] = {}

    def fired(self, layer: int, gradient: torch.Tensor, passes: int, ready: bool) -> bool:
        """Notes that a hook fired; True when the gradient may be sent now.

        ``ready``: the ranks know of each other that they mean the same.

        Raises:
            OverlapError: it had been sent already.
        """
        count = self._fired[layer] = self._fired.get(layer, 0) + 1
        if count < passes:
            return False
        if count > passes:
            if self.on and not self._retired:
                raise OverlapError(
                    f"the gradient of {self._names[layer]!r} was computed {count} times in one "
                    f"step, {passes} expected, after it had been sent during backward; pass "
                    "overlap=False (or the right backward_passes_per_step) to DistributedOptimizer"
                )
            return False
        sending = self.on and not self._retired and ready
        if sending or not self.decided:
            self._witness[layer] = Witness.of(gradient)
        return sending

    def sent(self, layer: int) -> bool:
        """True if the layer's gradient left during backward in this step."""
        return self.on and layer in self._witness

    def check(self, gradients: list[torch.Tensor | None], passes: int, in_place: bool) -> None:
        """Called at ``synchronize()``, before anything else is sent.

        ``in_place``: the collective writes into the gradient itself, so that one which has been
        sent cannot be compared any more.

        Raises:
            OverlapError: a gradient was changed after it had been sent.
        """
        if self.decided and not self.on:
            return
        differ = set() if self.on and in_place else changed(self._witness, gradients)
        for layer in range(len(gradients)):
            bad = self._fired.get(layer, 0) not in (0, passes) or layer in differ
            if bad and self.on:
                raise OverlapError(
                    f"the gradient of {self._names[layer]!r} was changed (scaled, clipped, zeroed "
                    "or replaced) between backward and synchronize(), after it had been sent; pass "
                    "overlap=False to DistributedOptimizer"
                )
            if bad and self._fault < 0:
                self._fault = layer

    def end_step(self, transport: Transport, name: str) -> bool:
        """Ends a step; after the watched ones asks all ranks. True when just decided."""
        self.forget()
        self._steps += 1
        if self.decided or self._steps < self._watch:
            return False
        fault = -1 if self._forced else self._fault
        faults = transport.allgather(name + ".overlap", np.array([fault], np.int64)).wait()
        self.decided = True
        self.on = bool((faults < 0).all())
        if not self.on:
            rank = int(np.flatnonzero(faults >= 0)[0])
            self.reason = (
                f"on rank {rank} the gradient of {self._names[int(faults[rank])]!r} was computed "
                "several times or changed after backward"
            )
        return True

    def forget_step(self) -> None:
        """Starts the step anew, as after ``zero_grad()``; gradients thrown away are a fault."""
        if self._fired and not self.decided and self._fault < 0:
            self._fault = min(self._fired)
        self.forget()

    def forget(self) -> None:
        """Forgets the hooks of this step."""
        self._fired.clear()
        self._witness.clear()
        if self._retired:
            self.on = False

    def retire(self, reason: str) -> None:
        """Another optimizer took these parameters over: hooks fire for both, and this one's are no
        sign that it will step. From the next step on it sends at ``synchronize()``."""
        self.decided = self._retired = True
        self.reason = reason
        if not (self.on and self._witness):
            self.forget()

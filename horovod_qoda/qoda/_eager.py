"""State that exists from construction and survives a checkpoint to the bit.

Two habits of the surroundings make this necessary. ``broadcast_optimizer_state`` of Horovod runs a
real step with zero gradients on an optimizer whose state is empty, and broadcasts by walking each
rank's own state, so its keys must be the same on all ranks from the start.
``torch.optim.Optimizer.load_state_dict`` casts state to the parameter's dtype, which would round
float32 state of bfloat16 parameters, and keeps references to the dict that was passed in.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

Group = dict[str, Any]
Closure = Callable[[], Any]


def work_dtype(param: Tensor) -> torch.dtype:
    """dtype of a parameter's state: float32 for the half precisions, else the parameter's own."""
    return torch.float32 if torch.finfo(param.dtype).bits < 32 else param.dtype


def dense_grad(param: Tensor) -> Tensor | None:
    """``param.grad``, or None where there is none.

    Raises:
        RuntimeError: the gradient is sparse.
    """
    grad = param.grad
    if grad is not None and grad.layout != torch.strided:
        raise RuntimeError(
            f"sparse gradient on a parameter of shape {tuple(param.shape)}: these optimizers keep "
            "a dense state and refuse sparse gradients. Use Embedding(sparse=False), or "
            "DistributedOptimizer(sparse_as_dense=True)"
        )
    return grad


def by_kind(params: Iterable[Tensor]) -> list[list[Tensor]]:
    """Splits parameters into the lists that ``torch._foreach_*`` is quick on.

    By device and dtype, in order; on CPU one by one, where a list costs as many passes over memory
    as single tensors do and a tensor whose arithmetic is done at once stays in cache.
    """
    kinds: defaultdict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for number, param in enumerate(params):
        alone = number if param.device.type == "cpu" else -1
        kinds[param.device, param.dtype, alone].append(param)
    return list(kinds.values())


def check_number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    """Raises ValueError unless `value` is a finite number of [low, high], or of (low, high]."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    inside = number and math.isfinite(value) and (low < value if open_low else low <= value)
    if not inside or value > high:
        left = "(" if open_low else "["
        raise ValueError(f"{name} must be a number of {left}{low}, {high}], got {value!r}")


class EagerOptimizer(torch.optim.Optimizer):
    """Creates state in ``add_param_group`` and restores it in the dtype it was saved in.

    A subclass says what state a parameter has (``_new_state``, the same names for every parameter
    of a group whatever happened so far) and what a group must satisfy (``_check_group``).
    """

    def _new_state(self, param: Tensor, group: Group) -> dict[str, Any]:
        raise NotImplementedError

    def _check_group(self, group: Group) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def add_param_group(self, param_group: Group) -> None:
        """Adds a group and creates its state.

        Raises:
            ValueError: a setting is out of range, or a parameter is not real floating point.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group)
            for param in group["params"]:
                if not param.is_floating_point() or param.layout != torch.strided:
                    raise ValueError(
                        f"{type(self).__name__} takes dense real floating-point parameters, got "
                        f"{param.dtype}, {param.layout} of shape {tuple(param.shape)}"
                    )
        except ValueError:
            self.param_groups.pop()
            raise
        for param in group["params"]:
            self.state[param] = self._new_state(param, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a ``state_dict()``; tensors are copied, and keep float32 under half parameters.

        Raises:
            ValueError: the state is another optimizer's, another variant's, or of other shapes.
        """
        self._check_loadable(state_dict)
        super().load_state_dict(state_dict)
        for param, saved in self._pair_with_saved(state_dict):
            for name, value in saved.items():
                if isinstance(value, Tensor):
                    self.state[param][name] = value.detach().to(
                        device=param.device, dtype=work_dtype(param), copy=True
                    )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also what a wrapper reaches that loads by the base class: the dtype is put right here."""
        super().__setstate__(state)
        for group in self.param_groups:
            for param in group["params"]:
                entries = self.state[param]
                for name, value in entries.items():
                    if isinstance(value, Tensor):
                        entries[name] = value.to(work_dtype(param))

    def _pair_with_saved(
        self, state_dict: dict[str, Any]
    ) -> Iterable[tuple[Tensor, dict[str, Any]]]:
        keys = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        return [(p, state_dict["state"].get(k, {})) for k, p in zip(keys, params, strict=False)]

    def _check_loadable(self, state_dict: dict[str, Any]) -> None:
        mine = [len(group["params"]) for group in self.param_groups]
        theirs = [len(group["params"]) for group in state_dict["param_groups"]]
        if mine != theirs:
            raise ValueError(
                f"parameters per group differ: this {type(self).__name__} has {mine}, the loaded "
                f"state has {theirs}"
            )
        pairs = iter(self._pair_with_saved(state_dict))
        for group in state_dict["param_groups"]:
            absent = set(self.defaults) - set(group) - {"differentiable"}
            if absent:
                raise ValueError(
                    f"the loaded state has no {sorted(absent)}: it was saved by another optimizer "
                    f"than {type(self).__name__}"
                )
            for _ in group["params"]:
                param, saved = next(pairs)
                expected = self._state_names(group)
                if set(saved) != expected:
                    raise ValueError(
                        f"{type(self).__name__} expects state {sorted(expected)} for each "
                        f"parameter, the loaded state has {sorted(map(str, saved))}: it was saved "
                        "by another optimizer or with other settings"
                    )
                for name, value in saved.items():
                    if isinstance(value, Tensor) and value.shape != param.shape:
                        raise ValueError(
                            f"loaded state {name!r} has shape {tuple(value.shape)}, its parameter "
                            f"{tuple(param.shape)}"
                        )

    def _state_names(self, group: Group) -> set[str]:
        return set(self._new_state(torch.zeros(0), group))

"""What the optimizers refuse: settings, gradients, parameters and checkpoints that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from horovod_qoda.qoda import QODA, ExtraAdam, OptimisticAdam
from tests.optimizers import KINDS, advance, assert_same, every_kind, make_params, values


@every_kind
def test_sparse_gradients_are_refused(kind: str) -> None:
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = KINDS[kind](embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    before = values(list(embedding.parameters()))
    with pytest.raises(RuntimeError, match="sparse gradient.*sparse_as_dense"):
        optimizer.extrapolation() if kind == "extra adam" else optimizer.step()
    assert_same(values(list(embedding.parameters())), before)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": True}, "lr"),
        ({"lr": "1"}, "lr"),
        ({"variant": "Coupled"}, "variant"),
        ({"q_hat": 0.0}, "q_hat"),
        ({"q_hat": 0.26}, "q_hat"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        QODA(make_params(), **settings)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"lr": -1.0}, "lr"), ({"betas": (0.5, 1.0)}, "betas"), ({"eps": -1e-8}, "eps")],
)
@pytest.mark.parametrize("cls", [OptimisticAdam, ExtraAdam])
def test_bad_adam_settings_are_named(cls: Any, settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        cls(make_params(), **settings)


def test_groups_must_agree_on_what_steers_sums() -> None:
    a, b = make_params()[:2]
    for name, value in (("variant", "separated"), ("q_hat", 0.1), ("ergodic", False)):
        with pytest.raises(ValueError, match=f"{name} must be the same in all groups"):
            QODA([{"params": [a]}, {"params": [b], name: value}])


def test_a_refused_group_leaves_the_optimizer_as_it_was() -> None:
    a, b = make_params()[:2]
    optimizer = QODA([a])
    with pytest.raises(ValueError):
        optimizer.add_param_group({"params": [b], "lr": -1.0})
    assert len(optimizer.param_groups) == 1 and len(optimizer.state) == 1


def test_complex_and_integer_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="real floating-point"):
        QODA([torch.zeros(2, dtype=torch.complex64, requires_grad=True)])
    with pytest.raises(ValueError, match="real floating-point"):
        OptimisticAdam([torch.zeros(2, dtype=torch.int64)])


def test_negative_sums_are_refused() -> None:
    optimizer = QODA(make_params())
    with pytest.raises(ValueError, match="sum_sq_diff"):
        optimizer.receive_sums(1.0, -1.0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("separated", "expects state"),
        ("not ergodic", "expects state"),
        ("optimistic adam", "another optimizer"),
    ],
)
def test_foreign_checkpoints_are_refused(source: str, message: str) -> None:
    saved = KINDS[source](make_params()).state_dict()
    for group in saved["param_groups"]:
        if source != "optimistic adam":
            group["variant"], group["ergodic"] = "coupled", True
    params = make_params()
    optimizer = QODA(params)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    advance(optimizer, params, 0, 1)


def test_checkpoint_of_other_shapes_is_refused() -> None:
    saved = QODA([torch.zeros(3, requires_grad=True)]).state_dict()
    with pytest.raises(ValueError, match="shape"):
        QODA([torch.zeros(2, requires_grad=True)]).load_state_dict(saved)
    with pytest.raises(ValueError, match="parameters per group"):
        QODA(make_params()).load_state_dict(saved)

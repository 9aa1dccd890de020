"""What the optimizers keep: checkpoints, precisions, groups added late, the average."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch

from horovod_qoda.qoda import QODA
from tests.optimizers import KINDS, advance, assert_same, every_kind, make_params, values


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_resume_from_a_checkpoint_file_is_bit_exact(kind: str, dtype: torch.dtype) -> None:
    params = make_params(dtype)
    optimizer = KINDS[kind](params)
    advance(optimizer, params, 0, 7)
    file = io.BytesIO()
    torch.save({"params": values(params), "optimizer": optimizer.state_dict()}, file)
    advance(optimizer, params, 7, 12)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = [torch.nn.Parameter(value) for value in saved["params"]]
    other = KINDS[kind](resumed)
    other.load_state_dict(saved["optimizer"])
    frozen = copy.deepcopy(saved["optimizer"]["state"])
    advance(other, resumed, 7, 12)
    assert_same(values(params), values(resumed))
    for number, state in frozen.items():
        for name, value in state.items():  # stepping has not written into the loaded dict
            if isinstance(value, torch.Tensor):
                assert torch.equal(saved["optimizer"]["state"][number][name], value)


@every_kind
def test_half_precision_parameters_have_float32_state(kind: str) -> None:
    params = make_params(torch.bfloat16)
    optimizer = KINDS[kind](params)
    advance(optimizer, params, 0, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    for param in params:
        assert param.dtype == torch.bfloat16
        tensors = [v for v in optimizer.state[param].values() if isinstance(v, torch.Tensor)]
        assert tensors and all(value.dtype == torch.float32 for value in tensors)


def test_half_precision_does_not_lose_small_steps() -> None:
    """Steps below bfloat16's resolution at 1.0 (2^−8) add up in Y instead of being rounded away."""
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = QODA([p])
    for _ in range(200):
        p.grad = torch.full((1,), 2.0**-10, dtype=torch.bfloat16)
        optimizer.step()
    assert p.item() == pytest.approx(1.0 - 201 * 2.0**-10, abs=2.0**-8)


@every_kind
def test_state_is_there_before_the_first_step(kind: str) -> None:
    params = make_params()
    optimizer = KINDS[kind](params)
    before = {param: set(state) for param, state in optimizer.state.items()}
    assert len(before) == len(params)
    settings = [set(group) for group in optimizer.param_groups]
    advance(optimizer, params, 0, 3)
    assert {param: set(state) for param, state in optimizer.state.items()} == before
    assert [set(group) for group in optimizer.param_groups] == settings


@every_kind
def test_rebuild_from_param_groups_keeps_every_setting(kind: str) -> None:
    """The way Horovod's wrapper builds its class: the constructor with param_groups alone."""
    optimizer = KINDS[kind]([{"params": make_params(), "lr": 0.125}])
    before = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    merged = type("Merged", (type(optimizer),), {"__init__": _init_from_groups})
    rebuilt = merged(optimizer.param_groups)
    after = {k: v for k, v in rebuilt.param_groups[0].items() if k != "params"}
    assert after == before
    params = rebuilt.param_groups[0]["params"]
    advance(rebuilt, params, 0, 3)
    reference = make_params()
    plain = KINDS[kind]([{"params": reference, "lr": 0.125}])
    advance(plain, reference, 0, 3)
    assert_same(values(params), values(reference))


def _init_from_groups(self: Any, param_groups: Any) -> None:
    super(self.__class__, self).__init__(param_groups)


@every_kind
def test_broadcast_by_pickled_scalars_and_copied_tensors(kind: str) -> None:
    """What Horovod's broadcast does: options and scalars by pickle, tensors in place."""
    source, target = make_params(), make_params(seed=99)
    root, other = KINDS[kind](source), KINDS[kind](target)
    advance(root, source, 0, 4)
    for mine, theirs in zip(source, target, strict=True):
        theirs.data.copy_(mine.data)
    sent, received = root.state_dict(), other.state_dict()
    for index, group in enumerate(sent["param_groups"]):
        for name, value in group.items():
            if name != "params":
                other.param_groups[index][name] = pickle.loads(pickle.dumps(value))
    for number, state in sent["state"].items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                received["state"][number][name].copy_(value)
            else:
                received["state"][number][name] = pickle.loads(pickle.dumps(value))
    advance(root, source, 4, 8)
    advance(other, target, 4, 8)
    assert_same(values(source), values(target))


@every_kind
def test_no_option_shares_its_broadcast_key_with_a_state_scalar(kind: str) -> None:
    """Horovod names both "NAME.NUMBER", so an option and a state entry must not share a name."""
    params = make_params()
    optimizer = KINDS[kind](params)
    state_names = {name for state in optimizer.state.values() for name in state}
    assert not state_names & {name for group in optimizer.param_groups for name in group}


@every_kind
def test_deep_copied_and_pickled_optimizers_go_on(kind: str) -> None:
    params = make_params()
    optimizer = KINDS[kind](params)
    advance(optimizer, params, 0, 3)
    clone = copy.deepcopy(optimizer)
    cloned = clone.param_groups[0]["params"]
    advance(optimizer, params, 3, 6)
    advance(clone, cloned, 3, 6)
    assert_same(values(params), values(cloned))


def test_starting_point_is_taken_at_the_first_step() -> None:
    """Scripts wrap the optimizer, then load weights, then broadcast."""
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = QODA([p], ergodic=True)
    with torch.no_grad():
        p.fill_(5.0)
    p.grad = torch.tensor([0.0, 1.0])
    optimizer.step()
    assert optimizer.state[p]["initial"].tolist() == [5.0, 5.0]
    assert p[0].item() == 5.0
    with optimizer.average():
        assert p.tolist() == [5.0, 5.0]


def test_rebuilding_after_steps_without_state_starts_anew_and_says_so() -> None:
    params = make_params()
    optimizer = QODA(params)
    advance(optimizer, params, 0, 3)
    here = values(params)
    rebuilt = QODA(optimizer.param_groups)
    with pytest.warns(UserWarning, match="had taken 3 steps"):
        advance(rebuilt, params, 3, 4)
    assert rebuilt.param_groups[0]["t"] == 1
    assert_same([rebuilt.state[param]["initial"] for param in params], here)


@every_kind
@pytest.mark.parametrize("saved_before", [True, False])
def test_rebuilding_with_the_state_loaded_goes_on(kind: str, saved_before: bool) -> None:
    params, reference = make_params(), make_params()
    optimizer, plain = KINDS[kind](params), KINDS[kind](reference)
    advance(optimizer, params, 0, 3)
    saved = optimizer.state_dict() if saved_before else None
    rebuilt = type(optimizer)(optimizer.param_groups)
    rebuilt.load_state_dict(saved or optimizer.state_dict())
    advance(rebuilt, params, 3, 6)
    advance(plain, reference, 0, 6)
    assert_same(values(params), values(reference))


@every_kind
def test_loading_by_the_base_class_keeps_float32(kind: str) -> None:
    params = make_params(torch.bfloat16)
    optimizer = KINDS[kind](params)
    torch.optim.Optimizer.load_state_dict(optimizer, copy.deepcopy(optimizer.state_dict()))
    for state in optimizer.state.values():
        assert all(v.dtype == torch.float32 for v in state.values() if isinstance(v, torch.Tensor))
    advance(optimizer, params, 0, 2)


def test_late_group_counts_as_having_rested() -> None:
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.full((2,), 3.0))
    optimizer = QODA([a])
    for t in range(6):
        if t == 4:
            optimizer.add_param_group({"params": [b], "lr": 0.1})
            assert optimizer.param_groups[0]["t"] == 4
        a.grad = torch.ones(2)
        b.grad = torch.zeros(2) if t < 5 else torch.ones(2)
        optimizer.step()
    assert b.tolist() != [3.0, 3.0]
    with optimizer.average():
        assert b.tolist() == [3.0, 3.0]


def test_average_restores_exactly_and_blocks_steps() -> None:
    params = make_params(torch.bfloat16)
    optimizer = QODA(params)
    with optimizer.average():
        assert_same(values(params), values(make_params(torch.bfloat16)))
    advance(optimizer, params, 0, 5)
    before = values(params)
    with pytest.raises(KeyError), optimizer.average():
        assert not torch.equal(params[0], before[0])
        with pytest.raises(RuntimeError, match=r"inside average\(\)"):
            optimizer.step()
        with pytest.raises(RuntimeError, match=r"inside average\(\)"), optimizer.average():
            pass
        raise KeyError
    assert_same(values(params), before)
    advance(optimizer, params, 5, 6)


def test_average_needs_ergodic() -> None:
    optimizer = QODA(make_params(), ergodic=False)
    with pytest.raises(RuntimeError, match="ergodic=True"), optimizer.average():
        pass
    assert all("average" not in state for state in optimizer.state.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["coupled", "separated"])
def test_non_finite_sums_raise_and_change_nothing(kind: str, bad: float) -> None:
    params = make_params()
    optimizer = KINDS[kind](params)
    advance(optimizer, params, 0, 3)
    before = copy.deepcopy(optimizer.state_dict())
    weights = values(params)
    params[0].grad[0, 0] = bad
    with pytest.raises(FloatingPointError, match="step 4"):
        optimizer.step()
    optimizer.receive_sums(bad, 1.0)
    with pytest.raises(FloatingPointError, match="step 4"):
        optimizer.step()
    assert_same(values(params), weights)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for number, state in before["state"].items():
        assert_same(list(state.values()), list(after["state"][number].values()))
    advance(optimizer, params, 3, 4)


def test_received_sums_serve_one_step() -> None:
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = QODA([p])
    p.grad = torch.ones(1, dtype=torch.float64)
    optimizer.receive_sums(99.0, 99.0)
    optimizer.step()
    assert optimizer.rates()[0] == 0.1
    p.grad = 3 * torch.ones(1, dtype=torch.float64)
    optimizer.step()  # own difference from the last gradient: 3 − 1
    assert optimizer.rates()[0] == pytest.approx((1 + 99 + 4) ** -0.5)


def test_the_package_imports_neither_horovod_nor_mpi() -> None:
    code = (
        "import sys; sys.modules['horovod'] = None; sys.modules['mpi4py'] = None; "
        "import horovod_qoda.qoda, horovod_qoda.theory"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

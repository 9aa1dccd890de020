"""OptimisticAdam and ExtraAdam: by hand, against torch's Adam, and on games."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks._games import BilinearGame
from horovod_qoda.qoda import ExtraAdam, OptimisticAdam

SHAPES = ((3, 2), (4,), (), (0,))


def make_params() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).double()) for s in SHAPES]


def set_grads(params: list[torch.nn.Parameter], t: int) -> None:
    generator = torch.Generator().manual_seed(100 + t)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).double()


def adam_directions(steps: int) -> list[list[torch.Tensor]]:
    """lr·u_t of torch's Adam on the gradients of set_grads."""
    params = make_params()
    optimizer = torch.optim.Adam(params, lr=0.1, betas=(0.6, 0.95), eps=1e-7)
    directions = []
    for t in range(steps):
        before = [param.detach().clone() for param in params]
        set_grads(params, t)
        optimizer.step()
        directions.append([b - param.detach() for b, param in zip(before, params, strict=True)])
    return directions


def test_optimistic_adam_is_twice_this_direction_minus_the_last() -> None:
    steps = 6
    directions = adam_directions(steps)
    params = make_params()
    optimizer = OptimisticAdam(params, lr=0.1, betas=(0.6, 0.95), eps=1e-7)
    expected = [param.detach().clone() for param in params]
    for t in range(steps):
        set_grads(params, t)
        optimizer.step()
        for i in range(len(params)):
            last = directions[t - 1][i] if t else torch.zeros_like(expected[i])
            expected[i] = expected[i] - 2 * directions[t][i] + last
            torch.testing.assert_close(params[i].detach(), expected[i], rtol=1e-12, atol=1e-13)


def test_extra_adam_steps_from_where_it_extrapolated() -> None:
    steps = 4
    directions = adam_directions(2 * steps)
    params = make_params()
    optimizer = ExtraAdam(params, lr=0.1, betas=(0.6, 0.95), eps=1e-7)
    base = [param.detach().clone() for param in params]
    for t in range(steps):
        set_grads(params, 2 * t)
        optimizer.extrapolation()
        for param, x, u in zip(params, base, directions[2 * t], strict=True):
            torch.testing.assert_close(param.detach(), x - u, rtol=1e-12, atol=1e-13)
        set_grads(params, 2 * t + 1)
        optimizer.step()
        base = [x - u for x, u in zip(base, directions[2 * t + 1], strict=True)]
        for param, x in zip(params, base, strict=True):
            torch.testing.assert_close(param.detach(), x, rtol=1e-12, atol=1e-13)


def test_halves_out_of_order_are_refused() -> None:
    params = make_params()
    optimizer = ExtraAdam(params)
    set_grads(params, 0)
    with pytest.raises(RuntimeError, match=r"extrapolation\(\)"):
        optimizer.step()
    optimizer.extrapolation()
    with pytest.raises(RuntimeError, match="twice"):
        optimizer.extrapolation()
    with pytest.raises(RuntimeError, match="add_param_group"):
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    optimizer.step()


def test_extra_adam_returns_a_parameter_that_got_no_second_gradient() -> None:
    params = make_params()
    optimizer = ExtraAdam(params, lr=0.1)
    before = params[0].detach().clone()
    set_grads(params, 0)
    optimizer.extrapolation()
    assert not torch.equal(params[0], before)
    params[0].grad = None
    optimizer.step()
    assert torch.equal(params[0], before)


def test_extrapolation_with_gradients_of_one_rank_is_refused() -> None:
    params = make_params()
    optimizer = ExtraAdam(params)
    optimizer._synchronized = False  # as Horovod's wrapper starts
    set_grads(params, 0)
    with pytest.raises(RuntimeError, match=r"synchronize\(\) before extrapolation"):
        optimizer.extrapolation()
    optimizer._synchronized = True  # as its synchronize() leaves it
    optimizer.extrapolation()
    assert optimizer._synchronized is False  # so that step() synchronizes without a warning
    optimizer.step()


def test_absent_gradients_count_steps_per_parameter() -> None:
    params = make_params()[:2]
    reference = make_params()[:2]
    optimizer = OptimisticAdam(params, lr=0.1, betas=(0.6, 0.95))
    alone = OptimisticAdam([reference[1]], lr=0.1, betas=(0.6, 0.95))
    for t in range(4):
        set_grads(params, t)
        reference[1].grad = params[1].grad.clone()
        if t < 2:
            params[1].grad = None
        else:
            alone.step()
        optimizer.step()
    assert torch.equal(params[1], reference[1])


@pytest.mark.parametrize("cls", [OptimisticAdam, ExtraAdam])
def test_maximize_mirrors_minimize(cls: Any) -> None:
    ends = []
    for maximize in (False, True):
        params = make_params()
        optimizer = cls(params, lr=0.1, maximize=maximize)
        for t in range(6):
            set_grads(params, t)
            for param in params:
                param.grad.mul_(-1.0 if maximize else 1.0)
            if cls is ExtraAdam and t % 2 == 0:
                optimizer.extrapolation()
            else:
                optimizer.step()
        ends.append(params[0].detach().clone())
    assert torch.equal(*ends)


def test_half_precision_rounds_once() -> None:
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = OptimisticAdam([p], lr=0.01, betas=(0.0, 0.0))
    for _ in range(2):
        p.grad = torch.ones(1, dtype=torch.bfloat16)
        optimizer.step()
    # −2·lr, then −2·lr + lr
    assert p.item() == pytest.approx(0.97, abs=2.0**-7)


def test_optimistic_and_extra_adam_come_in_where_adam_spirals_out() -> None:
    game = BilinearGame()
    start = torch.zeros(game.d, dtype=torch.float64)
    residuals = {}
    for cls in (torch.optim.Adam, OptimisticAdam, ExtraAdam):
        z = torch.nn.Parameter(start.clone())
        optimizer = cls([z], lr=0.01, betas=(0.0, 0.999))
        for _ in range(2000):
            z.grad = game.operator(z.detach())
            if isinstance(optimizer, ExtraAdam):
                optimizer.extrapolation()
                z.grad = game.operator(z.detach())
            optimizer.step()
        residuals[cls.__name__] = game.residual(z.detach()) / game.residual(start)
    print(residuals)
    assert residuals["Adam"] > 1.0
    assert residuals["OptimisticAdam"] < 0.25
    assert residuals["ExtraAdam"] < 0.25

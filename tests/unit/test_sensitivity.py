"""Sensitivities of losses whose curvature is known; and nothing is left changed."""

import random

import pytest
import torch

from horovod_qoda import sensitivity
from horovod_qoda.settings import Settings


class Quadratic(torch.nn.Module):
    """Loss: the sum over layers of curvature / 2 |w|^2 + slope . w."""

    curvatures = {"a": 3.0, "b": 0.02, "flat": 0.0}

    def __init__(self):
        super().__init__()
        for name in self.curvatures:
            self.register_parameter(name, torch.nn.Parameter(torch.randn(64, 32)))
        self.bias = torch.nn.Parameter(torch.randn(2048))
        self.double()

    def loss(self):
        return sum(
            c / 2 * self.get_parameter(n).square().sum() + self.get_parameter(n).sum()
            for n, c in self.curvatures.items()
        )


def test_half_the_mean_curvature():
    seed = random.randrange(2**32)
    print("seed", seed)
    torch.manual_seed(seed)
    model = Quadratic()
    found = sensitivity.measure(model, model.loss, probes=2, seed=seed)
    assert list(found) == ["a", "b", "flat"], "one-dimensional parameters travel raw"
    for name, curvature in model.curvatures.items():
        assert found[name] == pytest.approx(curvature / 2, rel=1e-5, abs=1e-6)


def test_a_network_against_its_hessian():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32))
    model.double()
    x, y = torch.randn(2, 256, 32, dtype=torch.float64)

    def loss():
        return (model(x) - y).square().mean()

    def trace(p):
        (first,) = torch.autograd.grad(loss(), p, create_graph=True)
        flat = first.ravel()
        rows = [torch.autograd.grad(flat[i], p, retain_graph=True)[0] for i in range(len(flat))]
        return sum(float(row.ravel()[i]) for i, row in enumerate(rows))

    found = sensitivity.measure(model, loss, relative_error=0.005, probes=64)
    for name, p in model.named_parameters():
        if p.dim() > 1:
            assert found[name] == pytest.approx(trace(p) / 2 / p.numel(), rel=0.1)


def test_everything_is_as_before():
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 64),
        torch.nn.BatchNorm1d(64),
        torch.nn.Dropout(),
        torch.nn.Linear(64, 16),
    )
    x = torch.randn(32, 64)
    model(x).square().sum().backward()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()

    first, second = (
        sensitivity.measure(model, lambda: model(x).square().mean(), prefix="net") for _ in range(2)
    )
    assert list(first) == ["net.0.weight", "net.3.weight"]
    assert first == second, "noise and dropout are those of the seed and the generator"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training

    def bad():
        return (
            torch.tensor(float("nan")) if model[3].weight.sum() != before["3.weight"].sum() else 1.0
        )

    with pytest.raises(ValueError, match="with noise in 3.weight"):
        sensitivity.measure(model, bad)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_rules_can_be_passed_on():
    rules = sensitivity.rules({"a.0": 4.0, "b[1]": 1.0, "c": -2.0})
    settings = Settings(allocation="lgreco", rules=rules)
    settings.check_rules({"a.0": "linear", "b[1]": "linear", "c": "linear"})
    weights = [settings.for_layer(name, "linear").sensitivity for name in ("a.0", "b[1]", "c")]
    assert weights == [1.0, 0.25, sensitivity.FLOOR]
    with pytest.raises(ValueError, match="no layer has a positive sensitivity"):
        sensitivity.rules({"a": -1.0})


def test_bad_arguments_are_named():
    model = torch.nn.Linear(64, 64)
    for wanted in ({"relative_error": 0.0}, {"probes": 0}):
        with pytest.raises(ValueError, match=next(iter(wanted))):
            sensitivity.measure(model, lambda: 0.0, **wanted)
    with pytest.raises(ValueError, match="no parameter"):
        sensitivity.measure(torch.nn.Linear(4, 4), lambda: 0.0)

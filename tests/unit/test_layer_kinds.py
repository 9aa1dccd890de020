"""Kinds of layers: from modules where a model is given, else from names."""

import pytest
from torch import nn

from horovod_qoda.layer_kinds import KINDS, kind_of_name, kinds_of_modules


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("transformer.wte.weight", (100, 8), "embedding"),
        ("blocks.0.attn.c_proj.weight", (8, 8), "attention"),
        ("blocks.0.ln_1.weight", (8,), "norm"),
        ("layer1.0.bn2.weight", (8,), "norm"),
        ("blocks.0.mlp.fc.weight", (32, 8), "feed_forward"),
        ("layer1.0.conv1.weight", (8, 3, 3, 3), "convolution"),
        ("features.0.weight", (8, 3, 3, 3), "convolution"),
        ("rnn.weight_ih_l0", (32, 8), "recurrent"),
        ("fc.weight", (10, 8), "linear"),
        ("fc.bias", (10,), "vector"),
        ("scale", (), "other"),
    ],
)
def test_names(name, shape, kind):
    assert kind_of_name(name, shape) == kind and kind in KINDS


class Mlp(nn.Sequential):
    pass


class Attention(nn.Module):
    """The name of the whole says nothing about its parts."""

    def __init__(self):
        super().__init__()
        self.a = nn.Embedding(10, 8)
        self.b = nn.MultiheadAttention(8, 2)
        self.c = Mlp(nn.Linear(8, 16), nn.Linear(16, 8))
        self.d = nn.LayerNorm(8)
        self.e = nn.Conv2d(1, 4, 3)
        self.f = nn.LSTM(8, 8)
        self.g = nn.Linear(8, 10)
        self.h = nn.Linear(8, 10)
        self.h.weight = self.a.weight


def test_modules():
    model = Attention()
    kinds = kinds_of_modules(model, {p: n for n, p in model.named_parameters()})
    assert kinds["a.weight"] == "embedding", "a tied parameter has the kind of its first module"
    assert kinds["b.in_proj_weight"] == kinds["b.out_proj.weight"] == "attention"
    assert kinds["c.0.weight"] == kinds["c.1.bias"] == "feed_forward"
    assert kinds["d.weight"] == "norm" and kinds["e.weight"] == "convolution"
    assert kinds["f.weight_hh_l0"] == "recurrent"
    assert kinds["g.weight"] == "linear" and kinds["g.bias"] == "vector"
    assert set(kinds) == {n for n, _ in model.named_parameters()}


def test_several_models_under_the_optimizers_names():
    players = [nn.Linear(4, 4), nn.Sequential(nn.Conv1d(4, 4, 1))]
    names = {
        p: f"{prefix}.{n}"
        for prefix, model in zip("GD", players, strict=True)
        for n, p in model.named_parameters()
    }
    kinds = kinds_of_modules(players, names)
    assert kinds["G.weight"] == "linear" and kinds["D.0.weight"] == "convolution"
    del names[players[0].weight]
    assert "G.weight" not in kinds_of_modules(players, names), "what is not optimised has no kind"


def test_not_a_module():
    with pytest.raises(TypeError, match="torch.nn.Module"):
        kinds_of_modules([nn.Linear(2, 2), "encoder"], {})

"""What kind of layer a parameter belongs to: from its module where a model is given, else its name.

Imports no framework: modules are recognised by the names of their classes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

KINDS = (
    "embedding", "attention", "feed_forward", "convolution", "recurrent", "linear", "norm",
    "vector", "other",
)  # fmt: skip

# The first that matches a lower-case parameter name counts.
_NAMES = (
    ("embedding", ("*embed*", "*emb.*", "*wte*", "*wpe*")),
    ("norm", ("*norm*", "*.ln_*", "ln_*", "*.bn*", "bn*")),
    ("attention", ("*attn*", "*attention*", "*qkv*", "*q_proj*", "*k_proj*", "*v_proj*")),
    ("feed_forward", ("*mlp*", "*ffn*", "*feed_forward*", "*feedforward*", "*.ff.*")),
    ("convolution", ("*conv*",)),
    ("recurrent", ("*lstm*", "*.gru*", "gru*", "*rnn*")),
)

# The first class, from the parameter's own module outwards, that one of these matches counts.
_CLASSES = (
    ("embedding", ("embedding*",)),
    ("norm", ("*norm*",)),
    ("convolution", ("*conv[0-9]d*", "*convtranspose*")),
    ("recurrent", ("lstm*", "gru*", "rnn*")),
    ("attention", ("*attention*", "*attn*")),
    ("feed_forward", ("*mlp*", "*feedforward*", "*ffn*")),
)


def kind_of_name(name: str, shape: tuple[int, ...]) -> str:
    """Kind of a layer from its name, then from its number of dimensions."""
    lower = name.lower()
    for kind, patterns in _NAMES:
        if any(fnmatch.fnmatchcase(lower, pattern) for pattern in patterns):
            return kind
    return {0: "other", 1: "vector", 2: "linear"}.get(
        len(shape), "convolution" if len(shape) <= 5 else "other"
    )


def kinds_of_modules(models: Any, names: Mapping[Any, str]) -> dict[str, str]:
    """Kinds of the parameters of one or several ``torch.nn.Module``.

    A parameter has the kind of the innermost module around it whose class says one: the projections
    inside an attention are attention, a linear layer elsewhere is linear, and the name decides
    whether it is a feed-forward one. A parameter that two modules share has the kind of the first.

    Args:
        models: a module, or several (the players of a game).
        names: parameter -> the name that the optimizer knows it by.

    Returns:
        Name -> kind, for the parameters found in the models.

    Raises:
        TypeError: something in ``models`` is not a module.
    """
    kinds: dict[str, str] = {}
    for model in [models] if hasattr(models, "named_modules") else list(models):
        if not hasattr(model, "named_modules"):
            raise TypeError(f"model must be a torch.nn.Module or several, not {type(model)}")
        modules = dict(model.named_modules())
        for path, module in modules.items():
            around = [modules[p] for p in _outwards(path)]
            kind = _kind_of_classes(type(m) for m in around)
            for own, parameter in module.named_parameters(recurse=False):
                name = names.get(parameter)
                if name is not None and name not in kinds:
                    full = f"{path}.{own}" if path else own
                    kinds[name] = kind or kind_of_name(full, tuple(parameter.shape))
    return kinds


def _outwards(path: str) -> list[str]:
    """The path of a module, then those of the modules around it: a.b.c, a.b, a.

    Not the model: its class is named after what the whole is for.
    """
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _kind_of_classes(classes: Iterable[type]) -> str | None:
    for of in classes:
        names = [c.__name__.lower() for c in of.__mro__]
        for kind, patterns in _CLASSES:
            if any(fnmatch.fnmatchcase(n, p) for n in names[:2] for p in patterns):
                return kind
    return None

"""``DistributedOptimizer``: Horovod's own optimizer class with a few of its functions replaced.

Horovod builds its optimizer by ``type(name, (User,), dict(_DistributedOptimizer.__dict__))`` and
finds the user's class by ``super(self.__class__, self)``, so the result cannot be subclassed.
The same call with our functions merged into that dict can: ``synchronize()`` stays Horovod's, which
accepts a callable where it expects a handle, and everything that recognises Horovod's optimizer by
its module still does.
"""

from __future__ import annotations

import warnings
from typing import Any

import horovod.torch as hvd
import torch

from horovod_qoda.logs import logger
from horovod_qoda.qoda import QODA
from horovod_qoda.torch.attach import attach
from horovod_qoda.torch.carriers import CountedCompression
from horovod_qoda.torch.compression import Compression, LayerwiseCompressor, SimulatedCompressor
from horovod_qoda.torch.methods import replacements, stock


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Any = None,
    compression: Any = LayerwiseCompressor,
    backward_passes_per_step: int = 1,
    op: Any = hvd.Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    sparse_as_dense: bool = False,
    process_set: Any = hvd.global_process_set,
    *,
    overlap: bool | str = "auto",
    replica_check_steps: int = 0,
    model: Any = None,
) -> Any:
    """Wraps an optimizer so that gradients are averaged over ranks, compressed, before each step.

    Takes what ``horovod.torch.DistributedOptimizer`` takes, with the same meaning, but for the
    default of ``compression``; and two arguments more.

    Args:
        compression: ``Compression.layerwise``, with or without settings, goes through the
            compressed exchange of this package; anything else through stock Horovod.
        gradient_predivide_factor: splits the average in stock Horovod, to keep float16 sums in
            range; without effect on the compressed exchange, which sums float32.
        groups, num_groups: for stock Horovod; the compressed exchange fuses by ``fusion_mb``.
        overlap: ``"auto"`` sends gradients during backward once three steps have shown that
            nothing happens to them afterwards; ``True`` from the second step on; ``False`` never.
        replica_check_steps: compare the parameters of all ranks every so many steps and raise where
            they differ; 0 never does. It hashes all parameters: choose hundreds of steps.
        model: the ``torch.nn.Module``, or several, that the parameters are of. Kinds of layers
            (for types, and for rules of ``type:KIND``) then come from modules instead of names.

    Returns:
        An instance of a class derived from the optimizer's, with Horovod's methods
        (``synchronize``, ``skip_synchronize``, …) and ``add_listener``, ``no_sync``,
        ``local_state_dict``, ``load_local_state_dict``.

    Raises:
        ValueError: a bad setting, a rule that matches no layer, a name that is not unique.
        MismatchError: in the first step, on all ranks, where settings or models differ; parameters
            that differ then are a warning, and an error where ``replica_check_steps`` finds them.
    """
    if hasattr(optimizer, "_should_synchronize"):
        raise ValueError("the optimizer is a DistributedOptimizer already: wrap it once")
    settings = _layerwise_settings(compression)
    stock_compression = Compression.none if settings is not None else compression
    if op == hvd.Adasum:
        if settings is not None and hvd.rank() == 0:
            logger().warning(
                "NOTHING IS COMPRESSED: op=Adasum combines whole gradients inside stock Horovod; "
                "pass op=Average to compress them"
            )
        return hvd.DistributedOptimizer(
            optimizer, named_parameters, stock_compression, backward_passes_per_step,
            op, gradient_predivide_factor, num_groups, groups, sparse_as_dense, process_set,
        )  # fmt: skip
    if op not in (hvd.Average, hvd.Sum):
        raise ValueError(f"op={op!r}: gradients can be combined by Average, Sum or Adasum")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("LBFGS evaluates its closure several times a step: use another optimizer")
    if gradient_predivide_factor != 1.0 and op != hvd.Average:
        raise ValueError("gradient_predivide_factor needs op=Average")
    if backward_passes_per_step <= 0:
        raise ValueError(f"backward_passes_per_step must be > 0, not {backward_passes_per_step}")
    if num_groups:
        warnings.warn(
            "num_groups was replaced by groups in Horovod", DeprecationWarning, stacklevel=2
        )
    # Stock Horovod forgets what an optimizer that has stepped or loaded a checkpoint holds.
    state = optimizer.state_dict() if optimizer.state else None
    cls = type(type(optimizer).__name__, (type(optimizer),), {**stock, **replacements})
    wrapped = cls(
        optimizer.param_groups, named_parameters, CountedCompression(stock_compression),
        backward_passes_per_step, op, gradient_predivide_factor, None, sparse_as_dense, process_set,
    )  # fmt: skip
    if process_set.included():
        attach(wrapped, settings, overlap, replica_check_steps, model)
    if state is not None:
        wrapped.load_state_dict(state)
        # Learning-rate schedulers made before hold the groups: loading must not part them.
        for group, loaded in zip(optimizer.param_groups, wrapped.param_groups, strict=True):
            group.update(loaded)
        wrapped.param_groups = list(optimizer.param_groups)
    return wrapped


def DistributedQODA(
    params: Any,
    named_parameters: Any = None,
    lr: float = 1.0,
    variant: str = "coupled",
    *,
    compression: Any = LayerwiseCompressor,
    qoda: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """QODA over all ranks: one optimizer that owns every player of a min-max problem.

    Args:
        params: parameters or groups, as for any torch optimizer; one group a player lets each have
            its own ``lr``.
        lr, variant: see :class:`horovod_qoda.qoda.QODA`; further arguments of it in ``qoda``.
        **options: of :func:`DistributedOptimizer`.
    """
    optimizer = QODA(params, lr=lr, variant=variant, **(qoda or {}))
    return DistributedOptimizer(optimizer, named_parameters, compression, **options)


def _layerwise_settings(compression: Any) -> Any:
    """Settings of a layer-wise compressor (class or instance), or ``None`` for any other."""
    kind = compression if isinstance(compression, type) else type(compression)
    if not issubclass(kind, LayerwiseCompressor) or issubclass(kind, SimulatedCompressor):
        return None
    return (compression() if isinstance(compression, type) else compression).settings

"""Optimizers for min-max problems and variational inequalities, as plain ``torch.optim`` classes.

They import neither Horovod nor MPI. Wrapped by ``horovod_qoda.torch.DistributedOptimizer`` they
work on mean gradients, alone they work on their own.

- :class:`QODA`: quantized optimistic dual averaging, one exchange a step.
- :class:`OptimisticAdam`: Adam's direction with an optimistic correction, one exchange a step.
- :class:`ExtraAdam`: Adam with extrapolation, two exchanges a step, the baseline.
"""

from horovod_qoda.qoda.extra_adam import ExtraAdam
from horovod_qoda.qoda.optimistic_adam import OptimisticAdam
from horovod_qoda.qoda.qoda import QODA

__all__ = ["QODA", "ExtraAdam", "OptimisticAdam"]

"""Quantisers' parameters: level sequences and step sizes, as pure functions."""

from horovod_qoda.quantization.levels import exponential, ternary, uniform
from horovod_qoda.quantization.steps import (
    choose_uniform,
    gaussian_level_rate,
    gaussian_maxmin_rate,
    gaussian_rate,
    rate_bound,
    step_factor,
    step_size,
)

__all__ = [
    "choose_uniform",
    "exponential",
    "gaussian_level_rate",
    "gaussian_maxmin_rate",
    "gaussian_rate",
    "rate_bound",
    "step_factor",
    "step_size",
    "ternary",
    "uniform",
]

"""The theory as pure functions: variances, code lengths, rates. NumPy only, nothing is stateful.

Formulas are derived in docs/theory.md under the section that each docstring names. A docstring ends
with its trust mark: [P] proved there and checked by tests, [C] read in public code, [S] stated in
print, [R] recalled: shape certain, constants not.

- :mod:`horovod_qoda.theory.variance`: exact variances of the quantizers and their bounds.
- :mod:`horovod_qoda.theory.code_length`: symbol probabilities and bits per payload.
- :mod:`horovod_qoda.theory.rates`: noise of the quantized oracle, rates, averages over training.
"""

from horovod_qoda.theory.code_length import (
    entropy,
    huffman_upper_bound,
    kl_divergence,
    length_lower_bound,
    one_stream_entropy_bound,
    pooled_entropy,
    rans_target,
    shannon_length,
    symbol_probabilities,
)
from horovod_qoda.theory.rates import (
    absolute_oracle_variance,
    absolute_rate,
    relative_oracle_constant,
    relative_rate,
    segment_average,
    segment_root_average,
)
from horovod_qoda.theory.variance import (
    all_ones_variance,
    bucketed_bound,
    dithered_relative_variance,
    dithered_variance,
    first_level_term,
    first_level_term_at,
    level_variance,
    nuqsgd_bound,
    optimal_p,
    qsgd_bound,
    ratio_term,
    rounded_relative_bound,
    rounded_variance,
    variance_bound,
    variance_bound_tight,
)

__all__ = [
    "absolute_oracle_variance",
    "absolute_rate",
    "all_ones_variance",
    "bucketed_bound",
    "dithered_relative_variance",
    "dithered_variance",
    "entropy",
    "first_level_term",
    "first_level_term_at",
    "huffman_upper_bound",
    "kl_divergence",
    "length_lower_bound",
    "level_variance",
    "nuqsgd_bound",
    "one_stream_entropy_bound",
    "optimal_p",
    "pooled_entropy",
    "qsgd_bound",
    "rans_target",
    "ratio_term",
    "relative_oracle_constant",
    "relative_rate",
    "rounded_relative_bound",
    "rounded_variance",
    "segment_average",
    "segment_root_average",
    "shannon_length",
    "symbol_probabilities",
    "variance_bound",
    "variance_bound_tight",
]

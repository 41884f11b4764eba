"""Published methods for the norm of a convolution: one signature, the side in every name."""

from gramnorm.classical._methods import (
    METHODS,
    Method,
    aol_upper_bound,
    circular_exact_norm,
    fantastic_four_upper_bound,
    lip_grid_upper_bound,
    norm2toep_upper_bound,
    power_iteration_lower_bound,
    tensor_norm_estimate,
)

__all__ = [
    "METHODS",
    "Method",
    "aol_upper_bound",
    "circular_exact_norm",
    "fantastic_four_upper_bound",
    "lip_grid_upper_bound",
    "norm2toep_upper_bound",
    "power_iteration_lower_bound",
    "tensor_norm_estimate",
]

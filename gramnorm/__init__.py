"""Certified bounds on the spectral norm of matrices and of convolutions, for any array library."""

from gramnorm import classical
from gramnorm._conv.bounds import (
    conv_gram_iteration,
    conv_norm_bound,
    conv_norm_bracket,
    conv_norm_value_and_grad,
    fir_norm,
)
from gramnorm._conv.geometry import ConvGeometry
from gramnorm._matrix.bounds import (
    gram_iteration,
    matrix_norm_bound,
    matrix_norm_bracket,
    matrix_norm_value_and_grad,
)
from gramnorm._matrix.operators import operator_norm_bracket, operator_norm_lower_bound
from gramnorm._rescaling import conv_spectral_rescaling, spectral_rescaling
from gramnorm._results import NormBracket
from gramnorm._tracking import Tracked, start_tracking, track_norm
from gramnorm.network import (
    Activation,
    AvgPool,
    ConvLayer,
    Flatten,
    MaxPool,
    Residual,
    block_norm_bound,
    chain_bound,
    chain_certificate,
    chain_gram_iteration,
    network_bound,
    product_bound,
    residual_bound,
    sum_bound,
)

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "AvgPool",
    "ConvGeometry",
    "ConvLayer",
    "Flatten",
    "MaxPool",
    "NormBracket",
    "Residual",
    "Tracked",
    "__version__",
    "block_norm_bound",
    "chain_bound",
    "chain_certificate",
    "chain_gram_iteration",
    "classical",
    "conv_gram_iteration",
    "conv_norm_bound",
    "conv_norm_bracket",
    "conv_norm_value_and_grad",
    "conv_spectral_rescaling",
    "fir_norm",
    "gram_iteration",
    "matrix_norm_bound",
    "matrix_norm_bracket",
    "matrix_norm_value_and_grad",
    "network_bound",
    "operator_norm_bracket",
    "operator_norm_lower_bound",
    "product_bound",
    "residual_bound",
    "spectral_rescaling",
    "start_tracking",
    "sum_bound",
    "track_norm",
]

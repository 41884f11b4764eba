"""Bounds of networks: from bounds of parts, and of a chain of layers as a whole."""

from gramnorm.network._chain import chain_bound, chain_certificate, chain_gram_iteration
from gramnorm.network._compose import (
    block_norm_bound,
    network_bound,
    product_bound,
    residual_bound,
    sum_bound,
)
from gramnorm.network._layers import (
    Activation,
    AvgPool,
    ConvLayer,
    Flatten,
    MaxPool,
    Residual,
)

__all__ = [
    "Activation",
    "AvgPool",
    "ConvLayer",
    "Flatten",
    "MaxPool",
    "Residual",
    "block_norm_bound",
    "chain_bound",
    "chain_certificate",
    "chain_gram_iteration",
    "network_bound",
    "product_bound",
    "residual_bound",
    "sum_bound",
]

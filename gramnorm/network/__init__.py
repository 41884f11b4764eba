"""Bounds of networks: from bounds of parts, and of a chain of layers as a whole."""

from gramnorm.network._chain import chain_bound, chain_certificate, chain_gram_iteration
from gramnorm.network._compose import (
    block_norm_bound,
    network_bound,
    product_bound,
    residual_bound,
    sum_bound,
)
from gramnorm.network._layers import AvgPool, ConvLayer, Flatten, MaxPool

__all__ = [
    "AvgPool",
    "ConvLayer",
    "Flatten",
    "MaxPool",
    "block_norm_bound",
    "chain_bound",
    "chain_certificate",
    "chain_gram_iteration",
    "network_bound",
    "product_bound",
    "residual_bound",
    "sum_bound",
]

"""Bounds of networks from bounds of parts: products, sums, residuals, block operators, graphs."""

from gramnorm.network._compose import (
    block_norm_bound,
    network_bound,
    product_bound,
    residual_bound,
    sum_bound,
)

__all__ = ["block_norm_bound", "network_bound", "product_bound", "residual_bound", "sum_bound"]

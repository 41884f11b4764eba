"""Certified bounds on the spectral norm of matrices and of convolutions, for any array library."""

from gramnorm.bracket import NormBracket
from gramnorm.conv import conv_gram_iteration, conv_norm_bound, conv_norm_bracket
from gramnorm.matrix import gram_iteration, matrix_norm_bound, matrix_norm_bracket

__all__ = [
    "NormBracket",
    "conv_gram_iteration",
    "conv_norm_bound",
    "conv_norm_bracket",
    "gram_iteration",
    "matrix_norm_bound",
    "matrix_norm_bracket",
]

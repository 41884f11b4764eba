"""Norms of matrices, dense and sparse.

Public functions in `bounds`, the choice of a method in `choose`.
"""

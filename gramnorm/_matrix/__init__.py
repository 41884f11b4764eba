"""Norms of matrices, dense and sparse: public functions in `bounds`, the choice of a method in `choose`."""

"""Norms of convolutions: public functions in `bounds`, the choice of a way in `choose`."""

"""The array boundary: what differs between array libraries is decided here and nowhere else."""

"""The array boundary: what differs between array libraries is decided in this folder, and nowhere else."""

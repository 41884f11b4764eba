"""Names for the types that cross module borders; no array library is imported for them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = Any
"""An array of any library that follows the array API standard."""

Namespace: TypeAlias = Any
"""The namespace (module) of such a library, as array-api-compat gives it."""

DType: TypeAlias = Any
Device: TypeAlias = Any

HostFloats: TypeAlias = npt.NDArray[np.float64]
HostNumbers: TypeAlias = npt.NDArray[np.inexact]
HostInts: TypeAlias = npt.NDArray[np.int64]
HostBools: TypeAlias = npt.NDArray[np.bool_]
"""NumPy arrays on the host: the few numbers per matrix on which the drivers decide."""

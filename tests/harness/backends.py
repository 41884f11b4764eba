"""The array libraries that the suite runs against, and the conversions that tests may use."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import device as device_of

NARROW = {"float64": "float32", "complex128": "complex64"}


@dataclass(frozen=True)
class Backend:
    """One array library on one device, with the two conversions tests may use."""

    id: str
    xp: Any
    device: Any = None
    has_float64: bool = True
    readonly: bool = False
    with_numpy: bool = True

    @property
    def compiles(self) -> bool:
        """Whether each shape is compiled: JAX's arrays in the host's memory are NumPy's."""
        return self.id.startswith("jax") and not self.with_numpy

    def asarray(self, host: Any, dtype: str | None = None) -> Any:
        """Return a fresh array of the named dtype; without float64, values are narrowed."""
        host = np.array(host)
        name = dtype or host.dtype.name
        name = name if self.has_float64 else NARROW.get(name, name)
        if name in np.sctypeDict:
            host = host.astype(name)  # on the host: a device may not hold the wider type
        x = self.xp.asarray(host, dtype=getattr(self.xp, name), device=self.device)
        if self.readonly:
            x.flags.writeable = False
        return x

    def to_numpy(self, x: Any) -> Any:
        """Return `x` on the host; bfloat16, unknown to NumPy, comes back as float32."""
        if self.id.startswith("strict"):
            x = x.to_device(self.xp.Device("CPU_DEVICE"))
        if self.id.startswith("torch"):
            x = x.detach().cpu().resolve_conj()
        if "bfloat16" in str(getattr(x, "dtype", "")):
            x = self.xp.astype(x, self.xp.float32)
        return x.get() if self.id == "cupy" else np.asarray(x)

    def is_at_home(self, x: Any) -> bool:
        """Tell whether `x` is an array of this library on this device."""
        here = self.xp.empty(0, dtype=self.xp.float32, device=self.device)
        return isinstance(x, type(here)) and device_of(x) == device_of(here)


# Per id: the library, its standard namespace, what makes this backend differ, the GPU counter.
STRICT, TORCH = ("array_api_strict",) * 2, ("torch", "array_api_compat.torch")
BACKENDS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "numpy": ("numpy", "array_api_compat.numpy", {}, ""),
    "numpy-readonly": ("numpy", "array_api_compat.numpy", {"readonly": True}, ""),
    "strict": (*STRICT, {"device": "CPU_DEVICE", "with_numpy": False}, ""),
    "strict-device1": (*STRICT, {"device": "device1", "with_numpy": False}, ""),
    "strict-float32": (
        *STRICT,
        {"device": "no_float64", "has_float64": False, "with_numpy": False},
        "",
    ),
    "torch": (*TORCH, {"device": "cpu"}, ""),
    "jax32": ("jax", "jax.numpy", {"has_float64": False}, ""),
    "jax": ("jax", "jax.numpy", {}, ""),
    # computed as on a device: not with NumPy
    "torch-device": (*TORCH, {"device": "cpu", "with_numpy": False}, ""),
    "jax32-device": ("jax", "jax.numpy", {"has_float64": False, "with_numpy": False}, ""),
    "jax-device": ("jax", "jax.numpy", {"with_numpy": False}, ""),
    "cupy": ("cupy", "array_api_compat.cupy", {}, "cuda.runtime.getDeviceCount"),
    "torch-cuda": (*TORCH, {"device": "cuda"}, "cuda.device_count"),
}


# Computed as another one is, or what another one is for: tested if named.
TWINS = {
    "numpy-readonly": "numpy",
    "strict": "strict-device1",
    "torch-device": "torch",
    "jax32-device": "jax32",
    "jax-device": "jax",
}

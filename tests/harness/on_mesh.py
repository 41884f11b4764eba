"""Every function on arrays that JAX shards over four devices of a host, against the whole.

``XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.harness.on_mesh``
"""

import sys
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gramnorm as gn
from gramnorm._arrays import libraries, limits

MATRICES = {"tall": (16, 8), "wide": (8, 32), "stack": (8, 6, 4)}
RTOL = 1e-8
"""Of brackets, which may be proved in another way where the parts are."""

BOUNDS = {
    "bound": lambda x: gn.matrix_norm_bound(x, rtol=RTOL),
    "lower": lambda x: gn.matrix_norm_bracket(x, rtol=RTOL).lower,
    "upper": lambda x: gn.matrix_norm_bracket(x, rtol=RTOL).upper,
    "converged": lambda x: gn.matrix_norm_bracket(x).converged,
}
OTHERS: dict[str, Any] = {
    "vectors": lambda x: gn.matrix_norm_bracket(x, vectors=True).right,
    "value and grad": lambda x: gn.matrix_norm_value_and_grad(x)[1],
    "grad": jax.grad(lambda x: jnp.sum(gn.matrix_norm_bound(x, rtol=RTOL))),
    "steps": lambda x: gn.gram_iteration(x, steps=3),
    "compiled steps": jax.jit(lambda x: gn.gram_iteration(x, steps=3)),
    "rescaling": lambda x: gn.spectral_rescaling(x, steps=3),
}
OF_KERNELS = {
    "conv": gn.conv_norm_bound,
    "conv bracket": lambda k: gn.conv_norm_bracket(k, 6, padding=1).lower,
    "conv grad": lambda k: gn.conv_norm_value_and_grad(k)[1],
    "conv steps": lambda k: gn.conv_gram_iteration(k, 6, steps=2),
    "classical": gn.classical.norm2toep_upper_bound,
}
ODD = (np.zeros((8, 4)), np.full((8, 4), np.nan), np.full((8, 4), np.inf), np.full((8, 4), 5e-324))


def compare(name: str, function: Any, host: np.ndarray, place: NamedSharding) -> None:
    """Assert that a function returns of a sharded array what it does of the whole."""
    x = jax.device_put(host, place)
    found, expected = function(x), function(jnp.asarray(host))
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), name
    about = f"{name} {place}"
    np.testing.assert_allclose(found, expected, rtol=RTOL, atol=1e-9, err_msg=about)
    if name in BOUNDS:
        assert found.sharding.is_fully_replicated, about
        assert found.sharding.device_set == x.sharding.device_set, about


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    devices = np.asarray(jax.devices())
    assert len(devices) == 4
    line, square = Mesh(devices, ("i",)), Mesh(devices.reshape(2, 2), ("i", "j"))
    rows, columns = NamedSharding(line, P("i")), NamedSharding(line, P(None, "i"))
    both, half = NamedSharding(square, P("j", "i")), NamedSharding(square, P("i"))
    rng = np.random.default_rng(0)
    on_host = [("tall", rows), ("tall", columns), ("wide", rows), ("wide", both), ("stack", half)]
    for kind, place in on_host:
        functions = BOUNDS if kind == "wide" else BOUNDS | OTHERS  # these compile for each shape
        for name, function in functions.items():
            compare(name, function, rng.standard_normal(MATRICES[kind]), place)
    for name, function in OF_KERNELS.items():
        compare(name, function, rng.standard_normal((8, 4, 3)), rows)
    for odd in ODD:
        compare("bound", BOUNDS["bound"], odd, rows)
    libraries.HOST_WITH_NUMPY = False
    for most in (2**30, 0):
        with mock.patch.object(limits, "GATHERED_BYTES", most):
            for place in (rows, columns, both):
                compare("upper", BOUNDS["upper"], rng.standard_normal((16, 8)), place)
            for odd in ODD:
                compare("bound", BOUNDS["bound"], odd, rows)
    compare("grad", OTHERS["grad"], rng.standard_normal((16, 8)), rows)
    compare("conv", OF_KERNELS["conv"], rng.standard_normal((8, 4, 3)), rows)
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main()

"""Dense arrays as they are made: views, strides, byte orders, flags, types; for every public function that takes one.

What is searched for is a function that reads something else than the array holds. A layout turns numbers into an
array of a library that holds them in its own way, and says which numbers these are; a check draws such an array, calls
one public function, and compares with references that saw the numbers only. `CHECKS` names every public function.
"""

import contextlib
import functools
import inspect
import itertools
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.harness import oracles, soundness
from tests.harness.soundness import Count, Report

SHARES = {"numpy": 0.55, "torch": 0.38, "jax": 0.01, "array_api_strict": 0.06}
BATCH = 50  # arrays of a task

FLOATS = ("float16", "float32", "float64", "complex64", "complex128")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
TYPES = {
    "numpy": FLOATS + INTEGERS,
    "torch": (*FLOATS, "bfloat16", *INTEGERS[:5], "bool"),
    "jax": (*FLOATS, "bfloat16", *INTEGERS),
    "array_api_strict": FLOATS[1:] + INTEGERS,
}
NO_ARRAY = {
    "Activation",
    "AvgPool",
    "ConvLayer",
    "Flatten",
    "MaxPool",
    "NormBracket",
    "Residual",
    "Tracked",
    "__version__",
    "classical",
}  # descriptions of layers, results, and a module whose methods are listed

# Drawn by `tests.harness.chains`, and in test_tracking and test_torch, without arrays of every make.
ELSEWHERE = {
    "NormTracker",
    "chain_bound",
    "chain_certificate",
    "chain_gram_iteration",
    "start_tracking",
    "track_norm",
}

Made = tuple[Any, np.ndarray]
"""An array of a library, and the numbers that it holds."""


# ------------------------------------------------------------------------------------- numbers


def numbers(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    """Return numbers that the type holds: of integers the extremes, of bfloat16 in float32."""
    if dtype == "bool":
        return rng.uniform(size=shape) < 0.5
    if dtype in INTEGERS:
        info = np.iinfo(dtype)
        ends = [info.min, info.max, 0, 1, info.max - 1, info.min + 1]
        drawn = rng.integers(info.min, info.max, size=shape, dtype=dtype, endpoint=True)
        chosen = np.asarray(ends, dtype=dtype)[rng.integers(len(ends), size=shape)]
        return np.where(rng.uniform(size=shape) < 0.6, chosen, drawn).astype(dtype)
    a = rng.standard_normal(shape)
    if dtype.startswith("complex"):
        a = a + 1j * rng.standard_normal(shape)
    a = a * 2.0 ** rng.integers(-4, 5)
    if dtype == "bfloat16":
        bits = np.asarray(a, dtype=np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        return bits.view(np.float32)
    return np.asarray(a, dtype=dtype)


# --------------------------------------------------------------------------- layouts of NumPy


def _reversed(rng: np.random.Generator, v: np.ndarray) -> Made:
    turn = tuple(slice(None, None, -1 if rng.uniform() < 0.7 else 1) for _ in v.shape)
    return v[turn].copy()[turn], v


def _spread(rng: np.random.Generator, v: np.ndarray) -> Made:
    """Every second or third entry of something larger."""
    steps = rng.integers(1, 4, v.ndim)
    base = np.full([n * s for n, s in zip(v.shape, steps, strict=True)], 77, dtype=v.dtype)
    inside = tuple(slice(int(rng.integers(s)), None, int(s)) for s in steps)
    base[inside] = v
    return base[inside], v


def _constant_axis(rng: np.random.Generator, v: np.ndarray) -> Made:
    axis = int(rng.integers(v.ndim))
    one = v[(slice(None),) * axis + (slice(0, 1),)].copy()
    x = np.broadcast_to(one, v.shape)
    return x, x.copy()


def _windows(rng: np.random.Generator, v: np.ndarray) -> Made:
    """Overlapping windows of one line: a Toeplitz matrix without a copy."""
    line = np.resize(v.reshape(-1), v.shape[-1] + v.shape[-2] - 1)
    x = np.lib.stride_tricks.sliding_window_view(line, v.shape[-1])
    x = np.broadcast_to(x, v.shape)
    return x, x.copy()


def _on_disk(_: np.random.Generator, v: np.ndarray) -> Made:
    with tempfile.NamedTemporaryFile() as file:
        disk = np.memmap(file.name, dtype=v.dtype, mode="w+", shape=v.shape)
        disk[...] = v
        disk.flush()
        return np.memmap(file.name, dtype=v.dtype, mode="r", shape=v.shape), v


def _field(_: np.random.Generator, v: np.ndarray) -> Made:
    record = np.zeros(v.shape, dtype=[("a", "i1"), ("w", v.dtype), ("b", "f4")])
    record["w"] = v
    return record["w"], v  # neither aligned nor dense


def _part(rng: np.random.Generator, v: np.ndarray) -> Made:
    """Real or imaginary part of a complex array."""
    if v.dtype.kind != "f" or v.dtype.itemsize < 4:
        return _reversed(rng, v)
    z = np.full(v.shape, 5 - 3j, dtype=f"complex{16 * v.dtype.itemsize}")
    which = "real" if rng.uniform() < 0.5 else "imag"
    setattr(z, which, v)
    return getattr(z, which), v


def _pairs_as_complex(rng: np.random.Generator, v: np.ndarray) -> Made:
    if v.dtype.kind != "c":
        return _part(rng, v)
    pairs = np.stack([v.real, v.imag], axis=-1)
    return pairs.view(v.dtype)[..., 0], v


def _read_only(_: np.random.Generator, v: np.ndarray) -> Made:
    x = v.copy()
    x.flags.writeable = False
    return x, v


def _permuted(rng: np.random.Generator, v: np.ndarray) -> Made:
    order = rng.permutation(v.ndim)
    return v.transpose(order).copy().transpose(np.argsort(order)), v


def _odd_address(_: np.random.Generator, v: np.ndarray) -> Made:
    raw = np.frombuffer(b"x" + v.tobytes(), dtype=np.uint8)
    return np.frombuffer(raw.data, dtype=v.dtype, offset=1).reshape(v.shape), v


NUMPY_LAYOUTS: dict[str, Callable[[np.random.Generator, np.ndarray], Made]] = {
    "plain": lambda _, v: (v.copy(), v),
    "Fortran": lambda _, v: (np.asfortranarray(v), v),
    "permuted": _permuted,
    "reversed": _reversed,
    "spread": _spread,
    "constant axis": _constant_axis,
    "windows": _windows,
    "swapped bytes": lambda _, v: (v.astype(v.dtype.newbyteorder("S")), v),
    "swapped and reversed": lambda r, v: (_reversed(r, v.astype(v.dtype.newbyteorder("S")))[0], v),
    "read only": _read_only,
    "on disk": _on_disk,
    "field": _field,
    "part": _part,
    "pairs as complex": _pairs_as_complex,
    "odd address": _odd_address,
}


# --------------------------------------------------------------------------- layouts of others


def _tensor(v: np.ndarray, dtype: str) -> Any:
    torch = soundness.open_library("torch").xp
    return torch.from_numpy(np.ascontiguousarray(v)).clone().to(getattr(torch, dtype))


def _torch_conjugate(v: np.ndarray, dtype: str) -> Any:
    x = _tensor(np.conj(v), dtype)
    return x.conj() if x.is_complex() else x


def _torch_negative(v: np.ndarray, dtype: str) -> Any:
    """Return a tensor with the flag that its entries are to be negated."""
    torch = soundness.open_library("torch").xp
    if v.dtype.kind != "f" or dtype not in ("float32", "float64"):
        return _tensor(v, dtype)
    return torch.complex(torch.zeros(v.shape, dtype=getattr(torch, dtype)), -_tensor(v, dtype)).conj().imag  # fmt: skip


def _torch_spread(v: np.ndarray, dtype: str) -> Any:
    x = _tensor(np.repeat(v, 3, axis=-1), dtype)
    x[..., 1::3] = 1
    return x[..., ::3]


def _torch_channels_last(v: np.ndarray, dtype: str) -> Any:
    torch = soundness.open_library("torch").xp
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if v.ndim == 1:
        return _tensor(v, dtype)
    if v.ndim not in formats:
        return _tensor(np.swapaxes(v, -1, -2), dtype).transpose(-1, -2)
    return _tensor(v, dtype).to(memory_format=formats[v.ndim])


def _torch_leaf(v: np.ndarray, dtype: str) -> Any:
    x = _tensor(v, dtype)
    return x.requires_grad_(x.is_floating_point() or x.is_complex())


def _torch_parameter(v: np.ndarray, dtype: str) -> Any:
    torch = soundness.open_library("torch").xp
    x = _tensor(v, dtype)
    return torch.nn.Parameter(x, requires_grad=x.is_floating_point() or x.is_complex())


def _torch_inference(v: np.ndarray, dtype: str) -> Any:
    torch = soundness.open_library("torch").xp
    with torch.inference_mode():
        return _tensor(v, dtype) + 0


TORCH_LAYOUTS: dict[str, Callable[[np.ndarray, str], Any]] = {
    "plain": _tensor,
    "transposed": lambda v, d: _tensor(np.swapaxes(v, -1, -2), d).mT if v.ndim > 1 else _tensor(v, d),
    "conjugate": _torch_conjugate,
    "conjugate transpose": lambda v, d: _torch_conjugate(np.swapaxes(v, -1, -2), d).mT if v.ndim > 1 else _tensor(v, d),
    "negative": _torch_negative,
    "spread": _torch_spread,
    "channels last": _torch_channels_last,
    "leaf": _torch_leaf,
    "inner node": lambda v, d: _torch_leaf(v, d) * 1,
    "parameter": _torch_parameter,
    "inference": _torch_inference,
    "padded": lambda v, d: _tensor(np.pad(v, 1, constant_values=1), d)[(slice(1, -1),) * v.ndim],
    "expanded": lambda v, d: _tensor(v[..., :1], d).expand(v.shape),
}  # fmt: skip
CONTEXTS = ("none", "none", "autocast", "inference mode", "no grad", "default float64", "default float16")  # fmt: skip


@contextlib.contextmanager
def torch_context(name: str) -> Iterator[None]:
    """Switch on what may change what an operation of torch does."""
    torch = soundness.open_library("torch").xp
    before = torch.get_default_dtype()
    try:
        if name.startswith("default"):
            torch.set_default_dtype(getattr(torch, name.split()[1]))
        with {
            "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
            "inference mode": torch.inference_mode,
            "no grad": torch.no_grad,
        }.get(name, contextlib.nullcontext)():
            yield
    finally:
        torch.set_default_dtype(before)


STANDARD_LAYOUTS: dict[str, Callable[[Any, Any], Any]] = {
    "plain": lambda _, x: x,
    "reversed": lambda xp, x: xp.flip(xp.flip(x)),
    "transposed": lambda xp, x: xp.matrix_transpose(xp.matrix_transpose(x)) if x.ndim > 1 else x,
    "slice": lambda xp, x: xp.concat([x, x], axis=0)[: x.shape[0], ...],
}


def layouts(library: str) -> list[str]:
    table = {"numpy": NUMPY_LAYOUTS, "torch": TORCH_LAYOUTS}.get(library, STANDARD_LAYOUTS)
    return list(table)


def made(rng: np.random.Generator, library: str, layout: str, v: np.ndarray, dtype: str) -> Made:
    """Return an array of a library in a layout, and the numbers that it holds."""
    if library == "numpy":
        return NUMPY_LAYOUTS[layout](rng, v) if v.ndim > 1 or layout != "windows" else (v, v)
    if library == "torch":
        x = TORCH_LAYOUTS[layout](v, dtype)
        return x, np.broadcast_to(v[..., :1], v.shape).copy() if layout == "expanded" else v
    xp = soundness.open_library(library).xp
    return STANDARD_LAYOUTS[layout](xp, xp.asarray(v, dtype=getattr(xp, dtype))), v


# --------------------------------------------------------------------------------------- checks


@dataclass
class Case:
    """How an array of some shape is drawn, and what has been said against it."""

    rng: np.random.Generator
    library: str
    layout: str
    dtype: str
    context: str
    wrong: list[str]
    size: tuple[int, ...] = ()

    def array(self, shape: Sequence[int], *, positive: bool = False) -> Made:
        """Draw an array, and its numbers in the longest type; real floats that are not negative if so."""
        dtype = self.dtype
        if positive and (dtype in INTEGERS or dtype.startswith("complex")):
            dtype = "float32"
        v = numbers(self.rng, shape, dtype)
        v = np.abs(v) if positive else v
        return made(self.rng, self.library, self.layout, v, dtype)

    def host(self, x: Any) -> np.ndarray:
        """Return a result of the library on the host."""
        if isinstance(x, np.ndarray | np.generic):
            return np.asarray(x)
        if self.library == "torch":
            x = x.detach().resolve_conj().resolve_neg()
            x = x.float() if x.dtype.itemsize == 2 else x
        elif "bfloat16" in str(getattr(x, "dtype", "")):
            x = x.astype("float32")
        return np.asarray(x)

    def number(self, x: Any) -> float:
        return float(self.host(x))

    def expect(self, claim: Any, what: str) -> None:
        if not claim:
            self.wrong.append(what)

    def close(self, got: Any, wanted: Any, rtol: float, what: str) -> None:
        """Compare a result of the library with numbers of the host."""
        self.near(self.host(got), wanted, rtol, what)

    def near(self, got: Any, wanted: Any, rtol: float, what: str) -> None:
        """Compare numbers of the host."""
        got, wanted = np.asarray(got), np.asarray(wanted)
        size = float(np.max(np.abs(wanted), initial=0.0))
        fits = got.shape == wanted.shape and np.allclose(got, wanted, rtol=rtol, atol=rtol * size)
        self.expect(fits, f"{what}: got {got}, wanted {wanted}")

    def sides(self, v: np.ndarray, lower: Any, upper: Any, what: str) -> None:
        """Compare bounds, None for those that there are not, with the norms of matrices."""
        stack = np.atleast_2d(v).reshape(-1, *v.shape[-2:])
        count = len(stack)
        low = np.zeros(count) if lower is None else self.host(lower).reshape(-1)
        high = np.full(count, np.inf) if upper is None else self.host(upper).reshape(-1)

        def exactly(i: int) -> oracles.Exact:
            if stack.dtype.kind in "biu":
                whole = np.asarray(stack[i].astype(object) + 0, dtype=object)
                return oracles.Exact.from_integers(whole, whole * 0, 0)
            return oracles.Exact(stack[i])

        found = oracles.check_stack(long(stack), low, high, 0.0, exactly)
        self.expect(not found.upper_violated, f"{what}: upper {high} below the norm of {v!r}")
        self.expect(not found.lower_violated, f"{what}: lower {low} above the norm of {v!r}")


def long(v: np.ndarray) -> np.ndarray:
    """Return numbers in the longest type, which holds 64-bit integers."""
    return v.astype(np.clongdouble if v.dtype.kind == "c" else np.longdouble)


def double(v: np.ndarray) -> np.ndarray:
    """Return numbers in double precision, C order, native bytes: what every function takes."""
    return np.array(v, dtype=complex if v.dtype.kind == "c" else float, order="C")


def unit(case: Case) -> float:
    """Return how far results computed by different routes may be apart."""
    return {"float64": 1e-9, "complex128": 1e-9}.get(case.dtype, 1e-4)


FEW = ((4, 3), (3, 4), (2, 4, 3))


def matrix_shape(case: Case) -> tuple[int, ...]:
    if case.library == "jax":
        return FEW[case.rng.integers(len(FEW))]
    batch = [(), (), (1,), (3,), (2, 2), (0,)][case.rng.integers(6)]
    return (*batch, *(int(i) for i in case.rng.integers(1, 8, 2)))


def kernel_shape(case: Case) -> tuple[int, ...]:
    if case.library == "jax":
        return (3, 2, 3)
    taps = [(3,), (2, 2), (3, 2), (1,), (2, 1, 2)][case.rng.integers(5)]
    return (*(int(i) for i in case.rng.integers(1, 4, 2)), *taps)


def bracket(case: Case, gn: Any) -> None:
    x, v = case.array(matrix_shape(case))
    found = gn.matrix_norm_bracket(x, vectors=bool(case.rng.uniform() < 0.3))
    case.sides(v, found.lower, found.upper, "bracket")
    case.expect(np.all(case.host(found.converged)), f"not converged: {found!r}")
    if found.left is not None and math.prod(v.shape):
        left, right = (case.host(u)[..., None] for u in (found.left, found.right))
        reached = np.conj(np.swapaxes(left, -1, -2)) @ double(v) @ right
        lower = case.host(found.lower)
        case.near(np.abs(reached[..., 0, 0]), lower, 1e-3, "vectors")


def bound(case: Case, gn: Any) -> None:
    x, v = case.array(matrix_shape(case))
    keep = bool(case.rng.uniform() < 0.3)
    upper = gn.matrix_norm_bound(x, keepdims=keep)
    case.sides(v, None, upper, "bound")
    wanted = gn.matrix_norm_bound(double(v), keepdims=keep)
    case.close(upper, wanted, 3e-4, "bound")


def fixed(case: Case, gn: Any) -> None:
    x, v = case.array(matrix_shape(case))
    steps = int(case.rng.integers(0, 4))
    values = np.linalg.svd(double(v), compute_uv=False)
    power = 2.0 ** (steps + 1)
    top = np.max(values, axis=-1, initial=0.0)
    rest = values / np.where(top > 0, top, 1)[..., None]
    wanted = top * np.sum(rest**power, axis=-1) ** (1 / power)
    case.close(gn.gram_iteration(x, steps=steps), wanted, unit(case), "gram_iteration")


def value_and_grad(case: Case, gn: Any) -> None:
    x, v = case.array(matrix_shape(case))
    steps = [None, 2][case.rng.integers(2)]
    value, gradient = gn.matrix_norm_value_and_grad(x, steps=steps)
    if steps is None:
        case.sides(v, None, value, "value")
    pairing = np.sum(np.conj(case.host(gradient)) * double(v), axis=(-2, -1)).real
    case.near(pairing, case.host(value), 2e-2, "gradient")


def rescaled(case: Case, gn: Any) -> None:
    x, v = case.array(matrix_shape(case))
    steps = int(case.rng.integers(1, 4))
    w, products = map(case.host, gn.spectral_rescaling(x, steps=steps, gram=True))
    case.sides(w, None, np.ones(w.shape[:-2]), "rescaled")
    expected, gram = gn.spectral_rescaling(double(v), steps=steps, gram=True)
    case.near(w, expected, 2e-2, "rescaled")
    case.near(products, gram, 4e-2, "Gram matrices")


def sizes(case: Case, v: np.ndarray) -> tuple[int, ...]:
    if case.library == "jax":
        return (4,) * (v.ndim - 2)
    return tuple(int(i) for i in case.rng.integers(1, 6, v.ndim - 2))


def operator(v: np.ndarray, shape: tuple[int, ...], mode: str) -> np.ndarray:
    """Return the matrix of a convolution; sums of integers stay integers."""
    exact = v.astype(object) + 0 if v.dtype.kind in "biu" else long(v)
    dense = oracles.conv_matrix(exact, shape, padding_mode=mode, padding=None)
    return dense.astype(np.longdouble) if dense.dtype == object else dense


def conv_sides(case: Case, v: np.ndarray, lower: Any, upper: Any, mode: str = "zeros") -> None:
    """Compare with the dense operator; where taps meet in an entry, up to its rounding."""
    dense = operator(v, case.size, mode)
    off = 0.0 if mode == "zeros" else 1e-17 * float(np.sum(np.abs(long(v)))) * len(dense)
    norm = float(np.max(np.linalg.svd(double(dense), compute_uv=False), initial=0.0))
    slack = norm * 1e-13 + off
    if lower is not None:
        case.expect(case.number(lower) <= norm + slack, f"lower {lower} above {norm} of {v!r}")
    if upper is not None:
        case.expect(case.number(upper) >= norm - slack, f"upper {upper} below {norm} of {v!r}")
    if mode == "zeros" and v.dtype.kind not in "biu" and dense.size:
        case.sides(dense, lower, upper, "convolution")


def conv(case: Case, gn: Any, *, name: str) -> None:
    x, v = case.array(kernel_shape(case))
    case.size = sizes(case, v)
    every = case.rng.uniform() < 0.4
    shape = None if every else case.size
    mode = "zeros" if every else str(case.rng.choice(["zeros", "circular", "replicate"]))
    options = {"padding_mode": mode}
    twin = gn.conv_norm_bracket(double(v), shape, **options)
    if float(twin.lower) <= 1e-10 * float(np.sum(np.abs(double(v)))):
        # samples meet next to nothing of the kernel, and rounding is relative to the rest: sides count
        conv_sides(case, v, None, gn.conv_norm_bound(x, shape, **options), mode)
        return
    if name == "conv_norm_bracket":
        found = gn.conv_norm_bracket(x, shape, **options)
        case.close(found.upper, twin.upper, 3e-3, name)
        case.close(found.lower, twin.lower, 3e-3, name)
        if not every:
            conv_sides(case, v, found.lower, found.upper, mode)
        if found.frequency is not None:
            theta = case.host(found.frequency).astype(float)
            norm = float(np.max(oracles.symbol_sigma(double(v), theta)))
            case.near(norm, float(twin.lower), 4e-3, "frequency")
        return
    if name == "conv_norm_bound":
        upper = gn.conv_norm_bound(x, shape, **options)
    else:
        upper, gradient = gn.conv_norm_value_and_grad(x, shape, **options)
        pairing = np.sum(np.conj(case.host(gradient)) * double(v)).real
        case.near(pairing, case.host(upper), 2e-2, "gradient")
    case.close(upper, twin.upper, 3e-3, name)
    conv_sides(case, v, None, upper, mode)


def conv_fixed(case: Case, gn: Any) -> None:
    x, v = case.array(kernel_shape(case))
    case.size = sizes(case, v)
    wanted = gn.conv_gram_iteration(double(v), case.size, steps=3)
    got = gn.conv_gram_iteration(x, case.size, steps=3)
    case.close(got, wanted, unit(case), "conv_gram_iteration")
    exact = oracles.circular_reference(double(v), case.size, [1] * len(case.size), 1, [1] * len(case.size))  # fmt: skip
    case.expect(case.number(got) >= exact * (1 - unit(case)), f"fixed steps {got} below {exact}")


def conv_rescaled(case: Case, gn: Any) -> None:
    x, v = case.array(kernel_shape(case))
    case.size = sizes(case, v)
    w = gn.conv_spectral_rescaling(x, steps=2)
    conv_sides(case, case.host(w), None, np.ones(()))
    case.close(w, gn.conv_spectral_rescaling(double(v), steps=2), 2e-2, "rescaled")


def filters(case: Case, gn: Any) -> None:
    shape = (4, 3, 2) if case.library == "jax" or case.rng.uniform() < 0.7 else (5,)
    x, v = case.array(shape)
    found = gn.fir_norm(x)
    twin = gn.fir_norm(double(v))
    case.close(found.upper, twin.upper, 3e-3, "fir_norm")
    taps = v[:, None, None] if v.ndim == 1 else v
    case.size = (5,)
    conv_sides(case, np.moveaxis(taps, 0, -1), None, found.upper)


def of_others(case: Case, gn: Any, *, name: str) -> None:
    x, v = case.array(kernel_shape(case))
    case.size = sizes(case, v)
    method = gn.classical.METHODS[name]
    few = {"iterations": 4} if "iterations" in inspect.signature(method.function).parameters else {}
    value = method.function(x, case.size, **few)
    case.close(value, method.function(double(v), case.size, **few), 1e-3, name)
    if method.side == "upper bound":
        conv_sides(case, v, None, value)
    elif method.side == "lower bound":
        conv_sides(case, v, value, None)


def of_norms(case: Case, gn: Any, *, name: str) -> None:
    if name == "block_norm_bound":
        x, v = case.array(matrix_shape(case), positive=True)
        case.sides(v, None, gn.block_norm_bound(x), name)
        return
    x, v = case.array((3, 2), positive=True)
    v = long(v)
    got, wanted = {
        "product_bound": lambda: (gn.product_bound(x, 3.0, x), 3 * v * v),
        "sum_bound": lambda: (gn.sum_bound(x, 3.0, x), 3 + v + v),
        "residual_bound": lambda: (gn.residual_bound(x), 1 + v),
        "network_bound": lambda: (gn.network_bound({"chain": ["a", "b"]}, {"a": x, "b": 2.0}), 2 * v),
    }[name]()  # fmt: skip
    case.expect(np.all(case.host(got) >= wanted * (1 - 2.0**-60)), f"{name}: {got} below {wanted}")
    case.close(got, wanted.astype(float), 1e-6, name)


def geometry(case: Case, gn: Any) -> None:
    """Apply the operator itself: kernel and input are both made."""
    x, v = case.array(kernel_shape(case))
    if case.dtype in INTEGERS or case.dtype.endswith("float16"):
        return  # sums that wrap, or are as short: no bound is promised of these
    case.size = sizes(case, v)
    signal, s = case.array((v.shape[1], *case.size))
    here = gn.ConvGeometry.of(tuple(v.shape), case.size)
    got = here.apply(x, signal)
    wanted = operator(v, case.size, "zeros") @ long(s).reshape(-1)
    case.near(case.host(got).reshape(-1), double(wanted), unit(case), "apply")
    back = case.host(here.adjoint(x, got))
    square = np.sum(np.abs(case.host(got).astype(complex)) ** 2)
    case.near(np.vdot(back, double(s)), square, 1e-3, "adjoint")


class Products:
    """An operator whose matrix is an array as it was made."""

    def __init__(self, a: np.ndarray) -> None:
        self.a, self.shape = a, a.shape

    def matvec(self, x: np.ndarray) -> np.ndarray:
        return self.a @ x

    def rmatvec(self, y: np.ndarray) -> np.ndarray:
        return np.conj(np.conj(y) @ self.a)


def from_products(case: Case, gn: Any) -> None:
    x, v = case.array(tuple(int(i) for i in case.rng.integers(1, 8, 2)))
    x, v = (x, v) if case.library == "numpy" and v.dtype.kind in "fc" else (double(v), double(v))
    value = gn.operator_norm_lower_bound(Products(x))
    norm = float(np.linalg.norm(double(v), 2))
    case.expect(value <= norm * (1 + 1e-12), f"lower {value} above {norm} of {v!r}")
    case.expect(value >= norm * 0.99, f"lower {value} far below {norm} of {v!r}")


def from_moduli(case: Case, gn: Any) -> None:
    """Bracket an operator without negative entries."""
    x, v = case.array(tuple(int(i) for i in case.rng.integers(1, 8, 2)))
    x = (
        x
        if case.library == "numpy" and v.dtype.kind == "f" and np.all(v >= 0)
        else np.abs(double(v))
    )
    found = gn.operator_norm_bracket(Products(x), nonnegative=True)
    norm = float(np.linalg.norm(double(np.abs(double(v))), 2))
    slack = 1e-5 if x.dtype.itemsize <= 4 else 1e-12  # of the operator's own products
    case.expect(found.lower <= norm * (1 + slack), f"lower {found.lower} above {norm} of {v!r}")
    case.expect(found.upper >= norm * (1 - slack), f"upper {found.upper} below {norm} of {v!r}")


def layer(case: Case, _: Any, *, name: str) -> None:
    """Layers of PyTorch whose weight is a tensor as it was made."""
    if case.library != "torch" or case.dtype in INTEGERS or case.dtype.startswith("complex"):
        return
    import gramnorm.torch as gt  # noqa: PLC0415 - after the process has set its threads

    nn = soundness.open_library("torch").xp.nn
    x, v = case.array((4, 3, 3) if case.rng.uniform() < 0.5 else (4, 3))
    module = nn.Linear(3, 4, bias=False) if v.ndim == 2 else nn.Conv1d(3, 4, 3, bias=False)
    module.weight = nn.Parameter(x.detach(), requires_grad=not x.is_inference())
    case.size = (4,)
    if name == "SpectralBound":
        w = case.host(gt.SpectralBound(module, bound=0.75)(module.weight))
        one = np.asarray([0.75])
        dense = w if v.ndim == 2 else operator(w, case.size, "zeros")
        case.sides(dense, None, one, name)
        return
    found = gt.layer_norms(module, rtol=1e-5)[""]
    if name == "lipschitz_penalty":
        logarithm = math.log(case.number(found))
        case.close(gt.lipschitz_penalty(module, rtol=1e-5), logarithm, 1e-4, name)
        return
    dense = v if v.ndim == 2 else operator(v, case.size, "zeros")
    case.sides(dense, None, found, name)


CHECKS: dict[str, Callable[[Case, Any], None]] = {
    "ConvGeometry": geometry,
    "block_norm_bound": functools.partial(of_norms, name="block_norm_bound"),
    "conv_gram_iteration": conv_fixed,
    "conv_norm_bound": functools.partial(conv, name="conv_norm_bound"),
    "conv_norm_bracket": functools.partial(conv, name="conv_norm_bracket"),
    "conv_norm_value_and_grad": functools.partial(conv, name="conv_norm_value_and_grad"),
    "conv_spectral_rescaling": conv_rescaled,
    "fir_norm": filters,
    "gram_iteration": fixed,
    "matrix_norm_bound": bound,
    "matrix_norm_bracket": bracket,
    "matrix_norm_value_and_grad": value_and_grad,
    "operator_norm_bracket": from_moduli,
    "operator_norm_lower_bound": from_products,
    "spectral_rescaling": rescaled,
    **{
        name: functools.partial(of_norms, name=name)
        for name in ("network_bound", "product_bound", "residual_bound", "sum_bound")
    },
}
LAYERS = {
    name: functools.partial(layer, name=name)
    for name in ("SpectralBound", "layer_norms", "lipschitz_penalty")
}


def checks(library: str) -> dict[str, Callable[[Case, Any], None]]:
    """Return the checks of a library: with methods of others, in torch with layers."""
    from gramnorm.classical import METHODS  # noqa: PLC0415 - after the process has set its threads

    others = {f"classical.{name}": functools.partial(of_others, name=name) for name in METHODS}
    return CHECKS | others | (LAYERS if library == "torch" else {})


# ---------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class DenseTask:
    """Some arrays of a library, each with one function."""

    seed: tuple[int, ...]
    library: str
    count: int

    def run(self) -> Report:
        import gramnorm as gn  # noqa: PLC0415 - after the process has set its threads

        report = Report()
        table = checks(self.library)
        for i in range(self.count):
            rng = np.random.default_rng((*self.seed, i))
            name = str(rng.choice(sorted(table)))
            case = drawn(rng, self.library)
            self._check(case, table[name], gn)
            report.counts[f"made {name}"].add(Count(tried=1, upper=int(bool(case.wrong))))
            report.failures += [
                f"{name} of {case.library}, {case.layout}, {case.dtype}, {case.context}, "
                f"seed {(*self.seed, i)}: {text}"
                for text in case.wrong
            ]
        soundness.forget_compilations(self.library)
        return report

    def _check(self, case: Case, check: Callable[[Case, Any], None], gn: Any) -> None:
        around = (
            torch_context(case.context) if self.library == "torch" else contextlib.nullcontext()
        )
        with warnings.catch_warnings(), around:
            warnings.simplefilter("ignore")  # of casts and of memory that may not be written to
            try:
                check(case, gn)
            except Exception as error:  # a call that raises is a finding
                case.wrong.append(f"raised {type(error).__name__}: {error}")


def drawn(rng: np.random.Generator, library: str) -> Case:
    layout, dtype = str(rng.choice(layouts(library))), str(rng.choice(TYPES[library]))
    context = str(rng.choice(CONTEXTS)) if library == "torch" else "none"
    return Case(rng, library, layout, dtype, context, [])


def dense_tasks(total: int, seed: int, present: Sequence[str]) -> Iterator[DenseTask]:
    """Yield tasks until `total` arrays are reached."""
    rng = np.random.default_rng((seed, 5))
    shares = np.asarray([SHARES[name] for name in present])
    made_so_far = 0
    for index in itertools.count():
        if made_so_far >= total:
            return
        library = str(rng.choice(present, p=shares / shares.sum()))
        count = min(BATCH, total - made_so_far)
        made_so_far += count
        yield DenseTask((seed, 6, index), library, count)

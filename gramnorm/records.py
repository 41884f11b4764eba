"""Records of norms: a claim, and what somebody else needs to prove it by other means.

A lower bound is recorded with a vector that attains it.  An upper bound U of a matrix needs no
witness, since U^2 I - A^H A is positive definite; that of a convolution at every size comes with
cells of frequencies (Theorem 10), and that of a chain with its multipliers (Theorems 29 and 30).

Nothing here has to be believed: `gramnorm.verifier`, which shares no line with the rest of the
package, proves a record again or rejects it.  Bounds are loosened so that its proofs succeed: by
2^-44 for matrices and finite operators; at every size by what finitely many cells leave.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gramnorm import _validate
from gramnorm._arrays import crossing, dtypes
from gramnorm._arrays.types import Array, HostFloats, HostInts
from gramnorm._conv.bounds import conv_norm_bracket
from gramnorm._conv.geometry import ConvGeometry
from gramnorm._conv.symbol import phases, undilated_stride
from gramnorm._matrix.bounds import matrix_norm_bound, matrix_norm_bracket
from gramnorm._rigour.fractions import float_above
from gramnorm._rigour.sums import image_quotient
from gramnorm.network._chain import coupled
from gramnorm.network._layers import Activation, AvgPool, ConvLayer, Flatten, MaxPool, Residual
from gramnorm.network._steps import listed

__all__ = ["Record", "prove_chain", "prove_conv_norm", "prove_matrix_norm", "write_records"]

Record = dict[str, Any]
"""A record, made of what JSON has; docs/records.md says of what."""

SCHEMA, VERSION = "gramnorm-records", 1

_HostArray = npt.NDArray[Any]
_DESCRIBED = (Activation, AvgPool, ConvLayer, Flatten, MaxPool, Residual)
_SLACK = 2.0**-44  # of an upper bound that is proved as it is
_CELL_SLACK = 2.0**-40  # of one that is proved by cells, whose blocks are computed here in float64
_EMBEDDED = 2**16  # bytes of an array that are stored in the record itself
_CELLS = 20_000  # with 64 channels the checker takes a quarter of an hour for as many
_POINTS = 1024  # frequencies of a circle that are proved one by one
_ENTRIES = 4 * 10**6  # of an assembled operator, beyond which the checker refuses
_BLOCKS = 2**22  # entries of blocks that are computed at once


def prove_matrix_norm(x: Array, /, *, rtol: float | None = None, name: str | None = None) -> Record:
    """Return a record of a lower and an upper bound on the norm of a matrix, to be verified.

    Parameters
    ----------
    x : array, shape (m, n)
        The matrix, not zero, with finite entries of any type; integers up to 2^53.
    rtol : float, optional
        Relative gap asked for, as in `matrix_norm_bracket`.
    name : str, optional
        What the matrix is called in a file of weights. Up to 64 KiB are stored in the record.

    Returns
    -------
    dict
        The record, for `write_records`.

    Raises
    ------
    TypeError
        If `x` is no array of numbers, or has no values.
    ValueError
        If it is no single matrix, is zero or empty, or holds NaN, inf, or integers beyond 2^53; or
        if its norm exceeds the largest float.

    See Also
    --------
    gramnorm.matrix_norm_bracket : The bounds without a record.

    Notes
    -----
    **Guarantee.** None is needed: ``gramnorm verify`` proves the bounds of the record, or rejects
    it. `upper` is that of `matrix_norm_bracket` times ``1 + 2^-44``; `lower` is what the recorded
    vector attains.

    Examples
    --------
    >>> import numpy as np
    >>> from gramnorm import records
    >>> record = records.prove_matrix_norm(np.asarray([[3.0, 0.0], [0.0, 4.0]]))
    >>> float.fromhex(record["lower"]["bound"]) <= 4 <= float.fromhex(record["upper"]["bound"])
    True
    """
    a = _provable(x, name="x")
    if a.ndim != 2:
        msg = (
            f"x must be one matrix of shape (m, n), got shape {a.shape}; record a stack one by one"
        )
        raise ValueError(msg)
    wide = _widened(a, name="x")
    found = matrix_norm_bracket(wide, rtol=rtol, vectors=True)
    operator = {"kind": "matrix", "array": _array(a, name)}
    upper = {"bound": _above(float(found.upper)), "method": "points"}
    scaled, exponent = _scaled(wide)
    lower = _attained(scaled, np.asarray(found.right), lost=0.0, exponent=exponent)
    return _record(operator, lower, upper, name)


def prove_conv_norm(
    kernel: Array,
    /,
    input_shape: int | Sequence[int] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: _validate.Padding = None,
    padding_mode: str = "zeros",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
    rtol: float | None = None,
    name: str | None = None,
) -> Record:
    """Return a record of a lower and an upper bound on the norm of a convolution, to be verified.

    Parameters
    ----------
    kernel : array, shape ``(c_out, c_in / groups, *spatial)``
        The kernel, as in `conv_norm_bracket`, not zero and finite; integers up to 2^53.
    input_shape : int or sequence of int, optional
        Samples of the input per spatial axis; by default every size at once.
    stride, padding, padding_mode, dilation, groups, transposed, output_padding : optional
        The operator, as in `conv_norm_bracket`; `padding_mode` is "zeros", or "circular" on circles
        that the stride divides, without `padding`.
    rtol : float, optional
        Relative gap asked for, 1e-3 by default.
    name : str, optional
        What the kernel is called in a file of weights. Up to 64 KiB are stored in the record.

    Returns
    -------
    dict
        The record, for `write_records`. A transposed convolution is recorded as the correlation
        whose transpose it is, which has the same norm.

    Raises
    ------
    TypeError, ValueError
        As in `conv_norm_bracket`; ValueError also where `prove_matrix_norm` has one, and for other
        paddings.

    See Also
    --------
    gramnorm.conv_norm_bracket : The bounds without a record.

    Notes
    -----
    **Guarantee.** None is needed: ``gramnorm verify`` proves the bounds of the record, or rejects
    it. *Every size*: `upper` comes from cells of frequencies that are closed here, up to 20 000,
    after which it is looser than `rtol`. *Circles* of up to 1024 outputs are recorded frequency by
    frequency, larger ones by the supremum, which is above their norm. *Zero padding* at a size is
    recorded as an assembled matrix of up to four million entries; larger ones by the supremum, with
    0 for `lower`.

    Examples
    --------
    >>> import numpy as np
    >>> from gramnorm import records
    >>> record = records.prove_conv_norm(np.asarray([[[1.0, -2.0, 1.0]]]))
    >>> float.fromhex(record["lower"]["bound"]) <= 4 <= float.fromhex(record["upper"]["bound"])
    True
    """
    a = _provable(kernel, name="kernel")
    arguments: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "padding_mode": padding_mode,
        "dilation": dilation,
        "groups": groups,
        "transposed": transposed,
        "output_padding": output_padding,
    }
    geometry = ConvGeometry.of(a.shape, input_shape, **arguments)
    _is_recorded(geometry)
    wide, gap = _widened(a, name="kernel"), _validate.tolerance(rtol, default=1e-3)
    assembled = _is_assembled(geometry, a.shape)
    asked = gap if assembled else gap / 4  # a sharp lower bound saves cells
    found = conv_norm_bracket(wide, input_shape, **arguments, rtol=asked, vectors=assembled)
    operator = {
        "kind": "correlation",
        "array": _array(a, name),
        "stride": list(geometry.stride),
        "dilation": list(geometry.dilation),
        "groups": geometry.groups,
        "domain": _domain(geometry),
    }
    if assembled:
        vector = _as_samples(found.left if transposed else found.right, geometry)
        lower = {"bound": _below(float(found.lower)), "vector": _vector(vector)}
        upper: Record = {"bound": _above(float(found.upper)), "method": "points"}
        return _record(operator, lower, upper, name)
    return _record(operator, *_by_frequencies(wide, geometry, found, gap), name)


def prove_chain(
    layers: Sequence[Array],
    multipliers: Sequence[Array] | None = None,
    /,
    *,
    rtol: float | None = None,
    time_limit: float | None = None,
    names: Sequence[str] | None = None,
) -> Record:
    """Return a record of an upper bound on the Lipschitz constant of a chain of layers.

    Parameters
    ----------
    layers : sequence of arrays
        The weights in order, as in `chain_certificate`: all matrices, or all kernels of
        convolutions without stride, dilation or groups.
    multipliers : sequence of arrays, optional
        One positive number per neuron or channel for each layer but the last; by default those
        that `chain_bound` finds.
    rtol : float, optional
        Relative gap asked for of the norm of all layers together, for convolutions; 1e-3 divided
        by their number by default.
    time_limit : float, optional
        Seconds for `chain_bound`.
    names : sequence of str, optional
        What the layers are called in a file of weights. Up to 64 KiB of each are stored in the
        record.

    Returns
    -------
    dict
        The record, for `write_records`; its `lower` is 0.

    Raises
    ------
    TypeError, ValueError
        As in `chain_certificate`; TypeError also for layers that are no arrays (`ConvLayer`,
        poolings, activations, residual blocks); ValueError also if a layer is zero or empty, or
        holds NaN or inf.

    See Also
    --------
    gramnorm.chain_certificate : The bound without a record.

    Notes
    -----
    **Guarantee.** None is needed: ``gramnorm verify`` proves the bound of the record, or rejects
    it. It is about activations with slopes in [0, 1], which the record cannot prove.

    Examples
    --------
    >>> import numpy as np
    >>> from gramnorm import records
    >>> first, last = np.asarray([[3.0, 0.0], [0.0, 1.0]]), np.asarray([[1.0, 4.0]])
    >>> record = records.prove_chain([first, last])
    >>> 5.0 <= float.fromhex(record["upper"]["bound"]) < 5.001
    True
    """
    arrays = _of_a_chain(layers)
    chain, links, found = coupled(arrays, multipliers, time_limit=time_limit)
    titles = [None] * len(arrays) if names is None else list(names)
    if len(titles) != len(arrays):
        msg = f"names must hold one name for each of {len(arrays)} layers, got {len(titles)}"
        raise ValueError(msg)
    joined = chain.segments[0].scaled(found)
    upper: Record = {"method": "points"}
    if arrays[0].ndim == 2:
        level = _loosened(float(matrix_norm_bound(joined, rtol=_SLACK)), _CELL_SLACK)
    else:
        gap = _validate.tolerance(rtol, default=1e-3 / len(arrays))
        ones = (1,) * (arrays[0].ndim - 2)
        joined = joined.reshape(*joined.shape[:2], *(joined.shape[2:] or ones))
        symbol = _Symbol.of(joined, 1, ones, ones)
        least = float(conv_norm_bracket(joined, rtol=gap / 4).lower)
        level, cells = _cells(symbol, least, rtol=gap)
        upper = {"method": "cells", "cells": cells}
    powers = [math.frexp(float(link.factor))[1] - 1 for link in links]
    scales = _without_powers(powers, chain.sizes, found)
    first, *hidden, last = scales
    ends = Fraction(float(first[0])) / Fraction(float(last[0]))
    upper |= {
        "bound": float_above(ends * 2 * (Fraction(level) / 2) ** len(arrays)).hex(),
        "level": level.hex(),
        "ends": [float(first[0]).hex(), float(last[0]).hex()],
        "multipliers": [[float(x).hex() for x in row] for row in hidden],
    }
    stored = [_array(a, title) for a, title in zip(arrays, titles, strict=True)]
    return _record({"kind": "chain", "arrays": stored}, {"bound": _below(0.0)}, upper, None)


def write_records(
    path: str | os.PathLike[str],
    records: Sequence[Record],
    /,
    *,
    left_out: Mapping[str, str] | None = None,
) -> None:
    """Write records to a file for ``gramnorm verify``.

    Parameters
    ----------
    path : str or path
        The file, JSON.
    records : sequence of dict
        One record or more.
    left_out : mapping of str to str, optional
        What has no record, and why, for readers.

    Raises
    ------
    ValueError
        If there is no record.

    Examples
    --------
    >>> import numpy as np, pathlib, tempfile
    >>> from gramnorm import records
    >>> record = records.prove_matrix_norm(np.asarray([[3.0, 0.0], [0.0, 4.0]]), name="w")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "proof.json"
    ...     records.write_records(path, [record])
    ...     '"version": 1' in path.read_text()
    True
    """
    if not records:
        msg = "records must hold one record or more, got none: there would be nothing to verify"
        raise ValueError(msg)
    document = {"schema": SCHEMA, "version": VERSION, "records": list(records)}
    if left_out:
        document["left_out"] = dict(left_out)
    Path(path).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _record(operator: Record, lower: Record, upper: Record, name: str | None) -> Record:
    title = {} if name is None else {"name": name}
    return title | {"operator": operator, "lower": lower, "upper": upper}


def _provable(x: Array, *, name: str) -> _HostArray:
    """Return the values of an array on the host that has a norm other than 0 and inf."""
    a = crossing.host_array(_validate.concrete_argument(x, name=name, instead="no record"))
    if not np.all(np.isfinite(a)):
        msg = f"{name} must be finite to have a record, got NaN or inf"
        raise ValueError(msg)
    if a.size == 0:
        msg = f"{name} must not be empty to have a record, got shape {a.shape}: its norm is 0"
        raise ValueError(msg)
    return a


def _widened(a: _HostArray, *, name: str) -> _HostArray:
    """Return the same numbers in double precision."""
    wide = a.astype(np.complex128 if dtypes.is_complex(a.dtype) else np.float64)
    if a.dtype.kind in "iu" and np.max(np.abs(wide)) > 2.0**53:
        msg = f"{name} must hold integers up to 2^53 to have a record, got {np.max(np.abs(wide))}"
        raise ValueError(msg)
    return wide


def _array(a: _HostArray, name: str | None) -> Record:
    """Return what a record says of a stored array."""
    stored = np.ascontiguousarray(a, a.dtype.newbyteorder("<"))
    data = stored.tobytes()
    digest = hashlib.sha256(data).hexdigest()
    about: Record = {"dtype": stored.dtype.str, "shape": list(a.shape), "sha256": digest}
    if name is not None:
        about["name"] = name
    if len(data) <= _EMBEDDED:
        about["values"] = base64.b64encode(data).decode()
    return about


def _vector(v: _HostArray) -> Record:
    stored = np.ascontiguousarray(v, "<c16" if np.iscomplexobj(v) else "<f8")
    return {"dtype": stored.dtype.str, "values": base64.b64encode(stored.tobytes()).decode()}


def _loosened(upper: float, slack: float) -> float:
    loose = math.nextafter(upper * (1 + slack), math.inf)
    if not math.isfinite(loose):
        msg = "the norm must not exceed the largest float to have a record"
        raise ValueError(msg)
    return loose


def _above(upper: float) -> str:
    """Return an upper bound as it is recorded."""
    return _loosened(upper, _SLACK).hex()


def _below(lower: float) -> str:
    """Return a lower bound as it is recorded."""
    return lower.hex()


def _scaled(a: _HostArray) -> tuple[_HostArray, int]:
    """Return numbers times 2^-e, the largest part of one within [1/2, 1), and e."""
    exponent = math.frexp(float(np.max([np.abs(a.real), np.abs(a.imag)])))[1]
    parts = [np.ldexp(part, -exponent) for part in (a.real, a.imag)]
    return (parts[0] + 1j * parts[1] if np.iscomplexobj(a) else parts[0]), exponent


def _attained(matrix: _HostArray, v: _HostArray, *, lost: float, exponent: int) -> Record:
    """Return the lower bound that a vector attains on ``2^exponent`` matrix, up to `lost` of it."""
    quotient = image_quotient(matrix, v[:, None], matrix @ v[:, None], copies=1)
    bound = math.ldexp(max(quotient - lost, 0.0), exponent)
    bound = math.nextafter(bound, 0.0) if bound < 2.0**-1000 else bound  # it was rounded
    return {"bound": _below(bound), "vector": _vector(v)} if bound > 0 else {"bound": _below(0.0)}


def _is_recorded(geometry: ConvGeometry) -> None:
    """Complain about operators that have no records."""
    if geometry.input_shape is not None and any(a.size * a.outputs == 0 for a in geometry.axes()):
        msg = (
            f"input_shape {geometry.input_shape} must leave outputs to have a record, got "
            f"output_shape {geometry.output_shape}: the norm is 0"
        )
        raise ValueError(msg)
    if geometry.padding_mode == "zeros":
        return
    sizes, outputs = geometry.input_shape, geometry.output_shape
    steps = (
        None
        if sizes is None or outputs is None
        else [s * m == n for s, m, n in zip(geometry.stride, outputs, sizes, strict=True)]
    )
    if geometry.padding_mode != "circular" or geometry.pads or not (steps is None or all(steps)):
        msg = (
            'records are of padding_mode "zeros", or "circular" without padding on a circle that '
            f"the stride divides, got {geometry.padding_mode!r} with padding {geometry.pads} and "
            f"stride {geometry.stride} at input_shape {sizes}"
        )
        raise ValueError(msg)


def _domain(geometry: ConvGeometry) -> Any:
    """Return where the operator acts, as a record says it."""
    if geometry.input_shape is None:
        return "every size"
    axes = geometry.axes()
    if geometry.padding_mode == "circular":
        return {"circle": [axis.size for axis in axes]}
    return {
        "size": [axis.size for axis in axes],
        "outputs": [axis.outputs for axis in axes],
        "before": [axis.before for axis in axes],
    }


def _is_assembled(geometry: ConvGeometry, shape: tuple[int, ...]) -> bool:
    """Say whether the operator is recorded as one matrix."""
    if geometry.input_shape is None or geometry.padding_mode == "circular":
        return False
    samples = math.prod(axis.size * axis.outputs for axis in geometry.axes())
    return samples * shape[0] * shape[1] <= _ENTRIES


def _as_samples(v: Array, geometry: ConvGeometry) -> _HostArray:
    """Return an input of the correlation group by group, channels within samples."""
    x = np.asarray(v)
    x = np.conj(x) if geometry.transposed else x  # the transpose, not the adjoint, was bracketed
    x = x.reshape(geometry.groups, x.shape[0] // geometry.groups, -1)
    return np.swapaxes(x, 1, 2).reshape(-1)


def _by_frequencies(
    kernel: _HostArray, geometry: ConvGeometry, found: Any, rtol: float
) -> tuple[Record, Record]:
    """Return lower and upper bound of an operator that frequencies describe."""
    groups, ones = geometry.groups, (1,) * len(geometry.stride)
    lattice = _Symbol.of(kernel, groups, undilated_stride(geometry.stride, geometry.dilation), ones)
    if geometry.input_shape is None:
        step = np.lcm(geometry.stride, geometry.dilation)
        angle = np.zeros(len(ones)) if found.frequency is None else np.asarray(found.frequency)
        turns = angle / (2 * math.pi) * step
        lower = lattice.wave(np.round(turns % 1 * 2**30).astype(np.int64), [2**30] * len(ones))
        bound, cells = _cells(lattice, float.fromhex(lower["bound"]), rtol=rtol)
        return lower, {"bound": bound.hex(), "method": "cells", "cells": cells}
    outputs = [axis.outputs for axis in geometry.axes()]
    lower = {"bound": _below(0.0)}
    if geometry.padding_mode == "circular" and found.frequency is not None:
        circle = _Symbol.of(kernel, groups, geometry.stride, geometry.dilation)
        turns = np.asarray(found.frequency) / (2 * math.pi) * np.asarray(geometry.stride)
        lower = circle.wave(np.round(turns * outputs).astype(np.int64) % outputs, outputs)
        if math.prod(outputs) <= _POINTS:
            return lower, {"bound": _above(float(found.upper)), "method": "points"}
    options: dict[str, Any] = {
        "stride": geometry.stride,
        "dilation": geometry.dilation,
        "groups": groups,
    }
    everywhere = conv_norm_bracket(kernel, **options, rtol=rtol / 4)
    bound, cells = _cells(lattice, float(everywhere.lower), rtol=rtol)
    return lower, {"bound": bound.hex(), "method": "cells", "cells": cells}


@dataclasses.dataclass(frozen=True)
class _Symbol:
    """The blocks ``F(t) = sum_q C_q exp(2 pi i q.t)`` of a correlation, phases before channels.

    Attributes
    ----------
    offsets : host ints, shape (Q, axes)
    taps : host array, shape (Q, groups, p, phases * c_in)
        The C_q times 2^-exponent.
    exponent : int
    """

    offsets: HostInts
    taps: _HostArray
    exponent: int

    @classmethod
    def of(
        cls, kernel: _HostArray, groups: int, stride: Sequence[int], dilation: Sequence[int]
    ) -> _Symbol:
        """Return that of a kernel: tap k stands at ``d k = s q + r``, and r is its phase."""
        kernel, exponent = _scaled(kernel)
        c_out, c_in, *taps = kernel.shape
        position = np.indices(taps).reshape(len(taps), -1).T * np.asarray(dilation)
        offset, phase = position // stride, position % stride
        offsets, which = np.unique(offset, axis=0, return_inverse=True)
        shape = (len(offsets), groups, c_out // groups, math.prod(stride), c_in)
        found = np.zeros(shape, dtype=kernel.dtype)
        blocks = kernel.reshape(groups, c_out // groups, c_in, -1)
        at = which.reshape(-1), np.ravel_multi_index(tuple(phase.T), tuple(stride))
        found[at[0], :, :, at[1]] = np.moveaxis(blocks, -1, 0)
        return cls(offsets, found.reshape(*shape[:3], -1), exponent)

    @property
    def spans(self) -> HostInts:
        """How far the offsets go along each axis."""
        return np.asarray(np.max(self.offsets, axis=0))

    @property
    def is_real(self) -> bool:
        """Whether blocks at opposite frequencies are conjugate."""
        return not np.iscomplexobj(self.taps)

    @property
    def size(self) -> float:
        """The sum of the Frobenius norms of the C_q, not below any norm."""
        return float(np.sum(np.sqrt(np.sum(np.abs(self.taps) ** 2, axis=(1, 2, 3)))))

    def at(self, numerators: HostInts, denominators: Sequence[int]) -> npt.NDArray[np.complex128]:
        """Return blocks, shape (frequencies, groups, p, q)."""
        waves = phases(self.offsets, numerators, np.asarray(denominators))
        return np.asarray(np.tensordot(waves, self.taps, axes=1))

    def norms(
        self, numerators: HostInts, denominators: Sequence[int], *, rtol: float
    ) -> HostFloats:
        """Return upper bounds on the computed blocks, the largest of the groups."""
        part = max(_BLOCKS // self.taps[0].size, 1)
        found = [
            np.max(matrix_norm_bound(self.at(some, denominators), rtol=rtol), axis=1)
            for some in np.split(numerators, range(part, len(numerators), part))
        ]
        return np.concatenate(found)

    def wave(self, numerators: HostInts, denominators: Sequence[int]) -> Record:
        """Return the lower bound at a frequency, or the opposite one, and what proves it."""
        best: tuple[float, Record] = (-1.0, {})
        for sign in (1, -1):
            j = sign * numerators % np.asarray(denominators)
            blocks = self.at(j[None], denominators)[0]
            lowers = np.asarray(matrix_norm_bracket(blocks, rtol=1e-12).lower)
            group = int(np.argmax(lowers))
            v = np.asarray(matrix_norm_bracket(blocks[group], rtol=1e-12, vectors=True).right)
            # the block is computed: its error is far below 2^-44 of all taps
            lost = _SLACK * self.size
            found = _attained(blocks[group], v, lost=lost, exponent=self.exponent)
            if float.fromhex(found["bound"]) > best[0]:
                whole = np.zeros((blocks.shape[0], len(v)), dtype=np.complex128)
                whole[group] = v
                turns = [f"{n}/{d}" for n, d in zip(j.tolist(), denominators, strict=True)]
                known = {"vector": _vector(whole), "frequency": turns} if "vector" in found else {}
                best = float.fromhex(found["bound"]), {"bound": found["bound"]} | known
            if self.is_real:
                break
        return best[1]


def _cells(symbol: _Symbol, lower: float, *, rtol: float) -> tuple[float, list[Any]]:
    """Return an upper bound at every frequency, and the cells that prove it (Theorem 10).

    Cells whose bound exceeds ``(1 + rtol) * lower`` are halved while there are not too many.
    """
    axes, lower = len(symbol.spans), math.ldexp(lower, -symbol.exponent)
    whole = np.asarray([2 if symbol.is_real and a == 0 else 1 for a in range(axes)])
    reach = symbol.spans / whole / 2  # w of all frequencies, by axes
    levels = np.ceil(np.log2(np.maximum(reach * 8 * axes, 1))).astype(np.int64)
    numbers = np.indices(tuple(2**levels)).reshape(axes, -1).T
    levels = np.tile(levels, (len(numbers), 1))
    bounds = _bounds(symbol, numbers, levels, whole, rtol=rtol)
    while len(bounds) <= _CELLS and np.any(is_open := bounds > (1 + rtol) * lower):
        axis = np.argmax(reach * 2.0 ** -levels[is_open], axis=1)
        if not np.all(np.take(symbol.spans, axis)):
            break  # nothing varies: the block is the same everywhere
        step = np.eye(axes, dtype=np.int64)[axis]
        halves = numbers[is_open] * (1 + step)
        added = np.concatenate([halves, halves + step])
        depth = np.tile(levels[is_open] + step, (2, 1))
        found = _bounds(symbol, added, depth, whole, rtol=rtol)
        numbers = np.concatenate([numbers[~is_open], added])
        levels = np.concatenate([levels[~is_open], depth])
        bounds = np.concatenate([bounds[~is_open], found])
    sides = 2**levels * whole
    corners = zip(numbers.tolist(), (numbers + 1).tolist(), sides.tolist(), strict=True)
    cells = [
        [[f"{a}/{n}", f"{b}/{n}"] for a, b, n in zip(*corner, strict=True)] for corner in corners
    ]
    with contextlib.suppress(OverflowError):
        return _loosened(math.ldexp(float(np.max(bounds)), symbol.exponent), _CELL_SLACK), cells
    return _loosened(math.inf, 0.0), cells


def _bounds(
    symbol: _Symbol, numbers: HostInts, levels: HostInts, whole: HostInts, *, rtol: float
) -> HostFloats:
    """Return what the cells bound: the norms at their centres over the cosines of their reach."""
    finest = int(np.max(levels)) + 1
    centres = (2 * numbers + 1) << (finest - 1 - levels)
    norms = symbol.norms(centres, [int(n) << finest for n in whole], rtol=rtol / 16)
    w = np.sum(symbol.spans / whole / 2 * 2.0**-levels, axis=1)
    # blocks are computed: their errors are far below 2^-44 of all taps
    return np.asarray((norms + _SLACK * symbol.size) / np.cos(math.pi * w))


def _of_a_chain(layers: Sequence[Array]) -> list[_HostArray]:
    """Return the layers of a chain on the host, once they are arrays of one kind."""
    given = listed(layers, "layers")
    for i, x in enumerate(given):
        if isinstance(x, _DESCRIBED):
            msg = (
                f"layer {i} must be an array to have a record, got {type(x).__name__}: the checker "
                "knows chains of matrices, and of kernels without stride, dilation or groups; "
                "prove_matrix_norm and prove_conv_norm record layers one by one"
            )
            raise TypeError(msg)
    arrays = [_provable(x, name=f"layer {i}") for i, x in enumerate(given)]
    if len({a.ndim for a in arrays}) > 1:
        msg = (
            "layers must be all matrices, or all kernels of stride 1, to have a record, got shapes "
            f"{', '.join(str(a.shape) for a in arrays)}; record the parts of the chain"
        )
        raise ValueError(msg)
    return arrays


def _without_powers(
    powers: Sequence[int], sizes: Sequence[int], multipliers: HostFloats
) -> list[HostFloats]:
    """Return multipliers of the layers as stored from those of layers over powers of two.

    ``X_i (2^-e_i W_i) / X_(i-1) = X_i' W_i / X_(i-1)'`` with ``X_i' = 2^-(e_1 + ... + e_i) X_i``.
    """
    ends = np.cumsum([0, *sizes])
    shifts = [0, *np.cumsum(powers).tolist()]
    found = [
        np.ldexp(multipliers[a:b], -shift)
        for (a, b), shift in zip(itertools.pairwise(ends.tolist()), shifts, strict=True)
    ]
    if not all(np.all(np.isfinite(x) & (x >= np.finfo(np.float64).tiny)) for x in found):
        msg = (
            "layers must not be so large or small that their multipliers are no floats; scale them"
        )
        raise ValueError(msg)
    return found

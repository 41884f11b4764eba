"""Two pictures: the brackets of all layers, and the norm of one convolution over its frequencies.

A stride s folds the frequencies of the input: an output at the frequency w reads the inputs at (w +
2 pi j) / s,

    ||A|| = sup over w of || [F((w + 2 pi j) / s)]_j || / sqrt(s),     F(theta) = sum_k K_k exp(i d k . theta),

j over the s frequencies of each axis, d the dilation.  The picture shows this norm on a grid of w,
computed without an account of rounding: it is to be looked at.  The bounds in its title are the
certified ones.
"""

import io
import itertools
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gramnorm import _validate
from gramnorm._rigour.decimals import decimal_text
from gramnorm._rigour.fractions import product_above
from gramnorm.report import Row, limits
from gramnorm.report.files.contents import Layer, ReadError, printable
from gramnorm.report.table import MissingPackageError, Report

_LOWER, _GAP, _PRODUCT, _PEAK = "#3b6ea5", "#e0812c", "#444444", "#d01c2a"


def require_plots(*paths: str | None) -> None:
    """Raise what would come after the work: matplotlib missing, or a path for no picture.

    Parameters
    ----------
    *paths : str or None
        Files to be written; None for none.
    """
    wanted = [Path(path).resolve() for path in paths if path is not None]
    for path in wanted:
        if path.suffix.lower() != ".png":
            msg = f"a plot is a PNG file, got the name {path.name!r}: end it in .png"
            raise ReadError(msg)
        if not path.parent.is_dir() or (path.exists() and not path.is_file()):
            msg = f"cannot write {str(path)!r}: no such folder, or not a regular file"
            raise ReadError(msg)
    if wanted:
        try:
            import matplotlib.figure  # noqa: F401, PLC0415
        except ImportError as error:
            msg = f"plots need the package matplotlib: {_validate.install('plot')}"
            raise MissingPackageError(msg) from error


def draw_bars(report: Report, path: str) -> None:
    """Write a picture of all brackets, and of the product of the upper bounds as it grows.

    Parameters
    ----------
    report : Report
        The report.
    path : str
        The PNG file.
    """
    rows = report.rows
    product = report.product_upper
    columns = 1 if product is None else 2
    figure, (bars, *chain) = _figure(9.0, min(1.6 + 0.27 * len(rows), 600.0), columns=columns)
    _draw_brackets(bars, rows)
    if report.network is not None:
        known = report.network.upper
        text = "unknown" if known is None else decimal_text(known, up=True)
        what = f"constant of the network: {text}"
    elif product is None:
        what = f"no product of the upper bounds, because of {_short('; '.join(report.against), 80)}"
    else:
        _draw_products(chain[0], rows)
        what = f"product of the upper bounds: {decimal_text(product, up=True)}"
    title = f"{_short(report.source, 80)}\n{what}"
    figure.suptitle(title, fontsize=10, parse_math=False)
    _write(figure, path)


def _draw_brackets(axes: Any, rows: Sequence[Row]) -> None:
    """Draw a bar to the lower bound and another from there to the upper one, per layer."""
    known = {
        y: r
        for y, r in enumerate(rows)
        if r.error is None and limits.LEAST_DRAWN < r.upper < limits.MOST_DRAWN
    }
    lower = [r.lower or 0.0 for r in known.values()]
    sizes = [
        size for size in (*lower, *(r.upper for r in known.values())) if size > limits.LEAST_DRAWN
    ]
    left, top = (min(sizes) / 2, max(sizes)) if sizes else (0.5, 1.0)
    _logarithmic(axes, left, right=top)  # the numbers stand beyond, outside of the frame
    axes.spines[["top", "right"]].set_visible(False)  # which would cross them
    lowers = np.asarray([max(size, left) for size in lower])
    gaps = np.asarray([r.upper for r in known.values()]) - lowers
    to_lower = {"left": left, "color": _LOWER, "label": "up to the lower bound"}
    to_upper = {"left": lowers, "color": _GAP, "label": "from the lower to the upper bound"}
    axes.barh(list(known), lowers - left, height=0.62, **to_lower)
    axes.barh(list(known), gaps, height=0.62, **to_upper)
    for y, row in enumerate(rows):
        text = "no bound" if row.error is not None else _bounds_text(row, digits=4)
        at = (row.upper if y in known else left, y)
        axes.annotate(text, at, xytext=(4, 0), textcoords="offset points", va="center", fontsize=7)
    names = [_short(row.name, limits.LABEL) for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("norm of the layer", fontsize=8)
    axes.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)


def _bounds_text(row: Row, *, digits: int) -> str:
    """Return the bounds of a layer in words."""
    high = decimal_text(row.upper, up=True, digits=digits)
    if row.lower is None:
        return f"at most {high}"
    low = decimal_text(row.lower, up=False, digits=digits)
    return low if low == high else f"{low} to {high}"


def _logarithmic(axes: Any, left: float, right: float) -> None:
    """Make the horizontal axis logarithmic, with a few plain numbers on it."""
    from matplotlib import ticker  # noqa: PLC0415

    axes.set_xscale("log")
    axes.set_xlim(left, right)
    parts = (1.0, 2.0, 5.0) if right / left < 1e3 else (1.0,)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=parts, numticks=7))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_products(axes: Any, rows: Sequence[Row]) -> None:
    """Draw the product of the upper bounds of each layer and those before it."""
    uppers = [row.upper for row in rows]
    products = [product_above(uppers[: y + 1]) for y in range(len(rows))]
    drawn = [(p, y) for y, p in enumerate(products) if limits.LEAST_DRAWN < p < limits.MOST_DRAWN]
    if drawn:
        low, high = min(drawn)[0], max(drawn)[0]
        margin = 2 * (high / low) ** 0.03
        _logarithmic(axes, low / margin, high * margin)
        axes.plot(*zip(*drawn, strict=True), "o-", color=_PRODUCT, markersize=3, linewidth=1)
    else:
        axes.set_xticks([])
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("product of the upper bounds so far", fontsize=8)


def symbol_norms(layer: Layer, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """
    Return the norm of a convolution at frequencies of its output, on a grid, uncertified.

    Parameters
    ----------
    layer : Layer
        A convolution with any stride, dilation and groups, transposed or not.
    count : int
        Points per axis, from -pi to pi inclusive.

    Returns
    -------
    array, shape ``(count, ...)``
        Norms; for a transposed convolution by the frequency of its input.
    """
    kernel = np.asarray(layer.weight, np.result_type(layer.weight.dtype, np.float64))
    scale = float(np.max(np.abs(kernel), initial=0.0)) or 1.0
    spatial = kernel.shape[2:]
    geometry = layer.geometry or {}
    groups = geometry.get("groups", layer.groups)
    stride, dilation = (_per_axis(geometry.get(k, 1), spatial) for k in ("stride", "dilation"))
    taps = (kernel / scale).reshape(groups, -1, *kernel.shape[1:2], math.prod(spatial))
    taps = np.moveaxis(taps, -1, 0)
    flat = taps.reshape(len(taps), -1)
    offsets = np.stack(np.unravel_index(np.arange(len(taps)), spatial), axis=-1) * dilation
    lines = [np.linspace(-math.pi, math.pi, count)] * len(spatial)
    points = np.stack([g.reshape(-1) for g in np.meshgrid(*lines, indexing="ij")], axis=-1)
    folds = np.asarray(list(itertools.product(*map(range, stride))))
    at_once = max(limits.CHUNK // (flat.shape[1] * len(folds)), 1)
    norms = []
    for start in range(0, len(points), at_once):
        theta = (points[start : start + at_once, None, :] + 2 * math.pi * folds) / stride
        values = np.exp(1j * (theta @ offsets.T)) @ flat  # (points, folds, groups c_out c_in)
        blocks = values.reshape(*values.shape[:2], *taps.shape[1:])
        blocks = np.moveaxis(blocks, 1, -1).reshape(
            -1, *taps.shape[1:3], taps.shape[3] * len(folds)
        )
        norms.append(_norms(blocks).reshape(-1, groups).max(axis=1))
    norm = scale / math.sqrt(len(folds)) * np.concatenate(norms)
    return np.asarray(norm.reshape((count,) * len(spatial)))


def _norms(blocks: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return norms of matrices as roots of eigenvalues of their smaller Gram matrices."""
    if blocks.shape[-2] > blocks.shape[-1]:
        blocks = blocks.swapaxes(-2, -1)
    gram = blocks @ blocks.conj().swapaxes(-2, -1)
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[..., -1], 0.0))


def _per_axis(value: Any, spatial: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.broadcast_to(np.asarray(value, dtype=np.int64), (len(spatial),))


def draw_symbol(layer: Layer, row: Row, size: str, path: str) -> None:
    """
    Write a picture of the norm over the frequencies of one convolution.

    Parameters
    ----------
    layer : Layer
        A convolution with one or two spatial axes.
    row : Row
        Its bounds.
    size : str
        Where they hold, in words.
    path : str
        The PNG file.
    """
    if row.error is not None or not math.isfinite(row.upper):
        msg = f"{layer.name!r} has no finite bound, hence no picture: {row.error or row.upper}"
        raise ReadError(msg)
    count = _points_per_axis(layer)
    norms = symbol_norms(layer, count)
    figure, (axes,) = _figure(6.4, 4.0 if norms.ndim == 1 else 6.2, columns=1)
    _draw_norms(figure, axes, norms)
    bounds = f"norm ≤ {decimal_text(row.upper, up=True)}"
    if row.lower is not None:
        bounds = f"{decimal_text(row.lower, up=False)} ≤ {bounds}"
    grid = " x ".join(map(str, norms.shape))
    use = "read with stride 1, " if row.assumed else ""
    picture = f"the picture: {use}a grid of {grid}, not certified"
    title = f"{_short(layer.name, 60)}\ncertified {size}: {bounds}\n{picture}"
    figure.suptitle(title, fontsize=9, parse_math=False)
    _write(figure, path)


def _draw_norms(figure: Any, axes: Any, norms: np.ndarray[Any, Any]) -> None:
    """Draw norms over frequencies on one axis or two, with a cross at the largest."""
    count = len(norms)
    line = np.linspace(-math.pi, math.pi, count)
    peak = np.unravel_index(int(np.argmax(norms)), norms.shape)
    where = ", ".join(f"{line[i]:.3f}" for i in peak)
    label = f"largest here: {norms[peak]:.4g} at ({where})"
    mark = {"linestyle": "none", "markersize": 9, "color": _PEAK, "label": label}
    if norms.ndim == 1:
        axes.plot(line, norms, color=_LOWER, linewidth=1.2)
        axes.plot(line[peak[0]], norms[peak], "x", **mark)
        axes.set_ylabel("norm", fontsize=8)
        axes.set_ylim(0.0, 1.1 * norms[peak] or 1.0)
        axes.set_xlabel("frequency, radians per output sample", fontsize=8)
    else:
        edge = math.pi * count / (count - 1)  # the outer points in the middle of their pixels
        extent = (-edge, edge, -edge, edge)
        image = axes.imshow(norms, origin="lower", extent=extent, cmap="viridis")
        axes.plot(line[peak[1]], line[peak[0]], "x", markeredgewidth=2, **mark)
        axes.set_xlabel("frequency along the second axis, radians per output sample", fontsize=8)
        axes.set_ylabel("along the first axis", fontsize=8)
        figure.colorbar(image, ax=axes, shrink=0.82).ax.tick_params(labelsize=7)
    quarters, names = np.linspace(-math.pi, math.pi, 5), ["-π", "-π/2", "0", "π/2", "π"]
    for axis in [axes.xaxis, axes.yaxis][: norms.ndim]:
        axis.set_ticks(quarters, names)
    axes.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)


def require_symbol(layers: Sequence[Layer]) -> None:
    """
    Raise ReadError unless one convolution is chosen that can be drawn.

    Parameters
    ----------
    layers : sequence of Layer
        The chosen layers.
    """
    names = ", ".join(layer.name for layer in layers)
    if len(layers) != 1 or layers[0].kind != "conv":
        msg = f"--plot-symbol draws one convolution: choose it with --include, got {names}"
        raise ReadError(msg)
    if layers[0].weight.ndim > 4:
        msg = (
            f"--plot-symbol draws one or two spatial axes, {names} has {layers[0].weight.ndim - 2}"
        )
        raise ReadError(msg)


def _points_per_axis(layer: Layer) -> int:
    """Return how fine a grid the work allows, an odd number of points."""
    weight = layer.weight
    axes = weight.ndim - 2
    groups = (layer.geometry or {}).get("groups", layer.groups)
    stride = _per_axis((layer.geometry or {}).get("stride", 1), weight.shape[2:])
    folds = math.prod(stride.tolist())
    small, large = sorted((weight.shape[0] // groups, weight.shape[1] * folds))
    cost = groups * small * large * (8 * small + math.prod(weight.shape[2:]))
    if (
        folds > limits.MOST_FOLDS
        or cost * limits.FEWEST_POINTS**axes > limits.PATIENCE * limits.WORK
    ):
        msg = f"{layer.name!r} is too large to draw, of shape {weight.shape} and stride {tuple(stride.tolist())}"
        raise ReadError(msg)
    fits = int((limits.WORK / max(cost, 1)) ** (1 / axes))
    return max(min(fits, limits.FINEST[axes]) // 2 * 2 + 1, limits.FEWEST_POINTS)


def _figure(width: float, height: float, *, columns: int) -> tuple[Any, Sequence[Any]]:
    """Return a figure that needs no display, and its axes side by side."""
    from matplotlib import rc_context, rcParamsDefault  # noqa: PLC0415
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with rc_context(rcParamsDefault):  # the same picture for everybody
        figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        ratios = (2, 1)[:columns]
        axes = figure.subplots(1, columns, squeeze=False, width_ratios=ratios)[0]
    for one in axes:
        one.tick_params(labelsize=7)
    return figure, list(axes)


def _short(text: str, most: int) -> str:
    """Return text for a label: without control characters, its middle left out if it is long."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"


def _write(figure: Any, path: str) -> None:
    """Write the whole picture or nothing."""
    stream = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of letters that the font has not
        figure.savefig(stream, format="png", metadata={"Software": None})
    target = Path(path).resolve()
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(stream.getvalue())
        unfinished.replace(target)
    except OSError as error:
        msg = f"cannot write {str(target)!r}: {error.strerror}"
        raise ReadError(msg) from error
    finally:
        unfinished.unlink(missing_ok=True)

"""The shipped network: it loads, it is usable, and its brackets hold against an independent oracle."""

import importlib.resources
import itertools
import json

import numpy as np
import pytest

import gramnorm as gn
from gramnorm.report import bound_layer
from gramnorm.report.files.contents import Layer
from gramnorm.report.files.readers import read_path

pytestmark = pytest.mark.no_backend

FILE = importlib.resources.files("gramnorm") / "data" / "digits.npz"
GRID = 97  # odd and prime: it has no point in common with the grids of powers of two of a search
LAYERS = ["conv1.weight", "conv2.weight", "conv3.weight", "conv4.weight", "dense1.weight"]
LAYERS += ["dense2.weight"]
CONVOLUTIONS = LAYERS[:4]


@pytest.fixture(scope="module")
def layers() -> dict[str, Layer]:
    with importlib.resources.as_file(FILE) as path:
        return {layer.name: layer for layer in read_path(path).layers}


def blocks(layer: Layer) -> np.ndarray:
    """Return the kernel in float64 as (groups, c_out / groups, c_in / groups, *spatial)."""
    weight = layer.weight.astype(np.float64)
    groups = (layer.geometry or {})["groups"]
    return weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])


def grid_norm(layer: Layer, n: int) -> float:
    """Return the largest norm of the symbol over an n x n grid, summed tap by tap."""
    kernel = blocks(layer)
    angle = np.exp(2j * np.pi * np.arange(n) / n)
    powers = [angle[:, None] ** np.arange(k) for k in kernel.shape[-2:]]
    symbol = sum(
        kernel[..., i, j] * (powers[0][:, i, None] * powers[1][None, :, j])[..., None, None, None]
        for i, j in itertools.product(*map(range, kernel.shape[-2:]))
    )
    return float(np.linalg.svd(symbol, compute_uv=False).max())


def zero_padded_norm(layer: Layer) -> float:
    """Return the norm of the layer as it is used: the matrix of a "same" convolution of one image."""
    kernel = blocks(layer)
    height, width = (layer.geometry or {})["input_shape"]
    rows, columns = kernel.shape[-2:]
    norms = []
    for block in kernel:
        c_out, c_in = block.shape[:2]
        matrix = np.zeros((c_out, height, width, c_in, height, width))
        for y, x, i, j in itertools.product(*map(range, (height, width, rows, columns))):
            v, u = y + i - rows // 2, x + j - columns // 2
            if 0 <= v < height and 0 <= u < width:
                matrix[:, y, x, :, v, u] = block[:, :, i, j]
        matrix = matrix.reshape(c_out * height * width, -1)
        norms.append(np.sqrt(np.linalg.eigvalsh(matrix.T @ matrix)[-1]))
    return float(max(norms))


def test_file_is_small_float32_and_says_what_its_layers_are(layers: dict[str, Layer]) -> None:
    assert list(layers) == LAYERS
    assert len(FILE.read_bytes()) < 200_000
    for layer in layers.values():
        assert layer.weight.dtype == np.float32
        assert np.all(np.isfinite(layer.weight))
        assert layer.geometry is not None
        assert layer.geometry["kind"] == layer.kind
    with importlib.resources.as_file(FILE) as path, np.load(path, allow_pickle=False) as arrays:
        assert set(json.loads(str(arrays["__layers__"]))) == set(LAYERS)
        for name, layer in layers.items():
            np.testing.assert_array_equal(arrays[name], layer.weight)
            assert arrays[name.replace("weight", "bias")].shape == layer.weight.shape[:1]


def test_kinds_cover_what_a_report_tells_apart(layers: dict[str, Layer]) -> None:
    kinds = [bound_layer(layer, rtol=0.5).kind for layer in layers.values()]
    assert kinds == ["conv2d", "conv2d, depthwise", "conv2d", "conv2d, 4 groups", "dense", "dense"]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_size_bracket_contains_the_supremum(layers: dict[str, Layer], name: str) -> None:
    layer = layers[name]
    row = bound_layer(layer)
    on_grid = grid_norm(layer, GRID)
    # Between grid points the norm is higher by at most 1 / cos(sum of half-widths): cos bound.
    reach = sum((k - 1) / 2 for k in layer.weight.shape[2:]) * np.pi / GRID
    assert row.converged
    assert on_grid <= row.upper * (1 + 1e-12)
    assert row.lower <= on_grid / np.cos(reach)
    assert row.upper <= 1.001 * row.lower * (1 + 1e-6)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("n", [3, 4, 8, 11])
def test_circular_bracket_contains_the_dense_norm(
    layers: dict[str, Layer], name: str, n: int
) -> None:
    row = bound_layer(layers[name], input_shape=(n,), padding_mode="circular")
    exact = grid_norm(layers[name], n)
    assert row.lower <= exact * (1 + 1e-12)
    assert exact <= row.upper * (1 + 1e-12)
    assert row.upper - row.lower <= 1.001e-3 * row.lower


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_bracket_at_the_size_of_the_file_contains_the_dense_norm(
    layers: dict[str, Layer], name: str
) -> None:
    row = bound_layer(layers[name], input_shape="file")
    exact = zero_padded_norm(layers[name])
    assert row.lower <= exact * (1 + 1e-12)
    assert exact <= row.upper * (1 + 1e-12)


@pytest.mark.parametrize("name", LAYERS[4:])
def test_dense_bracket_contains_the_dense_norm(layers: dict[str, Layer], name: str) -> None:
    row = bound_layer(layers[name])
    exact = float(np.linalg.norm(layers[name].weight.astype(np.float64), 2))
    assert row.converged
    assert row.lower <= exact * (1 + 1e-12)
    assert exact <= row.upper * (1 + 1e-12)


def test_report_and_library_give_the_same_bits(layers: dict[str, Layer]) -> None:
    layer = layers["conv4.weight"]
    bracket = gn.conv_norm_bracket(layer.weight, groups=4)
    row = bound_layer(layer)
    assert (row.lower, row.upper) == (float(bracket.lower), float(bracket.upper))

"""What others compute: the published iteration and the exact norm on a grid, and packages through their own functions.

The published Gram iteration is arXiv:2305.16173 as one would write it: a Fourier transform of the kernel, six Gram
steps for every frequency of the image, and the largest result.
"""

import contextlib
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gramnorm as gn
from benchmarks.devices import AbsentError

STEPS = 6


def full_grid(kernel: Any, n: int, xp: Any) -> Any:
    """Return the symbol at all frequencies of a circular image of n samples per axis."""
    spatial = kernel.ndim - 2
    axes = tuple(range(2, kernel.ndim))
    symbol = xp.fft.rfftn(kernel, s=(n,) * spatial, axes=axes)
    return xp.permute_dims(symbol, (*axes, 0, 1))


def published_gram_iteration(kernel: Any, n: int, xp: Any) -> float:
    """Return the bound for a circular convolution on an n x n image."""
    return float(gram_norm(full_grid(kernel, n, xp), xp))


def gram_norm(matrices: Any, xp: Any) -> Any:
    """Return the bound for the largest of the norms of matrices, which a library may differentiate."""
    g = matrices.mT if matrices.shape[-2] < matrices.shape[-1] else matrices
    norm = xp.linalg.matrix_norm(g)
    log_scale = xp.zeros_like(norm)
    for _ in range(STEPS):
        g = g / norm[..., None, None]
        log_scale = 2 * (log_scale + xp.log(norm))
        g = xp.conj(g.mT) @ g
        norm = xp.linalg.matrix_norm(g)
    return xp.exp(xp.max((xp.log(norm) + log_scale) / 2**STEPS))


def exact_svd(kernel: Any, n: int, xp: Any) -> float:
    """Return the norm of a circular convolution on an n x n image, up to rounding."""
    return float(xp.max(xp.linalg.svdvals(full_grid(kernel, n, xp))))


def torch_layer(kernel: Any, n: int | None, stride: int = 1, groups: int = 1) -> Any:
    """Return a convolution layer of PyTorch with zero padding, or with circular padding."""
    torch = library("torch")
    if kernel.ndim != 4:
        msg = "takes two spatial axes only"
        raise NotImplementedError(msg)
    layer = torch.nn.Conv2d(
        kernel.shape[1] * groups,
        kernel.shape[0],
        kernel.shape[2:],
        stride=stride,
        padding=kernel.shape[2] // 2,
        groups=groups,
        bias=False,
        padding_mode="zeros" if n is None else "circular",
    )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernel))
    return layer


def torch_spectral_norm(kernel: Any, **options: Any) -> Callable[[], float]:
    """Return ``torch.nn.utils.parametrizations.spectral_norm``: by what it divides the weight of a layer."""
    layer = torch_layer(kernel, None, **options)
    norm = library("torch").nn.utils.parametrizations.spectral_norm

    def call() -> float:
        weight = layer.weight.detach()
        normalised = norm(layer, n_power_iterations=10).weight.detach()
        library("torch").nn.utils.parametrize.remove_parametrizations(
            layer, "weight", leave_parametrized=False
        )
        return float(weight.norm() / normalised.norm())

    return call


def torchlip(kernel: Any, stride: int = 1, groups: int = 1) -> Callable[[], float]:
    """Return the norm by which deel-torchlip divides the kernel of a convolution, without the size of an image."""
    normalizers = library("deel.torchlip.normalizers", "deel-torchlip")
    coefficient = library("deel.torchlip.utils.lconv_norm", "deel-torchlip").compute_lconv_coef
    weight = torch_layer(kernel, None, stride, groups).weight.detach().flatten(1)
    torch, strides = library("torch"), (stride, stride)

    def call() -> float:
        torch.manual_seed(0)
        sigma = normalizers.spectral_normalization(weight)[2]
        return float(sigma) / float(coefficient(kernel.shape[2:], strides=strides))

    return call


def orthogonium(kernel: Any, n: int | None = None, **options: Any) -> Callable[[], float]:
    """Return what orthogonium finds for a layer with zero padding, or with circular padding on n x n."""
    values = library("orthogonium.layers.conv.singular_values", "orthogonium")
    layer = torch_layer(kernel, n, **options)
    return lambda: float(values.get_conv_sv(layer, 3, return_stab_rank=False, imsize=n))


def arpack(kernel: Any, n: int, tol: float = 1e-3, **options: Any) -> Callable[[], float]:
    """Return SciPy's largest singular value of the operator of one size, with zero padding.

    ARPACK approaches it from below, and has to be given the products: those of `ConvGeometry`.
    """
    linalg = library("scipy.sparse.linalg", "scipy")
    geometry = gn.ConvGeometry.of(kernel.shape, (n,) * (kernel.ndim - 2), **options)
    inputs = (kernel.shape[1] * geometry.groups, *geometry.input_shape)
    outputs = (kernel.shape[0], *geometry.output_shape)
    operator = linalg.LinearOperator(
        shape=(math.prod(outputs), math.prod(inputs)),
        dtype=kernel.dtype,
        matvec=lambda x: geometry.apply(kernel, x.reshape(inputs)).ravel(),
        rmatvec=lambda y: geometry.adjoint(kernel, y.reshape(outputs)).ravel(),
    )

    def call() -> float:
        found = linalg.svds(
            operator, k=1, tol=tol, return_singular_vectors=False, rng=0, maxiter=10**5
        )
        return float(found[0])

    return call


def norm_on_all_frequencies(kernel: Any, stride: int = 1, groups: int = 1) -> float:
    """Return the norm for every size from below: singular values on a fine grid, then a climb by Nelder and Mead.

    With a stride the samples of one residue are a channel of their own, and the kernel is that of
    the channels.
    """
    optimize = library("scipy.optimize", "scipy")
    axes, blocks = kernel.ndim - 2, kernel.reshape(groups, -1, *kernel.shape[1:])
    best = 0.0
    for block in blocks:
        taps = block
        for axis in range(2, block.ndim):
            k = -(-taps.shape[axis] // stride) * stride
            room = [(0, k - taps.shape[axis]) if a == axis else (0, 0) for a in range(taps.ndim)]
            padded = np.pad(taps, room)
            slices = [
                padded.take(range(r, k, stride), axis) for r in range(stride)
            ]  # residues become channels
            taps = np.concatenate(slices, 1)
        k = max(taps.shape[2:])
        n = max(32, 8 * k)
        norms = np.linalg.norm(full_grid(taps, n, np), 2, axis=(-2, -1))
        offsets = np.stack(np.meshgrid(*map(np.arange, taps.shape[2:]), indexing="ij"))

        def value(angle: Any, taps: Any = taps, offsets: Any = offsets) -> float:
            waves = np.exp(1j * np.tensordot(angle, offsets, 1))
            return -float(np.linalg.norm(np.tensordot(taps, waves, axes), 2))

        for start in np.argsort(norms, axis=None)[-3:]:
            angle = -2 * math.pi * np.asarray(np.unravel_index(start, norms.shape)) / n
            options = {"xatol": 1e-9, "fatol": 1e-13}
            best = max(
                best, -optimize.minimize(value, angle, method="Nelder-Mead", options=options).fun
            )
    return best


def lipsdp_neuron(weights: Sequence[Any]) -> float:
    """Return the optimum of LipSDP-Neuron (arXiv:1906.04893) as Clarabel finds it, to its tolerance.

    The least c with ``diag(c, 2 t_1, ..., 2 t_{l-1}, c) - M - M^T`` positive semidefinite, where M has the blocks
    ``diag(t_i) W_i`` below the diagonal, and W_l the last of them.
    """
    cvxpy = library("cvxpy")
    library("clarabel")
    sizes = [*(w.shape[1] for w in weights), weights[-1].shape[0]]
    level = cvxpy.Variable(nonneg=True)
    multipliers = [cvxpy.Variable(n, nonneg=True) for n in sizes[1:-1]]
    scaled = [cvxpy.diag(t) @ w for t, w in zip(multipliers, weights, strict=False)]
    blocks = [[np.zeros((m, n)) for n in sizes] for m in sizes]
    for i, block in enumerate([*scaled, weights[-1]]):
        blocks[i + 1][i] = block
    below = cvxpy.bmat(blocks)
    first, last = (level * np.ones(n) for n in (sizes[0], sizes[-1]))
    diagonal = cvxpy.diag(cvxpy.hstack([first, *(2 * t for t in multipliers), last]))
    problem = cvxpy.Problem(cvxpy.Minimize(level), [diagonal - below - below.T >> 0])
    return float(problem.solve(solver="CLARABEL"))


def eclipse(weights: Sequence[Any], way: str) -> float:
    """Return an estimate of eclipse-nn for a network of dense layers in double precision."""
    torch = library("torch")
    estimator = library("eclipse_nn", "eclipse-nn").LipConstEstimator
    modules = []
    for w in weights:
        layer = torch.nn.Linear(w.shape[1], w.shape[0], dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(w))
        modules += [layer, torch.nn.ReLU()]
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it does
        return float(estimator(model=torch.nn.Sequential(*modules[:-1])).estimate(way))


def library(name: str, package: str | None = None) -> Any:
    """Import a module of an optional package."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        msg = f"{package or name} is absent"
        raise AbsentError(msg) from error

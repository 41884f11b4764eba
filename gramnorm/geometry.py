"""What a convolution is: kernel reach, dilation, groups, padding and the sizes it maps."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from gramnorm._typing import HostInts


@dataclasses.dataclass(frozen=True)
class ConvGeometry:
    """The geometry of a convolution of stride 1.

    The operator maps an input x of shape (c_in, *input_shape) to

        y[o] = sum_k  K[k] x[o + dilation * k - lo],

    with x zero outside the input (padding "zeros") or periodic ("circular").

    Attributes
    ----------
    kernel_size, dilation : tuple of int
        Taps and spacing of the taps per spatial axis.
    groups : int
        Number of independent blocks of channels.
    input_shape : tuple of int or None
        Samples per spatial axis; None for every size at once.
    circular : bool
        Whether the input is periodic.
    pads : tuple of (lo, hi), or None
        Zero padding per axis; None for every amount at once.
    """

    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    input_shape: tuple[int, ...] | None
    circular: bool
    pads: tuple[tuple[int, int], ...] | None

    @property
    def offsets(self) -> HostInts:
        """Positions of the taps before dilation, shape (taps, axes), in the order of the kernel."""
        grid = itertools.product(*(range(k) for k in self.kernel_size))
        return np.asarray(list(grid), dtype=np.int64).reshape(-1, len(self.kernel_size))

    @property
    def span(self) -> tuple[int, ...]:
        """Distance between the first and the last tap per axis."""
        return span(self.kernel_size, self.dilation)

    def output_shape(self) -> tuple[int, ...]:
        """Return the samples per axis of the output, at a given input size with zero padding."""
        assert self.input_shape is not None
        assert self.pads is not None
        sizes = zip(self.input_shape, self.pads, self.span, strict=True)
        return tuple(max(n + lo + hi - reach, 0) for n, (lo, hi), reach in sizes)


def span(kernel_size: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Return the distance between the first and the last tap of a dilated kernel per axis."""
    return tuple(d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True))

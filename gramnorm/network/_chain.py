"""One constant of a chain of layers: what activations that never grow faster than their input save.

An activation with slopes in [0, 1] acts on a difference of two inputs as a diagonal matrix with
entries in [0, 1]. So the Lipschitz constant of a chain is at most the supremum over such D of
``||W_l D_{l-1} ... D_1 W_1||``, and for every choice of positive multipliers Theorem 27 bounds that
by one norm. Good multipliers are found by descent and never trusted: the norm at the end proves.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

import numpy as np

from gramnorm import _validate
from gramnorm._arrays import crossing, dtypes
from gramnorm._arrays.types import Array, HostFloats
from gramnorm._conv.bounds import conv_norm_bound
from gramnorm._matrix.bounds import matrix_norm_bound
from gramnorm._rigour.fractions import product_above
from gramnorm.network._coupling import LARGEST, Coupling
from gramnorm.network._minimise import lbfgs

_INSTEAD = "the layers outside of jit"
_END_STEPS = 5, 12, 18  # Gram steps of the stages: two unknowns cost few of them
_STEPS = 3, 5, 7, 9, 12, 15, 18
_STAGE_ITERATIONS = 100
_STAGE_RTOL = 1e-9


def chain_certificate(layers, multipliers):
    weights = _layers(layers)
    vectors = _multipliers(multipliers, weights)
    norms = [_norm(w) for w in weights]
    known = product_above(norms)
    if known == 0 or not math.isfinite(max(norms)):
        return known
    chain = Coupling.of(weights, norms)
    return chain.certificate(_with_ends(chain, vectors))


def _with_ends(chain, vectors):
    logs = chain.logs(vectors)
    return logs


def chain_bound(layers, *, time_limit=None, max_iterations=None, return_multipliers=False):
    pass

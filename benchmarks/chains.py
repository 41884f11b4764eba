"""Whole networks: the product of their layers' norms, semidefinite bounds of others, and ours, certified.

Public networks with published bounds, whose weights lie beside the repository or not at all; and random ones: those of
ECLipsE (Xu and Sivaranjani 2024), whose authors publish the seeds, and Gaussian ones.  What may still be gained is
known from below: the largest norm of a Jacobian that a climb through patterns of activity finds.  Some biases attain
it, though not necessarily the network's own, and no bound that looks at weights and slopes alone can be smaller.
"""

import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import gramnorm as gn
from benchmarks.devices import AbsentError, Device, require_numpy
from benchmarks.kernels import WEIGHTS
from benchmarks.rivals import eclipse, lipsdp_neuron
from benchmarks.tables import Table
from benchmarks.timing import aim
from gramnorm.network import _chain, _multipliers
from gramnorm.network._coupling import Chain
from gramnorm.network._search import Limits, Search

PATIENCE, FIRST_PATIENCE = 60.0, 10.0
"""Seconds that one search may take, and the descent alone, if nothing else is said."""

IMAGE = 16
"""Samples per axis where patterns of activity of convolutions are looked for."""

STARTS, ROUNDS = 8, 60
"""Climbs through patterns, and the steps of each."""

Map = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""A linear map and its adjoint."""


@dataclass(frozen=True)
class Net:
    """A chain as the package takes it, its layers as maps, and what is known of it."""

    name: str
    layers: Sequence[Any]
    maps: Sequence[Map]
    input_shape: tuple[int, ...]
    size: int | None = None
    published: float = math.nan
    prototype: float = math.nan
    goal: float = math.nan
    first_goal: float = math.nan
    first_patience: float = FIRST_PATIENCE

    @property
    def product(self) -> float:
        """The product of the certified norms of the layers and poolings."""
        return float(_chain._checked(self.layers, 1, None).product)

    def bound(self, effort: str) -> float:
        """Return our bound, at the size that is given."""
        options = {"effort": effort, "time_limit": PATIENCE}
        return float(gn.chain_bound(self.layers, input_shape=self.size, **options))

    def first_order(self) -> float:
        """Return what the descent alone finds, from the product of norms."""
        checked = _chain._checked(self.layers, 1, self.size)
        found = checked.links() if self.size is None else checked.unrolled()
        assert found is not None
        chain = Chain.of(found)
        limits = Limits(math.inf, time.monotonic(), self.first_patience, None)
        start = _multipliers._layer_by_layer(chain)
        search = Search(chain, checked.product, start, limits)
        _multipliers.descend(search, work=math.inf)
        return search.bound

    def largest_jacobian(self) -> float:
        """Return the largest norm of a Jacobian that was found."""
        rng = np.random.default_rng(0)
        return max(climbed(self.maps, self.input_shape, rng) for _ in range(STARTS))


def climbed(maps: Sequence[Map], shape: tuple[int, ...], rng: np.random.Generator) -> float:
    """Return the norm of a Jacobian to which a climb through patterns leads.

    For unit vectors x and y the best pattern of one layer for y^T J x, all else given, is known
    entry by entry; then y and x are those of the power iteration. None of it lowers the value.
    """
    x, patterns, value = rng.standard_normal(shape), [], 0.0
    x /= np.linalg.norm(x)
    for _ in range(ROUNDS):
        v, before = x, []
        for i, (forward, _) in enumerate(maps[:-1]):
            before.append(forward(v))
            v = before[-1] * patterns[i] if patterns else before[-1]
        y = maps[-1][0](v)
        value = float(np.linalg.norm(y))
        if not value:
            return 0.0
        b, chosen = y / value, []
        for u, (_, adjoint) in zip(reversed(before), reversed(maps[1:]), strict=True):
            b = adjoint(b)
            chosen.append(b * u > 0)
            b = b * chosen[-1]
        x, patterns = maps[0][1](b), chosen[::-1]
        x /= np.linalg.norm(x)
    return value


def of_matrix(w: Any) -> Map:
    """Return a matrix as a map."""
    return (lambda x: w @ x), (lambda y: w.T @ y)


def of_kernel(kernel: Any, shape: tuple[int, ...], padding: Any) -> Map:
    """Return a correlation on signals of that shape as a map."""
    geometry = gn.ConvGeometry.of(kernel.shape, shape, padding=padding)
    return (lambda x: geometry.apply(kernel, x)), (lambda y: geometry.adjoint(kernel, y))


def after(first: Map, second: Map) -> Map:
    """Return one map after another."""
    return (lambda x: second[0](first[0](x))), (lambda y: first[1](second[1](y)))


AVERAGE: Map = (
    lambda x: (x[..., ::2] + x[..., 1::2]) / 2,
    lambda y: np.repeat(y, 2, axis=-1) / 2,
)
"""Of pairs of samples."""


def flattened(channels: int) -> Map:
    """Return the flattening of a signal with the channels of a sample together."""
    return (lambda x: x.T.ravel()), (lambda y: y.reshape(-1, channels).T)


def dense(name: str, weights: Sequence[Any], **known: Any) -> Net:
    """Return a network of matrices."""
    return Net(name, weights, [of_matrix(w) for w in weights], weights[0].shape[1:], **known)


def convolutions(name: str, kernels: Sequence[Any], **known: Any) -> Net:
    """Return a network of convolutions of stride 1 that keep the size of the image."""
    size = (IMAGE,) * (kernels[0].ndim - 2)
    maps = [of_kernel(k, size, "same") for k in kernels]
    return Net(name, kernels, maps, (kernels[0].shape[1], *size), **known)


def of_ecg(name: str, weights: Sequence[Any], **known: Any) -> Net:
    """Return a network for 128 samples: two causal convolutions with averages, two matrices."""
    first, second, hidden, last = weights
    front, size = [(2, 0)], 128
    layers = [
        gn.ConvLayer(first, padding=front),
        gn.AvgPool(2),
        gn.ConvLayer(second, padding=front),
        gn.AvgPool(2),
        gn.Flatten(size // 4, channels_last=True),
        hidden,
        last,
    ]
    maps = [
        of_kernel(first, (size,), front),
        after(AVERAGE, of_kernel(second, (size // 2,), front)),
        after(after(AVERAGE, flattened(len(second))), of_matrix(hidden)),
        of_matrix(last),
    ]
    return Net(name, layers, maps, (first.shape[1], size), size=size, **known)


GOALS = {
    "lipsdp_random_weights": 36.4825,
    "fnn3_seed0": 9.7286139 * (1 + 1e-6),
    "fnn3_seed1": 9.7917863 * (1 + 1e-6),
    "mnist_c8_d16": 1240.0,
    "mnist_c16_d8": 62.5,
}
"""Those that are not a multiple of the prototype's value."""

OVER_PROTOTYPE = {"ecg": 1.005, "mnist": 1.003}
WITHOUT_GOAL = ("lipsdp_mnist_weights", "mnist_c16_d16", "mnist_c32")
LONG = {"mnist_c8_d8": 15.0, "mnist_c16_d4": 15.0, "mnist_c16_d8": 60.0}
SHORT = dict.fromkeys(("ecg", "mnist_c16_d16"), 5.0)


def public() -> Iterator[Net]:
    """Yield the public networks, if their weights lie beside the repository."""
    if not (WEIGHTS / "networks.npz").exists():
        return
    records = json.loads((WEIGHTS / "networks.json").read_text("utf-8"))["networks"]
    with np.load(WEIGHTS / "networks.npz") as stored:
        for record in records:
            name, prototype = record["name"], record["prototype_certified"]
            weights = [stored[key].astype(np.float64) for key in record["layers"]]
            kind = name.partition("_")[0]
            make = {"mnist": convolutions, "ecg": of_ecg}.get(kind, dense)
            goal = GOALS.get(name, prototype * OVER_PROTOTYPE.get(kind, math.nan))
            depth = len(weights)
            yield make(
                name,
                weights,
                published=next(iter(record["published"].values())),
                prototype=prototype,
                goal=math.nan if name.startswith(WITHOUT_GOAL) else goal,
                first_goal=1.01 if make is dense else 1.03 if depth <= 8 else math.nan,
                first_patience=(LONG | SHORT).get(kind if kind == "ecg" else name, FIRST_PATIENCE),
            )


def of_eclipse(layers: int, width: int, **known: Any) -> Net:
    """Return a random network as those of ECLipsE are made, from 4 inputs to 1 output."""
    rng = np.random.RandomState(7 * width + 13 * layers)  # the generator of theirs
    weights = []
    for m, n in itertools.pairwise([4, *[width] * (layers - 1), 1]):
        norm = rng.uniform(0.4, 1.8)
        x = rng.randn(n, m)
        weights.append(norm * x / np.linalg.norm(x, 2))
    return dense(f"ECLipsE, {layers} layers of {width}", weights, **known)


def gaussian(name: str, sizes: Sequence[int], **known: Any) -> Net:
    """Return a network of Gaussian matrices with variance 1 / inputs."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((n, m)) / math.sqrt(m) for m, n in itertools.pairwise(sizes)]
    return dense(f"Gaussian {name}", weights, **known)


def random() -> Iterator[Net]:
    """Yield the random networks; prototypes are known by their ratios to the product."""
    for layers, width, ratio, first in (
        (2, 80, 0.3717, 1.01),
        (5, 20, 0.1452, 1.01),
        (5, 60, 0.1480, 1.01),
        (5, 100, 0.1469, 1.01),
        (10, 20, 0.02834, math.nan),
        (20, 40, 5.24e-4, math.nan),
    ):
        net = of_eclipse(layers, width)
        prototype = ratio * net.product
        goal = 1.05 * prototype if layers == 20 else math.nan
        known = {"prototype": prototype, "goal": goal, "first_goal": first}
        yield of_eclipse(layers, width, **known)
    yield gaussian("784-100-100-10", (784, 100, 100, 10), first_goal=1.01)
    yield gaussian("6 x (64 x 64)", (64,) * 7, first_goal=1.01)
    yield gaussian("6 x (100 x 100)", (100,) * 7, first_goal=1.01)


def network_sdp(device: Device) -> Iterator[Table]:
    """Bound networks as a whole, and find Jacobians of them; compare efforts, and other programs."""
    require_numpy(device, "multipliers are searched for on the host")
    nets = list(public())
    title = "Public networks: the constant of all layers together, certified"
    notes = [
        (
            "published: LipSDP-Neuron for lipsdp_random, LipSDP-Network (which is no bound in general) for "
            "lipsdp_mnist, GLipSDP for fnn3 and mnist, the layer-wise program of arXiv:2211.15253 for ecg; "
            "all to a solver's tolerance. prototype: the least certified value known before. The goal is of "
            f"ours, first order: the descent alone. Jacobian: the largest found, of images of {IMAGE} x {IMAGE} "
            "for mnist."
        )
    ]
    if not nets:
        notes = ["absent: no weights beside the repository"]
    found = {net.name: _row(net) for net in nets}
    yield Table("network_sdp", title, list(found.values()), notes)
    others = list(random())
    notes = [
        (
            "ECLipsE: drawn as its authors do, seed 7 width + 13 layers, 4 inputs, 1 output; the prototype's "
            "ratios to the product are for these. Gaussian: variance 1 / inputs, seed 0."
        )
    ]
    title = "Random networks"
    drawn = {net.name: _row(net) for net in others}
    yield Table("network_sdp_random", title, list(drawn.values()), notes)
    found, by_name = found | drawn, {net.name: net for net in (*nets, *others)}
    known = [name for name in EFFORTS if name in found]
    rows = [row for name in known for row in _efforts(by_name[name], found[name])]
    yield Table("network_sdp_efforts", "What each effort finds, and the seconds it takes", rows)
    known = [name for name in PEERS if name in found]
    rows = [row for name in known for row in _peers(by_name[name], found[name])]
    title = "Other programs on dense networks, through their own functions"
    notes = [
        (
            "LipSDP-Neuron as cvxpy states it, solved by Clarabel; ECLipsE and ECLipsE-Fast of eclipse-nn. None "
            "of the values is certified; where the last layer has one output, ECLipsE falls back to its fast form."
        )
    ]
    yield Table("network_sdp_peers", title, rows, notes)


EFFORTS = (
    *("lipsdp_random_weights", "mnist_c8_d2", "mnist_c8_d4", "mnist_c8_d8"),
    *("ECLipsE, 20 layers of 40", "Gaussian 6 x (100 x 100)"),
)
PEERS = (
    *("lipsdp_random_weights", "fnn3_seed0"),
    *("ECLipsE, 5 layers of 20", "ECLipsE, 20 layers of 40"),
)
SMALL = [np.ones((2, 2)), np.eye(2)]
LARGEST = 200
"""Inputs, neurons and outputs up to which Clarabel ends within seconds."""


def _timed(call: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    value = call()
    return value, time.perf_counter() - start


def _row(net: Net) -> dict[str, Any]:
    """Return the bounds of a network."""
    print(f"network_sdp: {net.name}", file=sys.stderr, flush=True)
    ours, seconds = _timed(lambda: net.bound("standard"))
    first, of_first = _timed(net.first_order)
    lower = net.largest_jacobian()
    reached = aim(ours, net.goal) if not math.isnan(net.goal) else {"goal": math.nan, "met": "-"}
    followed = not math.isnan(net.first_goal)
    first_reached = "-" if not followed else "yes" if first <= net.first_goal * ours else "NO"
    return {
        "network": net.name,
        "product": net.product,
        **({} if math.isnan(net.published) else {"published": net.published}),
        "prototype": net.prototype,
        "ours": ours,
        "[s]": seconds,
        "ours / product": ours / net.product,
        **({} if math.isnan(net.published) else {"ours / published": ours / net.published}),
        "ours / prototype": ours / net.prototype,
        **reached,
        "first order / ours": first / ours,
        "first order [s]": of_first,
        "first order met": first_reached,
        "Jacobian": lower,
        "ours / Jacobian": ours / lower,
    }


def _efforts(net: Net, standard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what each effort finds."""
    print(f"network_sdp: {net.name}, fast", file=sys.stderr, flush=True)
    fast = _timed(lambda: net.bound("fast"))
    for effort, (value, seconds) in {
        "fast": fast,
        "standard": (standard["ours"], standard["[s]"]),
    }.items():
        cells = {"network": net.name, "effort": effort, "ours": value, "[s]": seconds}
        yield cells | {"ours / product": value / standard["product"]}


def _peers(net: Net, ours: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what other programs find."""
    yield _peer("gramnorm", ours["ours"], ours["[s]"], ours)
    ways = {
        "LipSDP-Neuron, Clarabel": lipsdp_neuron,
        "ECLipsE": lambda weights: eclipse(weights, "ECLipsE"),
        "ECLipsE-Fast": lambda weights: eclipse(weights, "ECLipsE_Fast"),
    }
    if sum(w.shape[0] for w in net.layers) > LARGEST:
        del ways["LipSDP-Neuron, Clarabel"]
    for way, function in ways.items():
        print(f"network_sdp: {net.name}, {way}", file=sys.stderr, flush=True)
        try:
            function(SMALL)  # imports
            value, seconds = _timed(lambda function=function: function(net.layers))
        except AbsentError as error:
            yield _peer(f"{way}: {error}", math.nan, math.nan, ours)
        else:
            yield _peer(way, value, seconds, ours)


def _peer(way: str, value: float, seconds: float, ours: dict[str, Any]) -> dict[str, Any]:
    cells = {"network": ours["network"], "program": way, "value": value}
    below = "yes" if value < ours["Jacobian"] else "no"
    return cells | {"value / ours": value / ours["ours"], "below a Jacobian": below, "[s]": seconds}

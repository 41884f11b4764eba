"""What a bound on every layer costs in a training step, and how far a followed norm is from the norm.

A step is a forward and a backward pass in float32 on one thread.  Its seconds are those of the processor, so that a
busy machine counts less.  The published regulariser adds the logarithms of norms from six Gram steps to the loss: of
the weight of a dense layer, of the symbol at all frequencies of the image for a convolution.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import gramnorm as gn
from benchmarks.devices import AbsentError, Device
from benchmarks.rivals import full_grid, gram_norm, library
from benchmarks.tables import Table
from benchmarks.timing import Timing, aim, alone, race

EVERY = 100
"""Steps between two searches."""

WARM = 40
"""Steps after which a norm is followed as cheaply as from then on."""

PATIENCE = 6.0

Penalty = Callable[[], Any]


class Processor(Device):
    """Seconds of the processor instead of those on the clock."""

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        """Return the processor seconds of one call, over so many of them."""
        start = time.process_time()
        for _ in range(repeats):
            call()
        return (time.process_time() - start) / repeats


def mlp(dense: Callable[..., Any], _: object) -> Any:
    """Return four dense layers of 1024 x 1024."""
    return _chain(dense(1024, 1024) for _ in range(4))


def cnn(_: object, conv: Callable[..., Any]) -> Any:
    """Return four convolutions of 64 x 64 x 3 x 3."""
    return _chain(conv(64, 64, 3, padding=1) for _ in range(4))


def digits_net(dense: Callable[..., Any], conv: Callable[..., Any]) -> Any:
    """Return the network of `examples/regularised_training.py`."""
    convolutions = [
        conv(1, 16, 3, padding=1),
        *(conv(c, 32, 3, stride=2, padding=1) for c in (16, 32)),
    ]
    return _chain([*convolutions, library("torch").nn.Flatten(), dense(128, 10)])


def _chain(layers: Any) -> Any:
    nn = library("torch").nn
    every: list[Any] = []
    for layer in layers:
        every += [layer, nn.ReLU()]
    return nn.Sequential(*every[:-1])


INPUTS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "MLP 4 x (1024 x 1024), batch 128": (mlp, (128, 1024)),
    "CNN 4 x (64 x 64 x 3 x 3), 32 x 32, batch 32": (cnn, (32, 64, 32, 32)),
}
GOALS = {
    "followed, between searches": (1.5, 1.1),
    f"followed, a search every {EVERY} steps": (1.5, 1.1),
    "SpectralBound, divide": (6.0, 1.7),
    "SpectralBound, rescale": (20.0, 2.0),
    "lipschitz_penalty": (6.0, 1.7),
}


def _bounded(model: Any, **options: Any) -> Any:
    """Put a `SpectralBound` on every layer."""
    bounds, register = library("gramnorm.torch"), library("torch.nn.utils.parametrize")
    for layer in _weighted(model):
        register.register_parametrization(layer, "weight", bounds.SpectralBound(layer, **options))
    return model


def _normalised(model: Any) -> Any:
    norm = library("torch.nn.utils.parametrizations").spectral_norm
    for layer in _weighted(model):
        norm(layer)
    return model


def _weighted(model: Any) -> list[Any]:
    return [layer for layer in model if hasattr(layer, "weight")]


def _published(model: Any, shape: tuple[int, ...]) -> Any:
    torch, xp = library("torch"), library("array_api_compat.torch")

    def log_norm(weight: Any) -> Any:
        symbol = weight if weight.ndim == 2 else full_grid(weight, shape[-1], xp)
        return torch.log(gram_norm(symbol, xp))

    return sum(log_norm(layer.weight) for layer in _weighted(model))


def _step(model: Any, x: Any, penalty: Penalty | None = None) -> Callable[[], None]:
    """Return a forward and a backward pass, as they are after the first steps of training."""

    def step(x: Any = x) -> None:
        loss = model(x).square().mean()
        if penalty is not None:
            loss = loss + 1e-3 * penalty()
        model.zero_grad()
        loss.backward()

    return step


def _ways(make: Callable[..., Any], shape: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    """Yield names, and steps of training or why there is none."""
    torch, own = library("torch"), library("gramnorm.torch")
    x = torch.randn(shape)
    plain = partial(make, torch.nn.Linear, torch.nn.Conv2d)
    yield "torch spectral_norm", _step(_normalised(plain()), x)
    model = plain()
    yield "published regulariser", _step(model, x, partial(_published, model, shape))
    try:
        layers = library("orthogonium.layers", "orthogonium")
        conv = partial(layers.AdaptiveOrthoConv2d, padding_mode="zeros")
        yield "orthogonium, orthogonal layers", _step(make(layers.OrthoLinear, conv), x)
    except AbsentError as error:
        yield "orthogonium, orthogonal layers", str(error)
    for name in list(GOALS)[:2]:
        yield name, _started(_step(_bounded(plain(), certify_every=10**9), x), x)
    yield "SpectralBound, divide", _step(_bounded(plain()), x)
    yield "SpectralBound, rescale", _step(_bounded(plain(), method="rescale"), x)
    model = plain()
    yield "lipschitz_penalty", _step(model, x, partial(own.lipschitz_penalty, model))
    model, tracker = plain(), own.NormTracker(certify_every=10**9)
    follow = partial(own.lipschitz_penalty, model, tracker=tracker)
    yield "lipschitz_penalty, followed, between searches", _started(_step(model, x, follow), x)


def _started(step: Callable[..., None], x: Any) -> Callable[..., None]:
    """Return a step after some of them, at first of more products with what is followed."""
    for _ in range(WARM):
        step(x[:1])
    return step


def training_steps(_: Device) -> Iterator[Table]:
    """Time a training step with a bound on every layer against one without."""
    torch = library("torch")
    torch.set_num_threads(1)
    clock, rows = Processor(), []
    for column, (network, (make, shape)) in enumerate(INPUTS.items()):
        torch.manual_seed(0)
        plain = _step(make(torch.nn.Linear, torch.nn.Conv2d), torch.randn(shape))
        for name, step in _ways(make, shape):
            case = {"network": network, "way": name}
            if isinstance(step, str):
                rows.append(case | {"step [ms]": step})
                continue
            timing = race(step, plain, clock, PATIENCE)
            if "a search" in name:
                timing = _with_searches(timing, make, shape, clock)
            cells = {"step [ms]": 1e3 * timing.ours, "plain [ms]": 1e3 * timing.theirs}
            cells |= {"ratio": timing.ratio, "quartiles": list(timing.quartiles)}
            goals = GOALS.get(name)
            rows.append(case | cells | (aim(timing.ratio, goals[column]) if goals else {}))
    notes = [
        "Processor seconds of forward and backward pass, one thread, pairs in turn with the plain step.",
        "Certified in every step: divide, rescale, lipschitz_penalty. Followed: certified after eval() only.",
    ]
    yield Table("training_steps", "A training step, over the step without a bound", rows, notes)


def _with_searches(
    timing: Timing, make: Callable[..., Any], shape: tuple[int, ...], clock: Device
) -> Timing:
    """Return what steps take on the average if one in `EVERY` of them searches."""
    torch = library("torch")
    model = _bounded(make(torch.nn.Linear, torch.nn.Conv2d), certify_every=1)
    more = (alone(_step(model, torch.randn(shape)), clock) - timing.ours) / EVERY
    low, high = (q + more / timing.theirs for q in timing.quartiles)
    return Timing(timing.ours + more, timing.theirs, (low, high), timing.pairs)


FOLLOWED: dict[str, tuple[Callable[..., Any], tuple[int, ...], int, int]] = {
    "the example on digits, batch 64": (digits_net, (64, 1, 8, 8), 500, 10),
    "MLP 4 x (1024 x 1024), batch 128": (mlp, (128, 1024), 100, 10),
    "CNN 4 x (64 x 64 x 3 x 3), 8 x 8, batch 32": (cnn, (32, 64, 8, 8), 100, 10),
}
"""Networks, what they get, the steps, and after how many of them norms are compared."""

FIRST = 10
"""Steps that are compared one by one."""


def followed_norms(_: Device) -> Iterator[Table]:
    """Compare followed norms with norms in every step of Adam."""
    library("torch").set_num_threads(1)
    rows = []
    for network, (make, shape, steps, apart) in FOLLOWED.items():
        for rate in (1e-3, 1e-2):
            print(f"followed norms: {network}, {rate}", file=sys.stderr, flush=True)
            misses = sorted(followed_training(make, shape, rate, steps, apart))
            cells = {"learning rate": rate, "steps": steps, "norms": len(misses)}
            cells |= {"median [%]": 100 * statistics.median(misses), "most [%]": 100 * misses[-1]}
            share = sum(miss > 0.01 for miss in misses) / len(misses)
            rows.append({"network": network} | cells | {"above 1 % [%]": 100 * share})
    notes = [
        f"By how much weights exceed the bound in training, a search every {EVERY} steps.",
        "The norm is that of an SVD for a matrix, a certified lower bound within 1e-3 for a kernel.",
    ]
    yield Table("followed_norms", "Followed norms: what they miss of the norm", rows, notes)


def followed_training(
    make: Callable[..., Any], shape: tuple[int, ...], rate: float, steps: int, apart: int
) -> Iterator[float]:
    """Train with Adam; yield by how much the norms of weights exceed their bound, relative to it."""
    torch, parametrize = library("torch"), library("torch.nn.utils.parametrize")
    torch.manual_seed(0)
    model = _bounded(make(torch.nn.Linear, torch.nn.Conv2d), certify_every=EVERY)
    batches = _batches(shape)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(steps):
        x, labels = next(batches)
        with parametrize.cached():
            loss = torch.nn.functional.cross_entropy(10 * model(x).flatten(1)[:, :10], labels)
            weights = [layer.weight.detach().numpy() for layer in _weighted(model)]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % apart == 0 or step < FIRST:
            strides = [getattr(layer, "stride", 1) for layer in _weighted(model)]
            yield from (max(_norm(w, s) - 1, 0.0) for w, s in zip(weights, strides, strict=True))


def _norm(weight: Any, stride: Any) -> float:
    if weight.ndim == 2:
        return float(np.linalg.norm(weight, 2))
    return float(gn.conv_norm_bracket(weight, stride=stride, rtol=1e-3).lower)


def _batches(shape: tuple[int, ...]) -> Iterator[tuple[Any, Any]]:
    """Yield images and labels: digits, or noise about one of ten images."""
    torch = library("torch")
    if shape[1:] == (1, 8, 8):
        images, labels = library("sklearn.datasets", "scikit-learn").load_digits(return_X_y=True)
        images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        while True:
            chosen = torch.randint(len(labels), shape[:1])
            yield images[chosen], torch.tensor(labels)[chosen]
    centres = torch.randn(10, *shape[1:])
    while True:
        labels = torch.randint(10, shape[:1])
        yield centres[labels] + torch.randn(shape), labels

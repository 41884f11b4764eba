"""Every method on every family of kernels: how far its value is from the norm, on which side, and what it costs.

The norm that values are divided by comes from elsewhere: for every size from singular values on a fine grid and a
climb from the best of them, at one size from ARPACK to 1e-8, both in float64.  Both approach the norm
from below, so a value below them is proved to be below the norm.  It counts as below from `BELOW` on, which is
more than a rounding of a float32; by a rounding or two a value may be either.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gramnorm as gn
from benchmarks import rivals
from benchmarks.devices import AbsentError, Device
from benchmarks.kernels import FAMILIES, Family, trained_layers
from benchmarks.tables import Cells, Table
from benchmarks.timing import alone, race
from gramnorm import classical

BELOW = 1e-6
"""Relative distance from which on a value is said to be below the norm."""

LONGEST = 5.0
"""Seconds beyond which a method is not run again to be timed."""

SHOWN_TRAINED = ("mtcnn_pnet_conv3", "mtcnn_onet_conv3")

Call = Callable[[], Any]
Calls = dict[str, tuple[str, Call | None]]


PEERS: dict[str, tuple[str, Callable[..., Call]]] = {
    "torch spectral_norm": ("the weight as a matrix", rivals.torch_spectral_norm),
    "deel-torchlip": ("estimate", rivals.torchlip),
    "orthogonium, zeros": ("upper bound", rivals.orthogonium),
}


def families() -> dict[str, Family]:
    """Return the families, and some trained layers if they are here."""
    trained = {
        f"trained, {name}": family
        for name, family in trained_layers().items()
        if name.split()[0] in SHOWN_TRAINED
    }
    return trained | FAMILIES


def every_size(kernel: Any, options: dict[str, Any], host: Any) -> Calls:
    """Return what states a norm for every size: by name the side, and a call."""
    calls: Calls = {
        "gramnorm, upper": ("upper bound", lambda: gn.conv_norm_bound(kernel, **options)),
        "gramnorm, lower": ("lower bound", lambda: gn.conv_norm_bracket(kernel, **options).lower),
    }
    for name, method in classical.METHODS.items():
        if method.operator == "every size":
            calls[name] = (method.side, partial(method.function, kernel, **options))
    for name, (side, prepare) in PEERS.items():
        calls[name] = _prepared(side, partial(prepare, host, **options))
    return calls


def _prepared(side: str, prepare: Callable[[], Call]) -> tuple[str, Call | None]:
    """Return the side and the call of a peer, or why it has none."""
    try:
        return side, prepare()
    except (NotImplementedError, AbsentError) as error:
        return str(error), None


def one_size(kernel: Any, n: int, options: dict[str, Any], host: Any) -> Calls:
    """Return what states a norm at one size, of zero padding or of what passes for it."""
    shape = (n,) * (kernel.ndim - 2)
    calls: Calls = {
        "gramnorm, upper": ("upper bound", lambda: gn.conv_norm_bound(kernel, shape, **options)),
        "gramnorm, lower": (
            "lower bound",
            lambda: gn.conv_norm_bracket(kernel, shape, **options).lower,
        ),
        "power_iteration_lower_bound": (
            "lower bound",
            partial(classical.power_iteration_lower_bound, kernel, shape, **options),
        ),
        "circular_exact_norm": (
            "of the circle",
            partial(classical.circular_exact_norm, kernel, shape, **options),
        ),
        "Gram iteration, 6 steps": (
            "of the circle, upper bound",
            partial(gn.conv_gram_iteration, kernel, shape, steps=6, **options),
        ),
        "scipy svds, tol 1e-3": ("lower bound", rivals.arpack(host, n, **options)),
    }
    if "stride" not in options:
        prepare = partial(rivals.orthogonium, host, n, **options)
        calls["orthogonium, circular"] = _prepared("of the circle", prepare)
    return calls


def methods(device: Device) -> Iterator[Table]:
    """Compare all methods on all families, for every size and for zero padding at small sizes."""
    everywhere: list[Cells] = []
    at_sizes: list[Cells] = []
    for family_name, family in families().items():
        print(f"methods: {family_name}", file=sys.stderr, flush=True)
        host = family.make()
        kernel, exact = device.asarray(host), host.astype("float64")
        options = {name: _scalar(value) for name, value in family.options.items()}
        options = {name: value for name, value in options.items() if value != 1}
        norm = rivals.norm_on_all_frequencies(exact, **options)
        ours = partial(gn.conv_norm_bound, kernel, **options)
        known: dict[str, Cells] = {}
        for name, (side, call) in every_size(kernel, options, host).items():
            known[name] = {"method": name, "side": side} | _judged(call, norm, device)
            if call is not None and known[name]["ms"] < 1e3 * LONGEST:
                timing = race(call, ours, device, 1.0)
                cost = {"ms": 1e3 * timing.ours, "time / ours": timing.ratio}
                known[name] |= cost
                if name not in PEERS:  # theirs is PyTorch's memory, which nobody counts
                    known[name]["peak [MiB]"] = device.peak(call) / 2**20
            elif call is not None:
                known[name]["time / ours"] = known[name]["ms"] / 1e3 / alone(ours, device)
        everywhere += [{"family": family_name} | cells for cells in known.values()]
        for n in family.sizes:
            norm = rivals.arpack(exact, n, tol=1e-8, **options)()
            rows = [
                {"method": name, "side": known[name]["side"]} | _against(known[name], norm)
                for name in ("norm2toep_upper_bound", "fantastic_four_upper_bound", *PEERS)
            ]
            for name, (side, call) in one_size(kernel, n, options, host).items():
                rows.append({"method": name, "side": side} | _judged(call, norm, device))
            at_sizes += [{"family": family_name, "n": n} | cells for cells in rows]
    title = "Methods, every size: value over the norm, and time over that of gramnorm's upper bound"
    yield Table("methods", title, everywhere)
    title = "Methods, zero padding at a size: value over the norm of that operator"
    yield Table("methods_zero_padding", title, at_sizes)


def _judged(call: Call | None, norm: float, device: Device) -> Cells:
    """Return the value of a call beside the norm, whether it is below, and the time of this one call."""
    if call is None:
        return {}
    found: list[float] = []
    seconds = device.seconds(lambda: found.append(float(call())), 1)
    return _against({"value": found[0]}, norm) | {"ms": 1e3 * seconds}


def _against(known: Cells, norm: float) -> Cells:
    if "value" not in known:
        return {}
    value = known["value"]
    below = "yes" if value < (1 - BELOW) * norm else ""
    return {"value": value, "value / norm": value / norm, "below the norm": below}


def _scalar(value: Any) -> int:
    """Return the number that holds on every axis."""
    values = set(value) if isinstance(value, list | tuple) else {value}
    (found,) = values
    return int(found)

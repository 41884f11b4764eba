"""What records cost: ``python -m benchmarks.records``.

Prints a table in Markdown of operators from the README, the examples and the shipped network, and of
larger ones: seconds of CPU time to make a record and to verify it, cells, size, gap and verdict.
"""

import importlib.resources
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gramnorm import records, verifier

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SHIPPED = {  # layers of the shipped network, and what they do with their kernels
    "conv1.weight": {},
    "conv2.weight": {"groups": 16},
    "conv3.weight": {},
    "conv4.weight": {"groups": 4},
    "dense1.weight": None,
    "dense2.weight": None,
}

Row = tuple[str, Callable[[], records.Record]]


def example(name: str) -> ModuleType:
    """Return an example of the gallery as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def conv(kernel: np.ndarray, *args: Any, **options: Any) -> Callable[[], records.Record]:
    """Return what records a convolution."""
    return lambda: records.prove_conv_norm(kernel, *args, **options)


def matrix(a: np.ndarray, **options: Any) -> Callable[[], records.Record]:
    """Return what records a matrix."""
    return lambda: records.prove_matrix_norm(a, **options)


def of_pages() -> Iterator[Row]:
    """Yield the operators of the README and of the examples that need no PyTorch."""
    wide = np.random.default_rng(0).standard_normal((16, 3, 7, 7))
    yield "README, second difference", conv(np.asarray([[[-1.0, 2.0, -1.0]]]))
    yield "README, 2 x 2 matrix", matrix(np.asarray([[1.0, 0.0], [1.0, 2.0]]))
    yield "README, 16 x 3 x 7 x 7, stride 2", conv(wide, stride=2)
    yield "README, the same at 24 x 24", conv(wide, (24, 24), stride=2, padding=3)
    taps = np.transpose(example("filter_bank").bank(), (1, 2, 0))
    yield f"filter_bank.py, {taps.shape[2]} taps", conv(taps)
    blur = example("fista_deblurring").camera()[0].kernel
    yield "fista_deblurring.py, blur", conv(blur)
    yield "one_layer.py, layer", matrix(example("one_layer").stored_layer())


def of_the_network() -> Iterator[Row]:
    """Yield the layers of the shipped network."""
    with (importlib.resources.files("gramnorm") / "data" / "digits.npz").open("rb") as stream:
        arrays = dict(np.load(stream))
    for name, options in SHIPPED.items():
        yield name, matrix(arrays[name]) if options is None else conv(arrays[name], **options)


def of_size() -> Iterator[Row]:
    """Yield larger operators."""
    rng = np.random.default_rng(0)
    for n in (64, 256, 512):
        a = rng.standard_normal((n, n))
        yield f"Gaussian {n} x {n}", matrix(a)
        if n == 256:
            yield "Gaussian 256 x 256, gap 1e-12", matrix(a, rtol=1e-12)
    q = np.linalg.qr(rng.standard_normal((256, 256)))[0]
    yield "orthogonal 256 x 256, gap 1e-12", matrix(q, rtol=1e-12)
    for c in (16, 32, 64):
        yield f"Gaussian {c} x {c} x 3 x 3", conv(rng.standard_normal((c, c, 3, 3)))
    small = rng.standard_normal((8, 8, 3, 3))
    yield "8 x 8 x 3 x 3 at 8 x 8, zeros", conv(small, (8, 8), padding=1)
    yield "8 x 8 x 3 x 3 on 16 x 16", conv(small, (16, 16), padding_mode="circular")
    layers = [rng.standard_normal((n, m)) for m, n in ((64, 128), (128, 128), (128, 10))]
    yield "chain of 64, 128, 128, 10", lambda: records.prove_chain(layers)


def main() -> None:
    """Print the table."""
    records._EMBEDDED = 2**30  # so that no files are needed
    print("| operator | record [s] | cells | size [kB] | verify [s] | gap | verdict |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for rows in (of_pages, of_the_network, of_size):
        for name, make in rows():
            began = time.process_time()
            record = make()
            made = time.process_time()
            head = {"schema": records.SCHEMA, "version": records.VERSION, "records": [record]}
            text = json.dumps(head).encode()
            written = time.process_time()
            ((_, verdict, _),) = verifier.verdicts(text)
            done = time.process_time()
            lower, upper = (float.fromhex(record[side]["bound"]) for side in ("lower", "upper"))
            gap = f"{upper / lower - 1:.1e}" if lower else ""
            cells = len(record["upper"].get("cells", [])) or ""
            sizes = f"{made - began:.2f} | {cells} | {len(text) / 1e3:.0f} | {done - written:.2f}"
            print(f"| {name} | {sizes} | {gap} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()

"""Damaged graphs under a memory limit: ``python -m tests.harness.damage``.

Bytes are flipped, cut and repeated, in the message and in the file beside it; and the message is
changed where it can be parsed still: sizes, attributes, inputs, operators, where arrays lie.  The
command line must end with rows or one line, within time and memory.  Exit status 1 if it did not.
"""

import argparse
import contextlib
import io
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from gramnorm.report import cli

COUNT = 300
MEMORY = 2 * 2**30  # of address space, with the interpreter and its libraries
SECONDS = 20  # of the processor, for one file of a few kilobytes
PATIENCE = 300  # seconds, for what waits
ODD = (-(2**63), -(2**31), -9, -1, 0, 1, 2, 3, 64, 2**20, 2**31 - 1, 2**40, 2**62, 2**63 - 1)
OPERATORS = ("Add", "Mul", "Div", "Concat", "Conv", "ConstantOfShape", "Expand", "Gather", "If", "MatMul", "Pad",
             "Range", "Reshape", "Resize", "Shape", "Slice", "Split", "Tile", "Transpose", "Where")  # fmt: skip


def sound() -> Any:
    """Return a graph of the constructions that readers are fooled with."""
    rng = np.random.default_rng(0)
    some = {k: rng.standard_normal(s).astype("f4") for k, s in
            {"k": (4, 3, 3, 3), "w": (4, 5), "g": (4, 1, 1, 1), "scale": (4,)}.items()}  # fmt: skip
    wholes = {"q": (4, 5), "sizes": (2,), "none": (0,), "minus": (1,)}
    arrays: dict[str, Any] = some | {n: np.ones(s, "i8") for n, s in wholes.items()}
    arrays |= {"q": arrays["q"].astype("i1"), "by": np.asarray([1, 1, 2, 1.5], "f4")}
    arrays |= {"flag": np.asarray(True), "minus": np.asarray([-1]), "roi": np.zeros(0, "f4")}
    taken = helper.make_graph([helper.make_node("MatMul", ["f", "w"], ["p"])], "a", [],
                              [helper.make_tensor_value_info("p", 1, None)])  # fmt: skip
    other = helper.make_graph([helper.make_node("DequantizeLinear", ["q", "scale"], ["d"], axis=0),
                               helper.make_node("MatMul", ["f", "d"], ["p"])], "b", [],
                              [helper.make_tensor_value_info("p", 1, None)])  # fmt: skip
    make = helper.make_node
    nodes = [
        make("Mul", ["k", "g"], ["kg"]),
        make("Conv", ["x", "kg"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        make("Resize", ["c", "roi", "by"], ["r"], mode="linear"),
        make("Shape", ["r"], ["s"], end=2),
        make("Concat", ["s", "minus"], ["t"], axis=0),
        make("Reshape", ["r", "t"], ["u"]),
        make("ReduceMean", ["u"], ["f"], axes=[2], keepdims=0),
        make("If", ["flag"], ["y"], then_branch=taken, else_branch=other),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ("n", 3, "h", "w"))],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def graphs_in(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            yield from graphs_in(attribute.g) if attribute.HasField("g") else ()


def changed(model: Any, rng: np.random.Generator) -> None:
    """Change one thing in a message."""
    graph = [*graphs_in(model.graph)][rng.integers(2)]
    graph = graph if graph.node else model.graph
    node = graph.node[rng.integers(len(graph.node))]
    array = model.graph.initializer[rng.integers(len(model.graph.initializer))]
    odd = int(rng.choice(ODD))
    kind = rng.integers(9)
    names = [a.name for a in model.graph.initializer] + [o for n in graph.node for o in n.output]
    if kind == 0 and node.attribute:
        a = node.attribute[rng.integers(len(node.attribute))]
        a.i = odd
        for i in range(len(a.ints)):
            a.ints[i] = odd if rng.random() < 0.5 else a.ints[i]
    elif kind == 1 and node.input:
        node.input[rng.integers(len(node.input))] = str(rng.choice(names))
    elif kind == 2:
        node.op_type = str(rng.choice(OPERATORS))
    elif kind == 3 and array.dims:
        array.dims[rng.integers(len(array.dims))] = odd
    elif kind == 4:
        array.data_type = int(rng.integers(30))
    elif kind == 5:
        array.raw_data = np.asarray([odd] * (len(array.raw_data) // 8 + 1)).tobytes()[
            : len(array.raw_data)
        ]
    elif kind == 6:
        array.data_location = onnx.TensorProto.EXTERNAL
        for key in rng.choice(["location", "offset", "length"], 3):
            value = rng.choice(
                ["m.data", "m.onnx", "..", "/dev/zero", "pipe", "link", str(odd), ""]
            )
            array.external_data.add(key=str(key), value=str(value))
    elif kind == 7:
        dim = model.graph.input[0].type.tensor_type.shape.dim
        dim[rng.integers(len(dim))].dim_value = odd
    else:
        graph.node.append(graph.node[rng.integers(len(graph.node))])


def damaged(raw: bytes, rng: np.random.Generator) -> bytes:
    """Return bytes with some of them flipped, cut or repeated."""
    content = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(content) + 1))
        kind, some = rng.integers(3), int(rng.integers(1, 40))
        if kind == 0 and place < len(content):
            content[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del content[place : place + some]
        else:
            content[place:place] = content[place : place + some]
    return bytes(content)


def one(folder: Path, rng: np.random.Generator) -> str | None:
    """Return what went wrong with one damaged file, None if nothing did."""
    model = sound()
    for _ in range(rng.integers(0, 4)):
        changed(model, rng)
    raw = model.SerializeToString()
    raw = damaged(raw, rng) if rng.random() < 0.5 else raw
    path = folder / "m.onnx"
    path.write_bytes(raw)
    (folder / "m.data").write_bytes(rng.bytes(int(rng.integers(2000))))
    options = [[], ["--input-shape", "8,9"], ["--input-shape", "file"]][rng.integers(3)]
    out, err = io.StringIO(), io.StringIO()
    signal.alarm(PATIENCE)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(["report", "--json", *options, str(path)])
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    one_line = code == 2 and err.getvalue().count("\n") == 1 and not out.getvalue()
    rows = code in (0, 1) and out.getvalue().startswith("{")
    return None if one_line or rows else f"status {code}: {err.getvalue()}"


class LateError(BaseException):
    """What no reader takes for a damaged file."""


def _late(*_: object) -> None:
    raise LateError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.harness.damage", description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first file")
    args = parser.parse_args()
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, _late)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "link").symlink_to("/etc/passwd")
        for i in range(args.first, args.first + args.count):
            trouble = one(Path(name), np.random.default_rng([args.seed, i]))
            if trouble is not None:
                wrong += 1
                sys.stdout.write(f"seed {args.seed}, file {i}: {trouble}\n")
    sys.stdout.write(f"{args.count} files, {wrong} wrong\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

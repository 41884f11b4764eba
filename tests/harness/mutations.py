"""Error terms taken away one by one: ``python -m tests.harness.mutations``.

Each *mutant* of the package lacks one term of its account of rounding: a constant of the model, the
term for underflow, a nudge outward, a rounding to the next float; or has half of a constant where
that is defined.  They are found in the syntax trees of the modules.  A mutant is *caught* if a test
fails, or does not end.  What survives needs an argument why it may, in `mutation_arguments`.

    python -m tests.harness.mutations --file found.jsonl

goes on where it was stopped, writes a line for each mutant, and prints those without an argument.
All meet the worst arithmetic and the tests of single terms and formulas; those that survive these
without an argument, the tests of their module.
Each mutant runs in a process of its own, which is ended after a time.
"""

import argparse
import ast
import contextlib
import dataclasses
import importlib
import importlib.abc
import importlib.util
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gramnorm"
LEFT_OUT = ("verifier.py", "records.py", "report", "__main__.py")
"""The checker has its own list (`test_verifier`); records are checked by it; reports print."""

TERMS = {"gamma", "kappa", "underflow", "loss", "enclosure"}  # called: no error where they are
NUMBERS = {"HOST_UNIT", "PHASE_ERROR", "unit", "tiny", "smallest_normal", "lost", "excess"}
NUDGES = {"up", "down"}
DEFINED = {  # halved where they are defined
    "_rigour/model.py": ("gamma", "kappa", "underflow", "up", "down", "compounded"),
    "_rigour/sums.py": ("loss",),
    "_rigour/angles.py": (),
}
LEAST = 1e-6  # numbers below it that are added to something are error terms


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A change of a stretch of one module, and what it is called."""

    module: str
    function: str
    text: str
    kind: str
    number: int
    start: int
    stop: int
    new: str

    @property
    def key(self) -> str:
        """Return a name that outlives changes elsewhere in the file."""
        number = f" #{self.number}" if self.number else ""
        return f"{self.module} {self.function}: {self.kind} `{self.text}`{number}"

    def source(self) -> bytes:
        """Return the text of the changed module."""
        old = (PACKAGE / self.module).read_bytes()
        return old[: self.start] + self.new.encode() + old[self.stop :]


class _Finder(ast.NodeVisitor):
    """Collects the mutants of one module."""

    def __init__(self, module: str, source: bytes) -> None:
        self.module, self._source = module, source
        self._lines = [0]
        for line in source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._path: list[str] = []
        self._parents: list[ast.AST] = []
        self.found: list[Mutant] = []
        self._seen: Counter[tuple[str, str, str]] = Counter()

    def _span(self, node: Any) -> tuple[int, int]:
        return (
            self._lines[node.lineno - 1] + node.col_offset,
            self._lines[node.end_lineno - 1] + node.end_col_offset,
        )

    def _text(self, node: ast.AST) -> str:
        start, stop = self._span(node)
        return self._source[start:stop].decode()

    def _add(self, node: ast.AST, kind: str, new: str) -> None:
        function, text = ".".join(self._path) or "module", " ".join(self._text(node).split())
        number = self._seen[function, kind, text]
        self._seen[function, kind, text] += 1
        start, stop = self._span(node)
        self.found.append(Mutant(self.module, function, text, kind, number, start, stop, new))

    def visit(self, node: ast.AST) -> None:
        self._parents.append(node)
        named = isinstance(node, ast.FunctionDef | ast.ClassDef)
        if named:
            self._path.append(node.name)
        super().visit(node)
        if named:
            self._path.pop()
        self._parents.pop()

    @property
    def _parent(self) -> ast.AST:
        return self._parents[-2]

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in TERMS - {"enclosure"}:
            self._add(node, "off", "0.0")
        elif name == "nextafter" or (name in NUDGES and isinstance(node.func, ast.Name)):
            self._add(node, "off", f"({self._text(node.args[0])})")
        elif name in ("ceil", "floor") and self.module.startswith("_rigour"):
            other = "floor" if name == "ceil" else "ceil"
            self._add(node.func, "the other way", f"{self._text(node.func.value)}.{other}")  # type: ignore[attr-defined]
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._number(node, node.attr)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self._number(node, node.id)

    def _number(self, node: Any, name: str) -> None:
        """Take a constant away where it is part of a sum or a product, or handed on by name."""
        inside = isinstance(self._parent, ast.BinOp | ast.keyword)
        if name in NUMBERS and isinstance(node.ctx, ast.Load) and inside:
            self._add(node, "off", "0.0")

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if isinstance(node.op, ast.Add | ast.Sub) and _is_next_to_nothing(node.right):
            self._add(node.right, "off", "0.0")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if self._path and self._path[-1] in DEFINED.get(self.module, ()) and node.value:
            inner = self._text(node.value)
            if self._path[-1] in NUDGES:
                self._add(node.value, "halved", f"({inner} + x) / 2")
            else:
                self._add(node.value, "halved", f"({inner}) / 2")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        names = {getattr(target, "id", "") for target in node.targets}
        if not self._path and names & {*NUMBERS, "_UNITS", "_ROUNDINGS"}:
            self._add(node.value, "halved", f"({self._text(node.value)}) / 2")
        self.generic_visit(node)


def _is_next_to_nothing(node: ast.AST) -> bool:
    """Say whether a number is written that is small: 2e-15, 2.0**-60."""
    try:
        value = eval(compile(ast.Expression(node), "", "eval"), {})  # type: ignore[arg-type]
    except Exception:
        return False
    return isinstance(value, float) and 0 < value < LEAST


def mutants() -> list[Mutant]:
    """Return all mutants, in the order of the files."""
    found: list[Mutant] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        if module.startswith(LEFT_OUT):
            continue
        source = path.read_bytes()
        finder = _Finder(module, source)
        finder.visit(ast.parse(source))
        found += finder.found
    return found


# ------------------------------------------------------------------------------------------ tests

Stage = tuple[str, ...]  # arguments of pytest
ROOMS: dict[str, tuple[Stage, ...]] = {
    "_rigour": (("tests/rigour",),),
    "_rescaling.py": (("tests/test_rescaling.py",),),
    "_tracking.py": (("tests/test_tracking.py",),),
    "_results.py": (("tests/test_bracket.py",),),
    "_arrays": (("tests/arrays",),),
    "classical": (("tests/classical",),),
    "network": (("tests/network/test_chain.py",), ("tests/network",)),
    "torch.py": (("tests/test_torch.py",),),
}
OTHERS = {  # where tests of a module are that are not called after it
    "_matrix/residual.py": ("tests/matrix/test_certificate.py",),
    "_matrix/cholesky.py": ("tests/matrix/test_certificate.py",),
    "_matrix/margin.py": ("tests/matrix/test_certificate.py", "tests/conv/test_wide.py"),
    "_matrix/definite.py": ("tests/conv/test_wide.py",),
    "_matrix/windows.py": ("tests/matrix/test_large_sparse.py",),
    "_matrix/non_negative.py": ("tests/matrix/test_sparse.py", "tests/matrix/test_large_sparse.py"),
    "_matrix/moments.py": ("tests/matrix/test_matrix.py",),
    "_matrix/gram.py": ("tests/matrix/test_matrix.py",),
    "_conv/squared.py": ("tests/conv/test_wide.py",),
    "_conv/factored.py": ("tests/conv/test_wide.py",),
    "_rigour/scaling.py": ("tests/matrix/test_matrix.py",),
    "_rigour/model.py": ("tests/test_bracket.py",),
}
FIRST: Stage = ("tests/rigour/test_terms.py", "tests/rigour/test_formulas.py")
LAST: Stage = ("tests/harness/test_soundness_teeth.py", "-k", "as_it or as_they")


def stages(module: str) -> list[Stage]:
    """Return the tests for a module after the worst arithmetic and formulas: those of its name."""
    room, stem = module.split("/", maxsplit=1)[0], Path(module).stem.strip("_")
    own = [
        (path.relative_to(ROOT).as_posix(),)
        for path in sorted(ROOT.glob(f"tests/*/test_{stem}.py"))
    ]
    others = [(name,) for name in OTHERS.get(module, ())]
    return list(dict.fromkeys([FIRST, *ROOMS.get(room, ()), *own, *others, LAST]))


def worst_arithmetic(module: str) -> Iterator[str]:
    """Yield what is wrong in arithmetic that errs by all it may, and of formulas; nothing else.

    Without pytest, whose start takes longer.
    """
    from tests.harness import hostile  # noqa: PLC0415
    from tests.rigour import test_constants, test_formulas, test_hostile  # noqa: PLC0415

    room = module.split("/", maxsplit=1)[0]
    if room in ("torch.py", "_tracking.py"):
        return
    for name in test_formulas.FORMULAS:
        yield from _failed(test_formulas.test_formulas_are_rounded_to_their_sides, name)
    for function in [*vars(test_constants).values(), *vars(test_formulas).values()]:
        marks = getattr(function, "pytestmark", [])
        code = getattr(function, "__code__", None)
        if getattr(function, "__name__", "").startswith("test_"):
            if not code.co_argcount:
                yield from _failed(function)
            elif len(marks) == code.co_argcount == 1 and len(marks[0].args) == 2:
                for value in marks[0].args[1]:
                    yield from _failed(function, value)
    kernels = {
        "symbols",
        "flat_symbols",
        "wide_symbols",
        "assembled",
        "paired",
        "compressed",
        "others",
        "rescaled",
    }
    left_out = {"_matrix": kernels | {"chained"}}
    left_out["network"] = {route.__name__ for route in test_hostile.ROUTES} - {"chained"}
    if room in ("_conv", "_rescaling.py", "classical"):
        left_out[room] = left_out["network"] - kernels | {"chained"}
    squares = test_hostile.test_squares_of_wide_symbols_count_what_their_sums_lose
    shapes = ((5, 40, 16), (2, 400, 8), (3, 2, 150)) if room == "_conv" else ()
    for shape, kind in itertools.product(shapes, ("low", "high")):
        yield from _failed(squares, shape, kind, "float64")
    signs = (("low", "float64"), ("across", "float64"), ("low", "complex128"), ("high", "float64"))
    for route, (kind, dtype) in itertools.product(test_hostile.ROUTES, signs):
        if route.__name__ in left_out.get(room, ()):
            continue
        name = f"tests/rigour/test_hostile.py: {route.__name__}, {kind}, {dtype}"
        try:
            wrong = test_hostile.wrong_sides(route, hostile.KINDS[kind], dtype)
        except Exception as error:
            wrong, name = [error], f"{name}: {type(error).__name__}"
        if wrong:
            yield name


def _failed(test: Callable[..., None], *arguments: Any) -> Iterator[str]:
    try:
        test(*arguments)
    except Exception:
        yield f"{test.__module__}: {test.__name__}{arguments}"


def change(mutant: Mutant) -> None:
    """Give the functions of a module that is imported the code of a mutant.

    They keep their identity, whoever imported them; numbers of the module are replaced everywhere.
    """
    parts = Path(mutant.module).with_suffix("").parts
    module = importlib.import_module(".".join(["gramnorm", *(p for p in parts if p != "__init__")]))
    new = {"__name__": module.__name__, "__package__": module.__package__}
    exec(compile(mutant.source(), str(PACKAGE / mutant.module), "exec"), new)
    for name, old in list(vars(module).items()):
        if name not in new or name.startswith("__"):
            continue
        if isinstance(old, float | int) and old != new[name]:
            for place, other in list(sys.modules.items()):
                if place.startswith("gramnorm") and getattr(other, name, None) == old:
                    setattr(other, name, new[name])
        elif getattr(old, "__module__", "") == module.__name__:
            _swap(old, new[name])


def _swap(old: Any, new: Any) -> None:
    if isinstance(old, type):
        for name, part in vars(old).items():
            if name in vars(new) and not isinstance(part, type):  # PyTorch's point to each other
                _swap(part, vars(new)[name])
        return
    for inner in ("__wrapped__", "__func__", "fget", "func"):
        if getattr(old, inner, None) is not None and not isinstance(old, FunctionType):
            _swap(getattr(old, inner), getattr(new, inner))
            return
    while hasattr(old, "__wrapped__"):
        old, new = old.__wrapped__, new.__wrapped__
    if isinstance(old, FunctionType):
        old.__code__ = new.__code__


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the changed module in place of the one on file."""

    def __init__(self, mutant: Mutant) -> None:
        parts = Path(mutant.module).with_suffix("").parts
        self._name = ".".join(["gramnorm", *(p for p in parts if p != "__init__")])
        self._source, self._path = mutant.source(), str(PACKAGE / mutant.module)

    def find_spec(self, name: str, *_: Any) -> Any:
        if name != self._name:
            return None
        is_package = self._path.endswith("__init__.py")
        return importlib.util.spec_from_file_location(
            name,
            self._path,
            loader=self,
            submodule_search_locations=[str(Path(self._path).parent)] if is_package else None,
        )

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._source, self._path, "exec"), module.__dict__)


class _Recorder:
    """Remembers the first test that failed."""

    failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid}: not imported"


def _child(mutant: Mutant | None, stage: Stage, send: int, limit: int) -> None:
    """Run the tests with the mutant and send the name of one that failed."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    os.chdir(ROOT)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    if not stage:
        if mutant:
            change(mutant)
        name = next(worst_arithmetic(mutant.module if mutant else ""), "")
        os.write(send, f"done {name}".encode()[:900])
        return
    if mutant:
        sys.meta_path.insert(0, _Changed(mutant))
    recorder = _Recorder()
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--backends", "numpy"]
    status = pytest.main([*options, *stage], plugins=[recorder])
    # no test of a file may be chosen; any other status is no verdict
    usable = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    name = recorder.failed or ("" if status in usable else f"status {int(status)}")
    os.write(send, f"done {name}".encode()[:900])


def run(mutant: Mutant | None, stage: Stage, limit: int) -> tuple[str, str]:
    """Return "caught" and the test, or "survived"; after `limit` seconds of its CPU time caught."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receive)
            _child(mutant, stage, send, limit)
        except BaseException:
            os.write(send, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(send)
    end = time.monotonic() + 20 * limit  # a busy machine, or one that waits
    done = status = 0
    while not done and time.monotonic() < end:
        time.sleep(0.02)
        done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with os.fdopen(receive) as pipe:
        said = pipe.read()
    if status or not done:
        return "caught", f"{' '.join(stage)}: it did not end, or with status {status}"
    if not said.startswith("done "):
        raise RuntimeError(said)
    name = said.removeprefix("done ")
    return ("caught" if name else "survived"), name


def results(path: Path) -> dict[str, dict[str, Any]]:
    """Return what is known already, by key."""
    if not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return {line["key"]: line for line in lines}


def run_all(path: Path, every: Sequence[Mutant], *, limit: int, quick: bool) -> Iterator[str]:
    """Run the mutants that are not in the file, in the order of the list; yield a line on each."""
    known, sound = results(path), set[Stage]()
    if quick:
        next(worst_arithmetic(""), None)  # imports and compiles once what each process needs
    for mutant in every:
        old = known.get(mutant.key)
        if old and (
            quick or old["verdict"] == "caught" or not old["quick"] or argument(mutant.key)
        ):
            continue
        start = time.monotonic()
        verdict, test = "survived", ""
        every_stage = [FIRST] if argument(mutant.key) else stages(mutant.module)
        for stage in [()] if quick else every_stage:
            if stage not in sound:
                verdict, test = run(None, stage, limit)
                if verdict != "survived":
                    msg = f"without a mutant {test} fails"
                    raise RuntimeError(msg)
                sound.add(stage)
            verdict, test = run(mutant, stage, limit)
            if verdict != "survived":
                break
        seconds = round(time.monotonic() - start, 1)
        line = {"key": mutant.key, "verdict": verdict, "test": test, "seconds": seconds}
        with path.open("a") as file_of_lines:
            file_of_lines.write(json.dumps({**line, "quick": quick}) + "\n")
        yield f"{verdict}: {mutant.key}  {test}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.harness.mutations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--file", type=Path, default=Path("mutations.jsonl"))
    parser.add_argument("--only", default="", help="mutants whose key has this in it")
    parser.add_argument("--limit", type=int, default=100, help="seconds of CPU time for a stage")
    parser.add_argument("--quick", action="store_true", help="the worst arithmetic alone")
    parser.add_argument("--list", action="store_true", help="print the mutants")
    args = parser.parse_args(argv)
    every = [m for m in mutants() if args.only in m.key]
    if args.list:
        sys.stdout.write("".join(f"{m.key}\n" for m in every))
        return 0
    if not args.quick:  # a process of its own: what it imports must not be imported here
        given = list(sys.argv[1:] if argv is None else argv)
        command = [sys.executable, "-m", "tests.harness.mutations", *given, "--quick"]
        subprocess.run(command, check=False, cwd=ROOT)
    for text in run_all(args.file, every, limit=args.limit, quick=args.quick):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    known = results(args.file)
    left = [m.key for m in every if known[m.key]["verdict"] == "survived"]
    unargued = [key for key in left if not argument(key)]
    sys.stdout.write(
        f"{len(every)} mutants, {len(every) - len(left)} caught, {len(left)} survive, "
        f"{len(unargued)} of them without an argument\n"
    )
    if not args.quick:
        sys.stdout.write("".join(f"{key}\n" for key in unargued))
    return int(len(unargued) > 0.05 * len(every))


def argument(key: str) -> str:
    """Return why a mutant may survive, or nothing."""
    from tests.harness.mutation_arguments import ARGUMENTS  # noqa: PLC0415

    return next((why for pattern, why in ARGUMENTS if re.search(pattern, key)), "")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())

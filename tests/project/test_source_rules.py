"""Rules about how the package is written, checked on its syntax trees.

They stand in for machines we may not have: a call that names its device works on a GPU, a call
that exists in the standard exists in every library.  Each rule maps a file name and its source to
complaints, and comes with a planted violation that it must find.
"""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest

import gramnorm

ROOT = Path(__file__).parents[2]
SOURCES = {str(p.relative_to(ROOT)): p.read_text() for p in sorted(ROOT.glob("gramnorm/**/*.py"))}

CREATION = {"arange", "asarray", "empty", "eye", "full", "linspace", "ones", "zeros"}
KERNELS = {f"gramnorm/{room}.py" for room in ("_matrix/gram", "_matrix/moments", "_conv/symbol")}
LIBRARIES = "array_api_compat|cupy|dask|jax|torch"
SOLVERS = (
    "cholesky|cond|det|eig|eigh|eigvals|eigvalsh|inv|lstsq|matrix_rank|pinv|qr|solve|svd|svdvals"
)
BOUNDARY = "gramnorm/_arrays/"
MODULES = ("gramnorm/_modules.py", "gramnorm/torch.py")  # torch's own kind of modules
CHECKPOINTS = "gramnorm/report/files/torch.py"  # torch's own kind of file
FRONTS = (  # what they list, the front page offers
    *("gramnorm/_conv/bounds.py", "gramnorm/_conv/geometry.py", "gramnorm/_matrix/bounds.py"),
    *(
        "gramnorm/_matrix/operators.py",
        "gramnorm/_rescaling.py",
        "gramnorm/_tracking.py",
        "gramnorm/_results.py",
    ),
    "gramnorm/network/__init__.py",
)

Complaints = Iterator[str]

DUNDERS = {"__all__", "__version__"}


def xp_name(node: ast.AST) -> str | None:
    """Return "linalg.qr" for the expression ``xp.linalg.qr``, None for what is not a name in xp."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        if names and node.attr == "xp":  # self.xp.sum
            return ".".join(reversed(names))
        names.append(node.attr)
        node = node.value
    is_xp = isinstance(node, ast.Name) and node.id == "xp" and names
    return ".".join(reversed(names)) if is_xp else None


def xp_calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (name := xp_name(node.func)):
            yield name, node


def lookup(namespace: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        namespace = getattr(namespace, name, None)
    return namespace


def creation_names_dtype_and_device(file: str, source: str) -> Complaints:
    for name, call in xp_calls(source):
        given = {k.arg for k in call.keywords}
        if name in CREATION and None not in given and (missing := {"device", "dtype"} - given):
            yield f"{file}:{call.lineno}: xp.{name} without {' and '.join(sorted(missing))}"


def only_standard_names(file: str, source: str) -> Complaints:
    for node in ast.walk(ast.parse(source)):
        name = xp_name(node)
        if name and name.split(".")[0] in {"fft", "linalg"} and "." in name:
            name = ".".join(name.split(".")[:2])
        elif name:
            name = name.split(".")[0]
        if name and lookup(array_api_strict, name) is None:
            yield f"{file}:{node.lineno}: xp.{name} is not in the array API standard"


def calls_fit(namespace: Any, file: str, source: str) -> Complaints:
    if file.startswith(BOUNDARY):  # there, a branch may serve one library only
        return
    for name, call in xp_calls(source):
        function = lookup(namespace, name)
        if not callable(function):
            yield f"{file}:{call.lineno}: no xp.{name} in {namespace.__name__}"
            continue
        unknown_length = any(isinstance(a, ast.Starred) for a in call.args)
        if unknown_length or any(k.arg is None for k in call.keywords):
            continue
        try:
            signature = inspect.signature(function)
        except ValueError:  # compiled elementwise functions do not tell
            continue
        try:
            signature.bind(*call.args, **{k.arg: k.value for k in call.keywords if k.arg})
        except TypeError as error:
            yield f"{file}:{call.lineno}: xp.{name} in {namespace.__name__}: {error}"


def calls_fit_the_standard(file: str, source: str) -> Complaints:
    yield from calls_fit(array_api_strict, file, source)


def calls_fit_numpy(file: str, source: str) -> Complaints:
    yield from calls_fit(np, file, source)


def calls_fit_cupy(file: str, source: str) -> Complaints:
    pytest.importorskip("cupy")
    yield from calls_fit(importlib.import_module("array_api_compat.cupy"), file, source)


def one_boundary(file: str, source: str) -> Complaints:
    library = re.compile(rf"({LIBRARIES})(\.\w+)*").fullmatch
    if file.startswith(BOUNDARY) or file in (*MODULES, CHECKPOINTS):
        return
    for node in ast.walk(ast.parse(source)):
        named: list[Any] = []
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = [node.module or ""]
        elif isinstance(node, ast.Name):
            named = [node.id]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = [node.value]
        for name in filter(library, named):
            yield f"{file}:{node.lineno}: {name} is named outside {BOUNDARY}"


def solvers_may_give_up(file: str, source: str) -> Complaints:
    """Find solvers that are not handed to what returns None where they raise; pictures prove nothing."""
    if file.startswith("gramnorm/report/"):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and re.search(
            rf"\.linalg\.({SOLVERS})$", ast.unparse(node.func)
        ):
            yield f"{file}:{node.lineno}: {ast.unparse(node.func)} is called and not attempted"


def kernels_move_no_value_to_the_host(file: str, source: str) -> Complaints:
    if file not in KERNELS:
        return
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        # np.max(...) has seen the host already, xp.finfo(...) never left it
        on_host = node.args and re.match(r"np\.|math\.|xp\.finfo\(", ast.unparse(node.args[0]))
        if name in {"float", "bool", "complex", "item", "tolist"} and not on_host:
            yield f"{file}:{node.lineno}: {name}() in a kernel waits for the device"


def listed_names(source: str) -> set[str]:
    """Return what ``__all__`` of a module lists."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def all_lists_what_is_there(file: str, source: str) -> Complaints:
    there, imported = set(), set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            there |= {ast.unparse(target) for target in node.targets}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            there.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name for alias in node.names}
    if unknown := listed_names(source) - there - imported:
        yield f"{file}: __all__ lists {', '.join(sorted(unknown))}, not defined there"
    is_front = file.endswith("/__init__.py") and not there - DUNDERS
    shown = {name for name in imported if is_front and not name.startswith("_")}
    if missing := shown - listed_names(source):
        yield f"{file}: __all__ lacks {', '.join(sorted(missing))}"


def init_only_imports(file: str, source: str) -> Complaints:
    if file != "gramnorm/__init__.py":
        return
    for node in ast.parse(source).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        dunder = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("__")
        if not (docstring or dunder or isinstance(node, ast.Import | ast.ImportFrom)):
            yield f"{file}:{node.lineno}: the package's front page holds imports only"


def no_path_of_one_machine(file: str, source: str) -> Complaints:
    here = [f"{p}/" for p in (ROOT, Path.home(), Path(sys.prefix)) if len(p.parts) > 1]
    elsewhere = r"/home/\w+/|/Users/\w+/|\b[A-Z]:\\Users\\"
    pattern = re.compile("|".join([*map(re.escape, here), elsewhere]))
    for number, line in enumerate(source.splitlines(), 1):
        if found := pattern.search(line):
            yield f"{file}:{number}: names the path {found[0]}"


@dataclass(frozen=True)
class Planted:
    """A rule, a snippet that breaks it and one that keeps it."""

    rule: Callable[[str, str], Complaints]
    bad: str
    good: str
    file: str = "gramnorm/_matrix/bounds.py"


RULES = [
    Planted(
        creation_names_dtype_and_device,
        "xp.zeros((2, 2), dtype=x.dtype)",
        "xp.zeros((2, 2), dtype=x.dtype, device=d); xp.zeros_like(x); np.zeros(3)",
    ),
    Planted(only_standard_names, "xp.einsum('ij->i', x)", "xp.linalg.svdvals(x); xp.float32.name"),
    Planted(only_standard_names, "xp.linalg.expm(x)", "self.xp.finfo(x.dtype).eps"),
    Planted(calls_fit_the_standard, "xp.sum(x, axes=0)", "xp.sum(x, axis=0); xp.sqrt(x)"),
    Planted(calls_fit_numpy, "xp.argsort(x, downwards=True)", "xp.argsort(x, stable=True)"),
    Planted(calls_fit_cupy, "xp.linalg.svdvals(x, full=True)", "xp.linalg.svdvals(x); xp.sqrt(x)"),
    Planted(calls_fit_cupy, "xp.no_such_function(x)", "xp.sum(x, axis=(-2, -1), keepdims=True)"),
    Planted(one_boundary, "import torch.fft", "import numpy"),
    Planted(
        one_boundary,
        "from array_api_compat import device",
        "from gramnorm._arrays.libraries import device_of",
    ),
    Planted(one_boundary, "importlib.import_module('jax.numpy')", "'for jax, use gram_iteration'"),
    Planted(
        solvers_may_give_up, "np.linalg.eigh(a)", "attempted(np.linalg.eigh, a); np.linalg.norm(a)"
    ),
    Planted(solvers_may_give_up, "xp.linalg.svdvals(a)", "xp.linalg.diagonal(a)"),
    Planted(
        kernels_move_no_value_to_the_host,
        "float(g)",
        "float(np.max(h))",
        "gramnorm/_matrix/gram.py",
    ),
    Planted(kernels_move_no_value_to_the_host, "g.item()", "xp.any(g)", "gramnorm/_conv/symbol.py"),
    Planted(
        all_lists_what_is_there,
        "__all__ = ['f', 'g']\ndef f(): ...",
        "__all__ = ['f', 'RTOL']\nRTOL = 1\ndef f(): ...\ndef helper_of_other_floors(): ...",
    ),
    Planted(
        all_lists_what_is_there,
        "from gramnorm._matrix.bounds import f, g\n__all__ = ['f']",
        "from gramnorm._matrix.bounds import f\n__all__ = ['__version__', 'f']\n__version__ = '1'",
        "gramnorm/__init__.py",
    ),
    Planted(init_only_imports, "def f(): ...", "from a import f", "gramnorm/__init__.py"),
    Planted(no_path_of_one_machine, f"{ROOT}/weights.npz", "https://arxiv.org/abs/2305.16173"),
    Planted(no_path_of_one_machine, "/home/" + "somebody/weights.npz", "../shared/data"),
]


@pytest.mark.parametrize("rule", dict.fromkeys(p.rule for p in RULES), ids=lambda r: r.__name__)
def test_package_keeps_the_rule(rule):
    assert len(SOURCES) > 1
    complaints = [c for file, source in SOURCES.items() for c in rule(file, source)]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("planted", RULES, ids=lambda p: f"{p.rule.__name__}-{p.bad[:24]!r}")
def test_rule_fires_on_a_planted_violation_only(planted):
    assert list(planted.rule(planted.file, planted.bad))
    assert not list(planted.rule(planted.file, planted.good))


def test_front_page_offers_what_the_public_modules_list():
    public = set().union(*(listed_names(SOURCES[file]) for file in FRONTS))
    assert {name for name in gramnorm.__all__ if not name.startswith("_")} == public | {"classical"}


def code_is_a_doctest(file: str, text: str) -> Complaints:
    """Code on a page is run if it is a doctest; a block that looks like Python and is none, is not."""
    for match in re.finditer(r"^(```+|:::+)([^\n`]*)\n(.*?)^\1", text, flags=re.M | re.S):
        _, language, body = match.groups()
        named = re.search(r"\b(py|py3|pycon|python|python3|ipython)\b", language)
        looks = re.search(r"^(import|from) \w", body, flags=re.M)
        if (named or looks) and not body.startswith(">>> "):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{file}:{line}: a block of Python that is not a doctest"


def test_code_on_every_page_is_a_doctest():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    assert len(pages) > 8
    texts = {str(p.relative_to(ROOT)): p.read_text() for p in pages if "_build" not in p.parts}
    complaints = [c for file, text in texts.items() for c in code_is_a_doctest(file, text)]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("```python\nx = 1\n```\n", "```pycon\n>>> x = 1\n```\n"),
        ("```{code-block} python\nx = 1\n```\n", "```sh\npython3 -m venv .venv\n```\n"),
        ("text\n\n```\nfrom gramnorm import conv\n```\n", "```text\nprinted\n```\n"),
    ],
)
def test_code_that_is_no_doctest_is_found(bad, good):
    assert list(code_is_a_doctest("page.md", good + bad + good))
    assert not list(code_is_a_doctest("page.md", good + good))


def test_no_project_file_names_a_path_of_one_machine():
    folders = ("tests", "docs", "benchmarks", "examples", ".ci")
    files = [p for folder in folders for p in ROOT.glob(f"{folder}/**/*")] + list(ROOT.glob("*.*"))
    texts = [p for p in files if p.suffix in {"", ".cff", ".md", ".py", ".toml"} and p.is_file()]
    complaints = [
        c
        for path in texts
        if "_build" not in path.parts
        for c in no_path_of_one_machine(str(path.relative_to(ROOT)), path.read_text())
    ]
    assert not complaints, "\n".join(complaints)

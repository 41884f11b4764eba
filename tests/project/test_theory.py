"""The theory page and the code point at each other."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_backend

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "theory.md"
STATEMENT = re.compile(r"^\*\*(?:Theorem|Lemma) (\d+) \([^)]*\)\.\*\* \*\[(.*?)\]\*", re.M)
REFERENCE = re.compile(r"\b(?:Theorem|Lemma)s?\s+(\d+(?:(?:,|\s+and)\s+\d+)*)")


def statements():
    """Return, by number in the order of the page, the modules that a statement names."""
    return [
        (int(n), re.findall(r"`([\w.]+)`", uses)) for n, uses in STATEMENT.findall(PAGE.read_text())
    ]


def references():
    """Return the modules that name a statement, by its number."""
    found = defaultdict(set)
    for path in ROOT.glob("gramnorm/**/*.py"):
        module = ".".join(path.relative_to(ROOT / "gramnorm").with_suffix("").parts)
        for numbers in REFERENCE.findall(path.read_text()):
            for number in re.findall(r"\d+", numbers):
                found[int(number)].add(module.removesuffix(".__init__"))
    return found


def test_statements_are_numbered_in_the_order_of_the_page():
    numbers = [number for number, _ in statements()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) == len(re.findall(r"^\*\*(?:Theorem|Lemma) \d", PAGE.read_text(), re.M))


def test_every_statement_names_the_modules_that_name_it():
    assert dict(statements()) == {n: sorted(uses) for n, uses in references().items()}

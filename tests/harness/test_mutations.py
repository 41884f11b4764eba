"""Mutants are found where error terms are, and the runner tells caught ones from survivors."""

import json
import re
import subprocess
import sys

import pytest

from tests.harness import mutations
from tests.harness.mutation_arguments import ARGUMENTS

pytestmark = pytest.mark.no_backend


@pytest.fixture(scope="module")
def every():
    return {mutant.key: mutant for mutant in mutations.mutants()}


def test_mutants_are_found_in_all_rooms_and_have_names_of_their_own(every):
    assert len(every) == len(mutations.mutants()) > 400
    rooms = {mutant.module.split("/")[0] for mutant in every.values()}
    assert rooms >= {"_rigour", "_matrix", "_conv", "_rescaling.py", "network", "classical"}
    for key in (
        "_rigour/model.py Precision.kappa: halved `self.gamma(n)`",
        "_matrix/residual.py weighted_row_sum: off `prec.underflow(q)`",
        "_matrix/residual.py weighted_row_sum: off `prec.gamma(q + 8)`",
        "_conv/cells.py Cells.cosine: off `2e-15`",
    ):
        assert key in every


def test_mutants_are_python(every):
    for mutant in every.values():
        compile(mutant.source(), mutant.module, "exec")


CAUGHT = (
    "_rigour/model.py Precision.gamma: halved",
    "_rigour/sums.py loss: halved",
    "_matrix/residual.py Quotient.kato_temple: off `up",
    "_rigour/model.py module: off `HOST_UNIT`",
)
PROGRAM = """
import json
from tests.harness import mutations as m

def endless(_):
    while True:
        pass

every, found = m.mutants(), []
for key in {keys}:
    (mutant,) = [mutant for mutant in every if mutant.key.startswith(key)]
    found.append(m.run(mutant, (), 60))
for worst in (lambda _: iter(()), endless):
    m.worst_arithmetic = worst
    found.append(m.run(mutant, (), 1))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_some_are_caught_at_once_and_so_is_what_does_not_end():
    """In a process of its own: one that has imported JAX must not fork."""
    command = [sys.executable, "-c", PROGRAM.format(keys=CAUGHT)]
    run = subprocess.run(command, cwd=mutations.ROOT, capture_output=True, check=True, timeout=600)
    *caught, survived, endless = json.loads(run.stdout)
    for verdict, test in caught:
        assert verdict == "caught"
        assert "tests.rigour" in test
    assert survived == ["survived", ""]
    assert endless[0] == "caught"
    assert "did not end" in endless[1]


def test_it_goes_on_where_it_was_stopped(every, monkeypatch, tmp_path):
    some, path = list(every.values())[:3], tmp_path / "found.jsonl"
    path.write_text(
        "".join(
            json.dumps({"key": m.key, "verdict": "survived", "quick": True}) + "\n"
            for m in some[:2]
        )
    )
    ran = []
    monkeypatch.setattr(mutations, "worst_arithmetic", lambda _: iter(()))
    monkeypatch.setattr(mutations, "run", lambda m, *_: ran.append(m) or ("survived", ""))
    assert len(list(mutations.run_all(path, some, limit=1, quick=True))) == 1
    assert ran == [None, some[2]]  # without a mutant first
    assert set(mutations.results(path)) == {m.key for m in some}


def test_arguments_are_about_mutants_that_exist(every):
    for pattern, why in ARGUMENTS:
        assert any(re.search(pattern, key) for key in every), pattern
        assert why.endswith(".")

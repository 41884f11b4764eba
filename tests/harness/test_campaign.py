"""The long search: rounds add up, it goes on where it was stopped, and what is wrong stays."""

import json

import numpy as np
import pytest

from tests.harness import campaign, records, soundness

pytestmark = pytest.mark.no_backend

SMALL = ["--hours", "1e-9", "--share", "0.002", "--backends", "numpy"]


def run(path):
    status = campaign.main([*SMALL, "--file", str(path)])
    return status, campaign.Counts.read(path)


def test_rounds_add_up_and_go_on_with_other_cases(tmp_path):
    path = tmp_path / "counts.json"
    status, first = run(path)
    assert status == 0
    assert first.rounds == 1
    assert first.is_clean
    kinds = [sum(n.startswith(kind) for n in first.families) for kind in ("matrix", "chain", "rec")]
    assert min(kinds) > 0
    status, second = run(path)
    assert (status, second.rounds) == (0, 2)
    assert second.total("tried") == 2 * first.total("tried")
    assert second.libraries["numpy"]["matrix"] == 2 * first.libraries["numpy"]["matrix"]
    drawn = [[task for _, task in campaign.tasks_of(n, 0.002, ["numpy"])] for n in (0, 1)]
    assert drawn[0] != drawn[1]


def test_what_was_wrong_stays_wrong(tmp_path, monkeypatch):
    path = tmp_path / "counts.json"
    run(path)
    held = json.loads(path.read_text())
    name = next(n for n in held["families"] if n.startswith("matrix"))
    held["families"][name]["lower"] = 1
    path.write_text(json.dumps(held))
    status, counts = run(path)
    assert status == 1
    assert counts.total("lower") == 1
    counts.mended.append("what was found")
    text = campaign.page(counts)
    assert "**1 bounds on the wrong side**" in text
    assert "- what was found\n" in text


def test_a_verdict_of_the_checker_counts(monkeypatch):
    monkeypatch.setattr(records, "verdict", lambda _: ("rejected", "for a test"))
    report = campaign.RecordTask(0, 2).run()
    assert report.total("upper", "record") == 2
    assert "for a test" in report.failures[0]


def test_a_chain_below_the_truth_counts(monkeypatch):
    monkeypatch.setattr(campaign.chains, "bounds", lambda *_: [0.0])
    assert campaign.ChainTask(0, 3).run().violations > 0


def test_a_task_that_raises_is_a_failure(monkeypatch, tmp_path):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(soundness.MatrixTask, "run", broken)
    status, counts = run(tmp_path / "counts.json")
    assert status == 1
    assert "ZeroDivisionError" in counts.failures[0]


def test_every_library_has_its_turn():
    present = list(soundness.SHARES)
    libraries = {task.library for n in (0, 1) for _, task in campaign.tasks_of(n, 1.0, present)
                 if hasattr(task, "library")}  # fmt: skip
    assert libraries == set(present)
    later = {task.library for kind, task in campaign.tasks_of(1, 1.0, present) if kind == "matrix"}
    assert "jax-device" not in later


def test_gaps_that_are_no_numbers_do_not_count():
    over = [np.asarray([np.inf, 0.25, np.nan])]
    assert campaign.Family.of(soundness.Count(3, over=over)).worst == 0.25


def test_the_page_is_that_of_the_counts():
    counts = campaign.Counts.read(campaign.COUNTS)
    assert counts.rounds > 0
    assert campaign.PAGE.read_text() == campaign.page(counts)

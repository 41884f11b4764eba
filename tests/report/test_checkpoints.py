"""Checkpoints of PyTorch as people have them: dicts within dicts, and objects beside the weights."""

import argparse
import collections
import pathlib
import sys
import threading
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm.report.files import torch as reader
from gramnorm.report.files import tree
from gramnorm.report.files.contents import Contents, ReadError
from gramnorm.report.files.readers import read_path
from tests.harness.reports import Bomb, assert_refused, run, run_json

pytestmark = pytest.mark.extra


class Settings:
    """An object of a class that no other machine has."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class NamesDict(dict[str, Any]):
    """A dict with attributes, as configuration libraries have them."""


def names(found: Contents) -> list[str]:
    return [layer.name for layer in found.layers]


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", minversion="2.10")


@pytest.fixture
def state(torch: Any) -> dict[str, Any]:
    return {"fc.weight": torch.arange(6.0).reshape(3, 2), "fc.bias": torch.ones(3)}


@pytest.fixture
def saved(tmp_path: Path, torch: Any) -> Any:
    def save(content: Any) -> Path:
        torch.save(content, tmp_path / "x.pt")
        return tmp_path / "x.pt"

    return save


class TestNested:
    def test_the_one_dict_of_weights_is_found_at_any_depth(self, saved: Any, state: Any) -> None:
        found = read_path(saved({"a": {"b": state, "epoch": 3}, "rng": [1, 2]}))
        assert names(found) == ["fc.weight"]
        np.testing.assert_array_equal(found.layers[0].weight, state["fc.weight"].numpy())
        assert found.notes == ["read the entry 'a.b' of the checkpoint"]
        beside = {name for name, why in found.skipped.items() if why == "beside the entry 'a.b'"}
        assert beside == {"a.epoch", "rng"}

    def test_entry_chooses_among_several(self, saved: Any, state: Any, capsys: Any) -> None:
        twice = {name: 2 * values for name, values in state.items()}
        path = saved({"model": state, "best": {"model": twice}})
        assert_refused(capsys, path, "several dicts of tensors (model, best.model)")
        assert_refused(capsys, path, "--entry 'model'")
        for entry, factor in (("model", 1), ("best.model", 2), ("best", 2)):
            (layer,) = read_path(path, entry=entry).layers
            np.testing.assert_array_equal(layer.weight, factor * state["fc.weight"].numpy())
        both = read_path(path, entry=".")
        assert names(both) == ["model.fc.weight", "best.model.fc.weight"]
        code, report = run_json(capsys, path, "--entry", "best.model")
        assert code == 0
        assert report["notes"] == ["read the entry 'best.model' of the checkpoint"]
        code, _, err = run(capsys, "report", path, "--entry", "mode")
        assert code == 2
        assert "no dicts called 'mode'; those with weights are model, best.model" in err

    def test_entry_is_refused_where_there_are_no_dicts(self, tmp_path: Path, capsys: Any) -> None:
        np.savez(tmp_path / "x.npz", w=np.ones((2, 2)))
        code, _, err = run(capsys, "report", tmp_path / "x.npz", "--entry", "model")
        assert code == 2
        assert "--entry chooses among nested dicts" in err
        assert run(capsys, "report", "--entry", "model")[0] == 2

    def test_a_layer_is_not_taken_for_the_network(
        self, saved: Any, torch: Any, capsys: Any
    ) -> None:
        # the scale of the norm, another dict, would be left out of the product
        path = saved({"conv": {"weight": torch.ones(4, 3, 3, 3)}, "bn": {"weight": torch.ones(4)}})
        assert_refused(capsys, path, "several dicts of tensors (conv, bn)")
        assert names(read_path(path, entry=".")) == ["conv.weight"]
        assert "bn.weight" in read_path(path, entry=".").obstacles

    def test_states_of_optimizers_are_no_network(self, saved: Any, state: Any, torch: Any) -> None:
        weight = torch.nn.Parameter(torch.ones(3, 2))
        adam = torch.optim.Adam([weight])
        weight.sum().backward()
        adam.step()
        found = read_path(saved({"net": state, "opt": adam.state_dict(), "optim": {"w": weight}}))
        assert names(found) == ["fc.weight"]

    def test_what_stands_beside_may_be_called_like_what_is_within(
        self, saved: Any, state: Any, torch: Any
    ) -> None:
        found = read_path(saved({"model": {**state, "step": torch.tensor(3)}, "step": 3}))
        assert names(found) == ["fc.weight"]
        assert found.skipped["step"] == "a counter, or indices"

    def test_two_paths_of_one_name_are_refused(self, saved: Any, state: Any, capsys: Any) -> None:
        path = saved({"a.b": state, "a": {"b": state}})
        code, _, err = run(capsys, "report", path, "--entry", "a.b")
        assert code == 2
        assert "2 dicts called 'a.b'" in err
        code, _, err = run(capsys, "report", path, "--entry", ".")
        assert code == 2
        assert "same name" in err


class TestHostileNesting:
    def test_a_dict_that_holds_itself(self, saved: Any, state: Any, capsys: Any) -> None:
        state["self"] = {"again": state}
        assert_refused(capsys, saved(state), "nested more than 64 deep, or in themselves")

    def test_ten_thousand_levels(self, tmp_path: Path, torch: Any, state: Any, capsys: Any) -> None:
        for _ in range(10**4):
            state = {"a": state}

        def save() -> None:  # pickle is recursive, the reader must not be
            sys.setrecursionlimit(10**6)
            torch.save(state, tmp_path / "x.pt")

        limit, size = sys.getrecursionlimit(), threading.stack_size(2**29)
        thread = threading.Thread(target=save)
        thread.start()
        thread.join()
        threading.stack_size(size)
        sys.setrecursionlimit(limit)
        assert_refused(capsys, tmp_path / "x.pt", "nested more than 64 deep")

    def test_endless_paths_through_few_dicts(
        self, saved: Any, state: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tree, "MAX_VISITS", 10**4)
        for _ in range(60):
            state = {"a": state, "b": state}
        assert_refused(capsys, saved(state), "more than 10000 entries")

    def test_lists_in_themselves(self, saved: Any, state: Any) -> None:
        endless: list[Any] = []
        endless.append(endless)
        assert names(read_path(saved({**state, "list": endless}))) == ["fc.weight"]


class TestObjects:
    def test_what_stands_beside_the_weights_is_passed_over(self, saved: Any, state: Any) -> None:
        beside = {
            "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/x")),
            "more": types.SimpleNamespace(a=[1]),
            "best": np.float64(0.5),
            "epoch": np.int64(3),
            "flag": np.True_,
            "counts": collections.Counter("aab"),
            "groups": collections.defaultdict(int, {"a": 1}),
            "settings": Settings(depth=3),
            "slots": Slotted(3),
            "names": NamesDict(lr=1),
            "array": np.ones((3, 3)),
        }
        found = read_path(saved({"model": state, **beside}))
        assert names(found) == ["fc.weight"]
        assert not found.failed
        assert {*beside} <= {name.split(".")[0] for name in found.skipped}

    def test_among_the_weights_only_harmless_ones_are(self, saved: Any, state: Any) -> None:
        beside = {"args": argparse.Namespace(lr=0.1), "best": np.float32(1)}
        unknown = {"q.weight": np.ones((3, 3)), "settings": Settings(weight=3)}
        found = read_path(saved({**state, **beside, **unknown}))
        assert names(found) == ["fc.weight"]
        assert {*beside} < {*found.skipped}
        assert {*found.failed} == {*unknown}
        assert "a numpy.ndarray, which is not loaded" in found.failed["q.weight"]

    def test_dicts_of_other_kinds_are_dicts(self, saved: Any, state: Any) -> None:
        for kind in (NamesDict, lambda inner: collections.defaultdict(int, inner)):
            assert names(read_path(saved({"model": kind(state)}))) == ["fc.weight"]
        assert names(read_path(saved(NamesDict(state)))) == ["fc.weight"]

    def test_weights_among_attributes_are_not_lost(
        self, saved: Any, state: Any, torch: Any, capsys: Any
    ) -> None:
        hiding = NamesDict(a=1)
        hiding.__dict__["kernel"] = torch.ones(3, 3)
        assert_refused(capsys, saved(hiding), "not a dict of tensors")
        found = read_path(saved({**state, "hiding": hiding}))
        assert "with tensors in it" in found.failed["hiding"]

    def test_objects_with_weights_are_in_doubt(
        self, saved: Any, state: Any, torch: Any, capsys: Any
    ) -> None:
        path = saved({"state": state, "model": Settings(weight=torch.ones(3, 3))})
        assert_refused(capsys, path, "several dicts of tensors (state, the whole)")
        assert names(read_path(path, entry="state")) == ["fc.weight"]
        assert_refused(capsys, saved({"model": Slotted(torch.ones(3, 3))}), "Slotted")
        assert_refused(capsys, saved(Settings(weight=torch.ones(3, 3))), "Settings")

    def test_nothing_of_theirs_is_run(
        self, saved: Any, state: Any, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        loud = {"__init__": _fail, "__new__": _fail, "__setstate__": _fail, "__getattr__": _fail}
        path = saved({"model": state, "settings": Settings(a=1)})
        for name, method in loud.items():
            monkeypatch.setattr(Settings, name, method, raising=False)
        assert names(read_path(path)) == ["fc.weight"]
        assert_refused(
            capsys, saved({"model": state, "args": argparse.Namespace(x=Bomb())}), "mkdir"
        )
        assert not Path("unpickled").exists()

    def test_stand_ins_are_gone_afterwards(self, saved: Any, state: Any, torch: Any) -> None:
        before = {*torch.serialization.get_safe_globals()}
        read_path(saved({"model": state, "args": argparse.Namespace()}))
        assert {*torch.serialization.get_safe_globals()} == before


def _fail(*_: Any, **__: Any) -> Any:
    pytest.fail("code of the file was run")


class TestPrograms:
    def test_scripts_are_called_so_and_the_way_out_works(
        self, tmp_path: Path, torch: Any, capsys: Any
    ) -> None:
        path = tmp_path / "script.pt"
        with warnings.catch_warnings(action="ignore"):  # newer PyTorch calls them deprecated
            torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 4))).save(str(path))
            assert_refused(capsys, path, "a TorchScript archive, which is a program")
            assert_refused(capsys, path, "torch.jit.load(FILE).state_dict()")
            torch.save(torch.jit.load(str(path)).state_dict(), path)
        assert names(read_path(path)) == ["0.weight"]

    def test_exported_programs_are_called_so_and_the_way_out_works(
        self, tmp_path: Path, torch: Any, capsys: Any
    ) -> None:
        path = tmp_path / "program.pt2"
        with warnings.catch_warnings(action="ignore"):
            program = torch.export.export(torch.nn.Linear(3, 4), (torch.ones(2, 3),))
            torch.export.save(program, path)
            assert_refused(capsys, path, "an archive of torch.export, which is a program")
            torch.save(torch.export.load(path).state_dict, path)
        assert names(read_path(path)) == ["weight"]


def test_names_that_a_loader_would_call_are_no_stand_ins() -> None:
    for name in ("builtins eval", "os system", "posix mkdir", "argparse Namespace"):
        with pytest.raises(ReadError, match="nothing was run"):
            list(reader._stand_ins([name], set()))

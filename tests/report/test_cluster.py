"""Reports over a cluster: the same rows, whatever becomes of the workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm._arrays import threads
from gramnorm.report import Row, bound_layer
from gramnorm.report.cluster import ClusterError, bound_layers
from gramnorm.report.files.contents import Layer
from gramnorm.report.files.several import read_paths
from gramnorm.report.work import How, bound_here
from tests.harness.reports import BOUNDS, bounds, run, run_json, some
from tests.harness.tensors import write_safetensors

pytestmark = pytest.mark.extra

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")


def told(row: Row) -> tuple[Any, ...]:
    return tuple(getattr(row, key) for key in BOUNDS if key != "gap")


def write_layers(path: Path, count: int, *shape: int) -> Path:
    rng = np.random.default_rng(0)
    arrays = {f"l{k}.weight": rng.standard_normal(shape).astype(np.float32) for k in range(count)}
    return write_safetensors(path, arrays | {"conv.weight": some(4, 2, 3, 3)})


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Return a client of a cluster in this process: quick, and with a scheduler all the same.

    It is not the default, as it need not be.
    """
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


class TestRows:
    def test_they_are_those_of_this_process(self, tmp_path: Path, client: Any) -> None:
        layers = read_paths([write_layers(tmp_path / "x.safetensors", 7, 30, 20)]).layers
        found = dict(bound_layers(client, layers, rtol=1e-3))
        assert sorted(found) == list(range(8))
        for which, layer in enumerate(layers):
            assert told(found[which]) == told(bound_layer(layer, rtol=1e-3))

    def test_arrays_in_memory_are_sent_or_bounded_here(
        self, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layers = [Layer(f"w{k}", some(3 + k, 4)) for k in range(4)]
        here: list[bool] = []
        shared = threads.shared
        monkeypatch.setattr("gramnorm.report.cluster.SHIPPED_BYTES", 16 * 4)
        monkeypatch.setattr(
            "gramnorm.report.cluster.threads.shared",
            lambda function, parts: (
                here.append(threading.current_thread() is threading.main_thread())
                or shared(function, parts)
            ),
        )
        found = dict(bound_layers(client, layers))
        assert sum(here) == 2
        assert [told(found[k]) for k in range(4)] == [told(bound_layer(layer)) for layer in layers]

    def test_a_layer_without_a_bound_leaves_the_others(self, client: Any) -> None:
        layers = [Layer("a", some(3, 4)), Layer("b", some(3, 4, 2), {"groups": 2})]
        found = dict(bound_layers(client, layers))
        assert found[0].error is None
        assert found[1].error == bound_layer(layers[1]).error

    def test_no_layers_are_no_work(self, client: Any) -> None:
        assert list(bound_layers(client, [])) == []

    def test_options_are_those_of_a_layer(self, client: Any) -> None:
        layer = Layer("a", some(4, 3, 3, 3), {"padding": 1})
        choices: dict[str, Any] = {"input_shape": (6, 6), "padding_mode": "circular", "rtol": 1e-2}
        ((_, row),) = bound_layers(client, [layer], **choices)
        assert told(row) == told(bound_layer(layer, **choices))


class TestComplaints:
    def test_a_file_that_workers_do_not_see_is_named_before_the_work(
        self, tmp_path: Path, client: Any
    ) -> None:
        path = write_layers(tmp_path / "x.safetensors", 1, 3, 4)
        layers = read_paths([path]).layers
        path.rename(tmp_path / "y.safetensors")
        with pytest.raises(
            ClusterError, match=r"worker .* cannot read .*x\.safetensors.*same path"
        ):
            list(bound_layers(client, layers))
        write_layers(path, 2, 3, 4)
        with pytest.raises(ClusterError, match="is not the file whose header was read"):
            list(bound_layers(client, layers))

    def test_another_version_on_the_workers_is_named(
        self, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers = iter([{"gramnorm": "0", "numpy": "2"}, {"gramnorm": "1", "numpy": "2"}])
        monkeypatch.setattr(
            "gramnorm.report.cluster._everywhere", lambda *_: {"tcp://w": next(answers)}
        )
        with pytest.raises(
            ClusterError, match=r"the worker tcp://w has .* install the same versions"
        ):
            list(bound_layers(client, [Layer("a", some(3, 4))]))

    def test_a_scheduler_without_workers_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gramnorm.report.cluster.WAIT", 0.2)
        with (
            distributed.LocalCluster(
                n_workers=0, processes=False, dashboard_address="127.0.0.1:0"
            ) as cluster,
            distributed.Client(cluster) as client,
            pytest.raises(ClusterError, match="has no workers: start some with `dask worker"),
        ):
            list(bound_layers(client, [Layer("a", some(3, 4))]))

    def test_an_address_where_nobody_answers_is_named(
        self, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gramnorm.report.cluster.WAIT", 0.5)
        path = write_layers(tmp_path / "x.safetensors", 1, 3, 4)
        for address in ("tcp://127.0.0.1:9", "nonsense://x"):
            code, out, err = run(capsys, "report", "--json", path, "--scheduler", address)
            assert (code, out) == (2, "")
            assert "no scheduler answers at" in err
            assert "--workers N" in err
            assert dask.config.get("scheduler", None) is None  # Dask works on without a cluster

    @pytest.mark.parametrize("option", [("--workers", "2"), ("--scheduler", "tcp://127.0.0.1:9")])
    def test_a_missing_package_is_one_line(
        self, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, option: Any
    ) -> None:
        path = write_layers(tmp_path / "x.safetensors", 1, 3, 4)
        monkeypatch.setitem(sys.modules, "distributed", None)
        code, out, err = run(capsys, "report", "--json", path, *option)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert 'pip install "gramnorm[dask]"' in err

    @pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
    def test_numbers_of_workers_are_positive(self, capsys: Any, number: str) -> None:
        code, _, err = run(capsys, "report", "--workers", number)
        assert code == 2
        assert "--workers" in err


_IMPORTS = """
import sys
from gramnorm.report import cli
cli.main(["report", "--csv"])
print(sorted({name.partition(".")[0] for name in sys.modules} & {"dask", "distributed"}))
"""


def test_a_report_does_not_import_dask_unless_asked() -> None:
    command = [sys.executable, "-c", _IMPORTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
class TestProcesses:
    def test_the_table_is_the_same_bit_for_bit(self, tmp_path: Path, capsys: Any) -> None:
        path = write_layers(tmp_path / "x.safetensors", 6, 700, 500)
        _, here = run_json(capsys, path)
        code, there = run_json(capsys, path, "--workers", "2")
        assert code == 0
        assert bounds(there) == bounds(here)
        for key in ("product_upper", "no_product", "skipped", "notes", "missing"):
            assert there[key] == here[key]

    def test_resuming_goes_by_what_workers_find(self, tmp_path: Path, capsys: Any) -> None:
        path, kept = write_layers(tmp_path / "x.safetensors", 4, 50, 40), tmp_path / "kept.json"
        _, here = run_json(capsys, path, "--resume", kept)
        _, there = run_json(capsys, path, "--resume", kept, "--workers", "1")
        assert bounds(there) == bounds(here)
        assert f"5 of 5 layers are from '{kept}'" in there["notes"]

    def test_a_worker_that_is_killed_costs_its_layer_and_changes_no_bit(
        self, tmp_path: Path
    ) -> None:
        layers = read_paths([write_layers(tmp_path / "x.safetensors", 8, 1500, 1000)]).layers
        here: dict[int, Row] = {}
        bound_here(
            layers,
            How(),
            known=lambda _: None,
            begin=lambda _: None,
            keep=lambda which, one: here.update({which: one.row}),
        )
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            pids = set(client.run(os.getpid).values())
            there, lost = {}, 0
            for which, row in bound_layers(client, layers):
                there[which] = row
                if len(there) == 2:  # one that is at work: both are
                    lost = min(pids)
                    os.kill(lost, signal.SIGKILL)
            after = set(client.run(os.getpid).values())
        assert lost not in after
        assert sorted(there) == sorted(here)
        assert [told(there[k]) for k in sorted(there)] == [told(here[k]) for k in sorted(here)]

    def test_a_layer_that_kills_its_workers_leaves_the_others(self, tmp_path: Path) -> None:
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "deadly.py").write_text(
            "import os, signal\n"
            "class Deadly:\n"
            "    shape = (2, 2)\n    ndim = 2\n    size = 4\n    nbytes = 16\n"
            "    def __array__(self, *_, **__):\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        script = (
            "import sys, distributed, json\n"
            "from deadly import Deadly\nimport numpy as np\n"
            "from gramnorm.report.files.contents import Layer\n"
            "from gramnorm.report.cluster import bound_layers\n"
            "if __name__ == '__main__':\n"
            "    with distributed.LocalCluster(n_workers=2, threads_per_worker=1,"
            " dashboard_address='127.0.0.1:0') as cluster, distributed.Client(cluster) as client:\n"
            "        layers = [Layer('a', Deadly())] + [Layer(f'l{k}', np.eye(3)) for k in range(6)]\n"
            "        found = dict(bound_layers(client, layers))\n"
            "    print(json.dumps([found[k].error for k in sorted(found)]))\n"
        )
        (tmp_path / "main.py").write_text(script)
        path = os.pathsep.join([str(folder), *sys.path])
        done = subprocess.run(
            [sys.executable, tmp_path / "main.py"],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            check=True,
            timeout=300,
        )
        first, *others = json.loads(done.stdout)
        assert "each worker that had it was lost" in first
        assert others == [None] * 6

    def test_an_interruption_prints_what_is_finished(self, tmp_path: Path) -> None:
        path, kept = write_layers(tmp_path / "x.safetensors", 40, 1600, 1400), tmp_path / "k.json"
        command = [sys.executable, "-m", "gramnorm", "report", "--json", str(path)]
        command += ["--workers", "1", "--resume", str(kept)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, start_new_session=True, **pipes) as process:
            deadline = time.monotonic() + 200
            while time.monotonic() < deadline:
                if kept.exists() and json.loads(kept.read_text())["rows"]:
                    break
                time.sleep(0.2)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it, too
            out, err = process.communicate(timeout=100)
        report = json.loads(out)
        assert (process.returncode, err) == (130, b"")
        assert 0 < len(report["layers"]) < 41
        assert len(report["layers"]) + len(report["unfinished"]) == 41

    def test_a_scheduler_and_workers_elsewhere(self, tmp_path: Path, capsys: Any) -> None:
        path = write_layers(tmp_path / "x.safetensors", 3, 60, 50)
        _, here = run_json(capsys, path)
        with distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster:
            given = path, "--scheduler", cluster.scheduler_address
            assert bounds(run_json(capsys, *given)[1]) == bounds(here)
            shutil.copy(path, tmp_path / "y")
            assert len(run_json(capsys, tmp_path / "y", *given[1:])[1]["layers"]) == 4

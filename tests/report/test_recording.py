"""Records of reports: which layers have one, and that `gramnorm verify` proves them."""

import json
import os

import numpy as np
import pytest

from gramnorm.report import cli
from tests.harness.reports import some, write_npz

pytestmark = pytest.mark.extra


@pytest.fixture
def network(tmp_path):
    return write_npz(
        tmp_path / "net.npz",
        layers={"conv1.weight": {"stride": 2, "padding": 1, "input_shape": [5, 5]}},
        **{"conv1.weight": some(3, 2, 3, 3), "fc.weight": some(3, 4), "fc.bias": some(3)},
    )


def recorded(network, tmp_path, *arguments):
    path = tmp_path / "proof.json"
    code = cli.main(["report", str(network), "--csv", "--record", str(path), *arguments])
    assert code == 0
    return path, json.loads(path.read_text())


@pytest.mark.parametrize("arguments", [(), ("--input-shape", "file"), ("--input-shape", "4")])
def test_layers_of_a_report_are_recorded_and_verified(network, tmp_path, capsys, arguments):
    path, document = recorded(network, tmp_path, *arguments)
    assert [record["name"] for record in document["records"]] == ["conv1.weight", "fc.weight"]
    capsys.readouterr()
    for files in ([], [str(network)]):
        assert cli.main(["verify", str(path), *files]) == 0
        assert capsys.readouterr().out.count(": verified: ") == 2


def test_record_holds_the_bounds_of_the_report_but_for_its_slack(network, tmp_path, capsys):
    path = tmp_path / "proof.json"
    cli.main(["report", str(network), "--json", "--record", str(path)])
    rows = json.loads(capsys.readouterr().out)["layers"]
    for row, record in zip(rows, json.loads(path.read_text())["records"], strict=True):
        lower, upper = (float.fromhex(record[side]["bound"]) for side in ("lower", "upper"))
        assert lower <= row["upper"]
        assert row["lower"] <= upper <= row["upper"] * 1.002


def test_circular_padding_is_recorded_on_the_circle(network, tmp_path, capsys):
    arguments = ("--padding-mode", "circular", "--input-shape", "4")
    path, document = recorded(network, tmp_path, *arguments)
    assert document["records"][0]["operator"]["domain"] == {"circle": [4, 4]}
    assert cli.main(["verify", str(path)]) == 0


def test_other_weights_are_rejected(network, tmp_path, capsys):
    path, _ = recorded(network, tmp_path)
    other = write_npz(tmp_path / "other.npz", **{"conv1.weight": some(3, 2, 3, 3) + 1})
    capsys.readouterr()
    assert cli.main(["verify", str(path), str(other)]) == 1
    conv, fc = capsys.readouterr().out.splitlines()
    assert "conv1.weight: rejected: the kernel has another SHA-256" in conv
    assert "fc.weight: rejected: there is no array 'fc.weight' in the file" in fc


def test_what_has_no_record_is_named_with_the_reason(tmp_path):
    network = write_npz(
        tmp_path / "net.npz",
        **{
            "conv/kernel": some(3, 3, 2, 5),
            "fc.weight": some(3, 4),
            "bn.weight": some(3) ** 2,
            "bn.running_var": some(3) ** 2,
            "bn.running_mean": some(3),
        },
    )
    _, document = recorded(network, tmp_path)
    assert [record["name"] for record in document["records"]] == ["fc.weight"]
    assert "order hwio" in document["left_out"]["conv/kernel"]
    assert any("batch norm" in reason for reason in document["left_out"].values())


def test_layer_that_is_refused_a_record_is_named(tmp_path):
    network = write_npz(
        tmp_path / "net.npz",
        layers={"conv1.weight": {"padding": 1, "padding_mode": "reflect", "input_shape": [5, 5]}},
        **{"conv1.weight": some(3, 2, 3, 3), "fc.weight": some(3, 4)},
    )
    _, document = recorded(network, tmp_path, "--input-shape", "file")
    assert "records are of padding_mode" in document["left_out"]["conv1.weight"]


def test_several_files_have_no_record(network, tmp_path, capsys):
    other = write_npz(tmp_path / "other.npz", **{"fc.weight": some(3, 4)})
    files = [str(network), str(other)]
    assert cli.main(["report", *files, "--csv", "--record", str(tmp_path / "proof.json")]) == 2
    assert "--record is about one FILE" in capsys.readouterr().err


def test_record_that_cannot_be_written_is_one_line(network, tmp_path, capsys):
    path = tmp_path / "absent" / "proof.json"
    assert cli.main(["report", str(network), "--csv", "--record", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert os.strerror(2) in error


def test_report_without_records_is_one_line(tmp_path, capsys):
    network = write_npz(tmp_path / "net.npz", **{"fc.weight": np.full((2, 2), np.nan)})
    path = tmp_path / "proof.json"
    assert cli.main(["report", str(network), "--csv", "--record", str(path)]) == 2
    assert "must be finite" in capsys.readouterr().err
    assert not path.exists()


def test_layers_of_a_residual_graph_are_verified_by_their_arrays_saved_apart(tmp_path, capsys):
    """Strides, a projection and a layer whose values are not in the record: found by its hash."""
    onnx = pytest.importorskip("onnx")
    weights = {"a": some(48, 40, 3, 3), "b": some(48, 40, 1, 1)}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "a"], ["t"], strides=[2, 2], pads=[1] * 4),
        onnx.helper.make_node("Conv", ["x", "b"], ["s"], strides=[2, 2]),
        onnx.helper.make_node("Add", ["t", "s"], ["y"]),
    ]
    value = onnx.helper.make_tensor_value_info
    ends = [value("x", 1, [1, 40, 8, 8])], [value("y", 1, None)]
    tensors = [onnx.numpy_helper.from_array(w, name) for name, w in weights.items()]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", *ends, tensors))
    onnx.save(model, tmp_path / "net.onnx")
    path, document = recorded(tmp_path / "net.onnx", tmp_path, "--rtol", "0.05")
    strides = [record["operator"]["stride"] for record in document["records"]]
    assert strides == [[2, 2], [2, 2]]
    capsys.readouterr()
    assert cli.main(["verify", str(path)]) == 2
    assert "1: cannot check: the record lacks the numbers" in capsys.readouterr().out
    assert cli.main(["verify", str(path), str(tmp_path / "net.onnx")]) == 2
    assert "the weights are no .npy, .npz or safetensors" in capsys.readouterr().out
    np.savez(tmp_path / "arrays.npz", *weights.values())
    assert cli.main(["verify", str(path), str(tmp_path / "arrays.npz")]) == 0
    assert capsys.readouterr().out.count(": verified: ") == 2

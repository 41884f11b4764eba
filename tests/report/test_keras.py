"""Files of Keras, built here as Keras writes them: layouts, geometry, chains, and hostile HDF5."""

import io
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm.report import bound_layer
from gramnorm.report.files import contents, hdf5, keras_config
from gramnorm.report.files.contents import Contents, ReadError
from gramnorm.report.files.readers import read_stream
from tests.harness.oracles import conv_matrix, sigma
from tests.harness.reports import assert_refused, run_json, some

pytestmark = pytest.mark.extra
h5py = pytest.importorskip("h5py")

SEED = 5


def layer(kind: str, name: str, *arrays: np.ndarray, shape: Any = None, **config: Any) -> Any:
    """Return what describes a layer, and its arrays."""
    return {
        "class_name": kind,
        "module": "keras.layers",
        "registered_name": None,
        "config": {"name": name} | config,
        "build_config": {"input_shape": shape},
    }, arrays


def convolution(kind: str, name: str, *arrays: np.ndarray, **config: Any) -> Any:
    """Return a layer with the arguments that Keras writes for each convolution."""
    axes = int(kind.partition("Conv")[2][0])
    usual = {"kernel_size": list(arrays[0].shape[:axes]), "strides": [1] * axes, "groups": 1}
    usual |= {"dilation_rate": [1] * axes, "padding": "valid", "data_format": "channels_last"}
    return layer(kind, name, *arrays, **(usual | {"activation": "relu"} | config))


def model(*layers: Any, kind: str = "Sequential", name: str = "sequential") -> Any:
    """Return a model's description with the arrays of its layers."""
    config = {"name": name, "layers": [entry for entry, _ in layers]}
    described = {"class_name": kind, "module": "keras", "registered_name": None, "config": config}
    return described, layers


def write_weights(group: Any, layers: Any, *, named: bool = True) -> None:
    """Write arrays into numbered places, under the names of classes."""
    count: dict[str, int] = {}
    for entry, arrays in layers:
        snake = keras_config.snake_case(entry["class_name"])
        number = count.get(snake, 0)
        count[snake] = number + 1
        own = group.create_group(f"layers/{snake}" + f"_{number}" * (number > 0))
        if "layers" in entry["config"]:
            write_weights(own, arrays)
        places = own.create_group("vars")
        if named:
            places.attrs["name"] = entry["config"]["name"]
        for index, array in enumerate(() if "layers" in entry["config"] else arrays):
            places[str(index)] = array


def h5_bytes(fill: Any) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        fill(file)
    return stream.getvalue()


def keras_bytes(described: Any, layers: Any, *, named: bool = True) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(described))
        weights = h5_bytes(lambda file: write_weights(file, layers, named=named))
        archive.writestr("model.weights.h5", weights)
    return stream.getvalue()


def older_bytes(described: Any, layers: Any, *, suffix: str = "") -> bytes:
    words = {"Dense": ("kernel", "bias"), "DepthwiseConv2D": ("depthwise_kernel", "bias")}

    def fill(file: Any) -> None:
        if described is not None:
            file.attrs["model_config"] = json.dumps(described)
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [entry["config"]["name"] for entry, _ in layers]
        for entry, arrays in layers:
            name = entry["config"]["name"]
            for word, array in zip(
                words.get(entry["class_name"], words["Dense"]), arrays, strict=False
            ):
                weights[f"{name}/sequential/{name}/{word}{suffix}"] = array

    return h5_bytes(fill)


def read(content: bytes, **options: Any) -> Contents:
    return read_stream(io.BytesIO(content), "x", **options)


def kernels(found: Contents) -> dict[str, Any]:
    return {layer.name: layer for layer in found.layers}


def network() -> Any:
    """Return a chain of each kind of layer."""
    return model(
        layer("InputLayer", "input", batch_shape=[None, 12, 12, 3]),
        convolution(
            "Conv2D",
            "first",
            some(3, 3, 3, 8),
            some(8),
            strides=[2, 2],
            padding="same",
            shape=[None, 12, 12, 3],
        ),
        layer(
            "BatchNormalization",
            "bn",
            some(8),
            some(8),
            some(8),
            abs(some(8)),
            scale=True,
            center=True,
        ),
        convolution("DepthwiseConv2D", "depth", some(3, 3, 8, 2), some(16), shape=[None, 6, 6, 8]),
        convolution(
            "SeparableConv2D",
            "sep",
            some(3, 3, 16, 1),
            some(1, 1, 16, 6),
            some(6),
            dilation_rate=[2, 1],
        ),
        convolution(
            "Conv2DTranspose",
            "up",
            some(3, 3, 5, 6),
            some(5),
            strides=[2, 2],
            padding="same",
            shape=[None, 4, 4, 6],
        ),
        convolution(
            "Conv2D", "grouped", some(3, 3, 1, 10), some(10), groups=5, activation="linear"
        ),
        layer("MaxPooling2D", "pool", pool_size=[2, 2], strides=[2, 2]),
        layer("Flatten", "flat"),
        layer("Dense", "out", some(40, 10), some(10), activation="softmax"),
    )


class TestFormats:
    def test_description_states_the_geometry(self, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "x.keras").write_bytes(keras_bytes(*network()))
        code, report = run_json(capsys, tmp_path / "x.keras")
        assert code == 0
        assert {row["name"]: row["kind"] for row in report["layers"]} == {
            "first/kernel": "conv2d, stride (2, 2)",
            "bn/gamma": "batch norm",
            "depth/depthwise_kernel": "conv2d, depthwise",
            "sep/depthwise_kernel": "conv2d, depthwise, dilation (2, 1)",
            "sep/pointwise_kernel": "conv2d",
            "up/kernel": "conv2d, stride (2, 2), transposed",
            "grouped/kernel": "conv2d, depthwise",
            "out/kernel": "dense",
        }
        assert not any(row["assumed"] for row in report["layers"])
        assert report["product_upper"] is not None

    @pytest.mark.parametrize("named", [True, False])
    def test_all_ways_to_write_a_model_hold_the_same_kernels(self, named: bool) -> None:
        described, layers = network()
        expected = kernels(read(keras_bytes(described, layers)))
        alone = kernels(read(h5_bytes(lambda file: write_weights(file, layers, named=named))))
        place = {layer.name: layer.weight for layer in expected.values()}
        assert len(alone) == len(place)
        for found in alone.values():
            twins = [w for w in place.values() if np.array_equal(w, found.weight)]
            assert twins
            assert found.geometry is None
        if named:
            assert alone.keys() == place.keys()
        unnamed = read(keras_bytes(described, layers, named=False))
        assert kernels(unnamed).keys() == place.keys()

    @pytest.mark.parametrize("suffix", ["", ":0"])
    def test_older_files(self, suffix: str) -> None:
        described, layers = model(
            convolution("Conv2D", "one", some(3, 3, 3, 8), some(8), strides=[2, 2]),
            convolution("DepthwiseConv2D", "two", some(3, 3, 8, 1), some(8)),
            layer("Dense", "out", some(8, 4), some(4)),
        )
        found = kernels(read(older_bytes(described, layers, suffix=suffix)))
        assert list(found) == ["one/kernel", "two/depthwise_kernel", "out/kernel"]
        assert found["one/kernel"].geometry["stride"] == (2, 2)
        assert found["two/depthwise_kernel"].groups == 8
        bare = read(older_bytes(None, layers, suffix=suffix))
        assert all(layer.assumed for layer in bare.layers if layer.kind == "conv")

    def test_a_kernel_of_a_depthwise_layer_is_one_in_older_files(self) -> None:
        # with one tap and one output per input it would have a lower bound as an ordinary kernel
        values = some(1, 1, 9, 1)

        def fill(file: Any) -> None:
            for name in ("depthwise_conv2d", "any"):
                file[f"model_weights/{name}/{name}/kernel"] = values
            file["model_weights"].attrs["layer_names"] = ["depthwise_conv2d", "any"]

        for found in read(h5_bytes(fill)).layers:
            row = bound_layer(found)
            assert (row.lower or 0) <= abs(values).max() <= row.upper

    def test_models_in_models(self) -> None:
        inner = model(convolution("Conv2D", "deep", some(3, 3, 2, 2)), name="inner")
        described, layers = model(inner, convolution("Conv2D", "last", some(3, 3, 2, 2)))
        found = read(keras_bytes(described, layers))
        assert list(kernels(found)) == ["inner/deep/kernel", "last/kernel"]
        assert not found.obstacles

    def test_a_batch_norm_without_scale_or_shift(self) -> None:
        for scale, center in ((True, False), (False, True), (False, False)):
            given = [some(4)] * (scale + center) + [some(4), abs(some(4)) + 1]
            bn = layer("BatchNormalization", "bn", *given, scale=scale, center=center)
            found = read(keras_bytes(*model(bn, layer("Dense", "d", some(4, 4)))))
            assert [entry.kind for entry in found.layers] == ["batch norm", "dense"]
            np.testing.assert_array_equal(found.layers[0].variance, given[-1])

    def test_bfloat16_is_widened_exactly(self) -> None:
        patterns = np.arange(2**16, dtype="<u2").reshape(256, 256)

        def fill(file: Any) -> None:
            place = file.create_dataset("layers/dense/vars/0", data=patterns.view("V2"))
            place.attrs["dtype"] = "bfloat16"

        (found,) = read(h5_bytes(fill)).layers
        np.testing.assert_array_equal(found.weight.view(np.uint32) >> 16, patterns)

    def test_any_other_file_is_read_by_its_names(self) -> None:
        found = read(
            h5_bytes(lambda file: file.create_dataset("encoder/fc.weight", data=some(3, 4)))
        )
        assert list(kernels(found)) == ["encoder/fc.weight"]

    def test_missing_library_is_one_line(
        self, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "x.keras").write_bytes(keras_bytes(*network()))
        monkeypatch.setitem(sys.modules, "h5py", None)
        assert_refused(capsys, tmp_path / "x.keras", 'pip install "gramnorm[hdf5]"')


def same_pads(size: int, taps: int, stride: int) -> list[int]:
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + taps - size, 0)
    return [total // 2, total - total // 2]


class TestOperators:
    """The norms of the operators that Keras applies, written out here from its documentation."""

    @pytest.mark.parametrize("padding", ["same", "valid"])
    @pytest.mark.parametrize(
        ("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 1), (3, 1, 2), (1, 2, 1)]
    )
    def test_convolutions(self, padding: str, stride: int, dilation: int, groups: int) -> None:
        kernel = some(3, 4, 2 // groups, 4, dtype="float64")
        given = convolution(
            "Conv2D",
            "c",
            kernel,
            strides=[stride] * 2,
            dilation_rate=[dilation] * 2,
            groups=groups,
            padding=padding,
            shape=[None, 7, 6, 2],
        )
        (found,) = read(keras_bytes(*model(given))).layers
        reach = [dilation * (n - 1) + 1 for n in (3, 4)]
        pads = [
            same_pads(n, k, stride) if padding == "same" else [0, 0]
            for n, k in zip((7, 6), reach, strict=True)
        ]
        plain = np.ascontiguousarray(np.transpose(kernel, (3, 2, 0, 1)))
        exact = sigma(
            conv_matrix(
                plain, (7, 6), stride=stride, dilation=dilation, groups=groups, padding=pads
            )
        )
        row = bound_layer(found, input_shape="file")
        assert row.error is None
        assert row.lower <= exact * (1 + 1e-12)
        assert exact * (1 - 1e-12) <= row.upper <= exact * 1.01
        every = bound_layer(found)
        assert exact * (1 - 1e-12) <= every.upper

    @pytest.mark.parametrize("padding", ["same", "valid"])
    @pytest.mark.parametrize(("taps", "stride"), [(3, 1), (3, 2), (2, 3), (4, 2)])
    def test_transposed_convolutions(self, padding: str, taps: int, stride: int) -> None:
        kernel = some(taps, taps, 3, 2, dtype="float64")  # (*spatial, outputs, inputs)
        given = convolution(
            "Conv2DTranspose",
            "c",
            kernel,
            strides=[stride] * 2,
            padding=padding,
            shape=[None, 4, 5, 2],
        )
        (found,) = read(keras_bytes(*model(given))).layers
        matrix = np.stack(
            [transposed_1(kernel, row, (4, 5), stride, padding) for row in np.eye(2 * 4 * 5)]
        )
        exact = sigma(matrix)
        row = bound_layer(found, input_shape="file")
        assert row.error is None
        assert row.lower <= exact * (1 + 1e-12)
        assert exact * (1 - 1e-12) <= row.upper <= exact * 1.01

    def test_causal_convolutions(self) -> None:
        kernel = some(3, 2, 4, dtype="float64")
        given = convolution(
            "Conv1D", "c", kernel, padding="causal", dilation_rate=[2], shape=[None, 9, 2]
        )
        (found,) = read(keras_bytes(*model(given))).layers
        plain = np.ascontiguousarray(np.transpose(kernel, (2, 1, 0)))
        exact = sigma(conv_matrix(plain, (9,), dilation=2, padding=[[4, 0]]))
        row = bound_layer(found, input_shape="file")
        assert row.lower <= exact * (1 + 1e-12)
        assert exact * (1 - 1e-12) <= row.upper <= exact * 1.01

    def test_depthwise_convolutions(self) -> None:
        kernel = some(3, 3, 3, 2, dtype="float64")
        given = convolution("DepthwiseConv2D", "c", kernel, shape=[None, 6, 6, 3])
        (found,) = read(keras_bytes(*model(given))).layers
        each = [
            np.ascontiguousarray(np.transpose(kernel[:, :, c : c + 1, :], (3, 2, 0, 1)))
            for c in range(3)
        ]
        exact = max(sigma(conv_matrix(k, (6, 6), padding=[[0, 0]] * 2)) for k in each)
        row = bound_layer(found, input_shape="file")
        assert row.lower <= exact * (1 + 1e-12)
        assert exact * (1 - 1e-12) <= row.upper <= exact * 1.01


def transposed_1(
    kernel: np.ndarray, flat: np.ndarray, size: tuple[int, int], stride: int, padding: str
) -> np.ndarray:
    """Spread each input over its outputs, then cut as Keras does."""
    taps = kernel.shape[0]
    image = flat.reshape(2, *size)
    whole = np.zeros((kernel.shape[2], *((n - 1) * stride + max(taps, stride) for n in size)))
    for i, j in np.ndindex(*size):
        spread = np.einsum("aboc,c->oab", kernel, image[:, i, j])
        whole[:, i * stride : i * stride + taps, j * stride : j * stride + taps] += spread
    if padding == "same":
        start = max(taps - stride, 0) // 2
        whole = whole[:, start : start + size[0] * stride, start : start + size[1] * stride]
    return whole.ravel()


class TestChains:
    """What the description shows to be no chain of functions of slope 1 has no product."""

    @pytest.mark.parametrize("number", range(15))
    def test_layers_that_stretch(self, number: int) -> None:
        others = [
            layer("Rescaling", "it", scale=255.0),
            layer("Activation", "it", activation="gelu"),
            layer("Activation", "it", activation={"class_name": "GELU"}),
            layer("ReLU", "it", negative_slope=3.0),
            layer("LeakyReLU", "it", alpha=-2.0),
            layer("ReLU", "it", threshold=1.0),
            layer("MaxPooling2D", "it", pool_size=[3, 3], strides=[2, 2]),
            layer("AveragePooling2D", "it", pool_size=[3, 3], strides=[1, 1]),
            layer("UpSampling2D", "it", size=[2, 2]),
            layer("Dense", "it", some(2, 2), activation="swish"),
            layer("LayerNormalization", "it", some(2), some(2)),
            layer("Embedding", "it", some(5, 2)),
            layer("Normalization", "it", some(2), some(2), np.asarray(3)),
            layer("TimeDistributed", "it"),
            ({**layer("Dense", "it")[0], "registered_name": "Mine>Dense"}, [some(2, 2)]),
        ]
        described, _ = model(layer("Dense", "out", some(2, 2)), others[number])
        assert list(keras_config.against(described)) == ["it"]

    def test_what_stretches_leaves_the_rows_without_a_product(self) -> None:
        others = (
            layer("Rescaling", "it", scale=9.0),
            layer("Dense", "lost"),
            layer("LSTM", "r", some(2, 8)),
        )
        found = read(keras_bytes(*model(layer("Dense", "out", some(2, 2)), *others)))
        assert list(kernels(found)) == ["out/kernel"]
        assert {"it", "lost", "r"} < {*found.obstacles}

    @pytest.mark.parametrize(
        "other",
        [
            layer("ReLU", "it", negative_slope=0.2, max_value=6.0),
            layer("LeakyReLU", "it", alpha=0.3),
            layer("Activation", "it", activation="tanh"),
            layer("AveragePooling2D", "it", pool_size=[2, 2]),
            layer("Dropout", "it", rate=0.5),
        ],
        ids=lambda entry: entry[0]["class_name"],
    )
    def test_layers_that_do_not(self, other: Any) -> None:
        assert not keras_config.against(model(layer("Dense", "out", some(2, 2)), other)[0])

    @pytest.mark.parametrize("keras", [2, 3])
    @pytest.mark.parametrize(
        ("reads", "chain"),
        [
            ({"a": ["in"], "b": ["a"]}, True),
            ({"a": ["in"], "b": ["a", "in"]}, False),
            ({"a": ["in"], "b": ["in"]}, False),
            ({"a": ["in", "in"], "b": ["a"]}, False),
        ],
    )
    def test_graphs(self, reads: dict[str, list[str]], chain: bool, keras: int) -> None:
        entries = [layer("InputLayer", "in")]
        entries += [layer("Dense", name, some(2, 2)) for name in reads]
        for entry, _ in entries:
            name = entry["config"]["name"]
            if keras == 2:
                entry["inbound_nodes"] = [[[other, 0, 0, {}] for other in reads.get(name, [])]]
            else:
                history = [{"config": {"keras_history": [o, 0, 0]}} for o in reads.get(name, [])]
                entry["inbound_nodes"] = [{"args": [history], "kwargs": {}}]
            entry["name"] = name
            if name == "in":
                entry["inbound_nodes"] = []
        described, _ = model(*entries, kind="Functional", name="net")
        assert ("net" in keras_config.against(described)) != chain

    def test_models_of_classes_of_ones_own(self) -> None:
        described, _ = model(layer("Dense", "a", some(2, 2)), name="net")
        for own in ({"module": "mine"}, {"class_name": "Mine"}):
            assert "net" in keras_config.against(described | own)

    def test_a_layer_used_twice(self) -> None:
        once = [{"args": [{"config": {"keras_history": ["in", 0, 0]}}]}]
        again = [{"args": [{"config": {"keras_history": ["a", 0, 0]}}]}]
        entries = [layer("InputLayer", "in"), layer("Dense", "a", some(2, 2))]
        for (entry, _), nodes in zip(entries, [[], once + again], strict=True):
            entry["inbound_nodes"] = nodes
        described, _ = model(*entries, kind="Functional", name="net")
        assert "net" in keras_config.against(described)


class TestHostile:
    @pytest.mark.parametrize(
        ("shape", "keywords"),
        [
            ((10**6, 10**6), {"dtype": "f4"}),  # never written
            ((10**5, 10**5), {"dtype": "f4", "chunks": (10**4, 10**4)}),
            ((900, 900), {"data": np.zeros((900, 900)), "compression": "gzip"}),
            ((2, 2), {"dtype": "f4", "external": [("/etc/passwd", 0, 16)]}),
        ],
        ids=["unwritten", "chunks", "gzip", "external"],
    )
    def test_what_is_not_in_the_file_as_it_is_is_not_read(
        self, shape: tuple[int, ...], keywords: dict[str, Any]
    ) -> None:
        self.check_unread(lambda file: file.create_dataset("w/kernel", shape, **keywords))

    def test_what_is_no_number_is_listed(self) -> None:
        def fill(file: Any) -> None:
            file.create_dataset("texts/kernel", (2, 2), h5py.string_dtype())
            file.create_dataset("records/kernel", (2, 2), [("a", "f4")])
            file["d/kernel"] = some(3, 2)

        found = read(h5_bytes(fill))
        assert {"texts/kernel", "records/kernel"} <= {*found.skipped}
        assert not found.failed

    def test_compressed_weights_of_any_program_are_holes(self) -> None:
        def fill(file: Any) -> None:
            file.create_dataset("fc2.weight", data=some(30, 20), compression="gzip")
            file["fc1.weight"] = some(3, 2)

        assert list(read(h5_bytes(fill)).failed) == ["fc2.weight"]

    def test_links_are_not_followed(self) -> None:
        for link in (h5py.ExternalLink("/tmp/other.h5", "/x"), h5py.SoftLink("/layers/dense")):
            self.check_unread(lambda file, link=link: file.__setitem__("w/kernel", link))

    @staticmethod
    def check_unread(fill: Any) -> None:
        def both(file: Any) -> None:
            fill(file)
            file["layers/dense/vars/0"] = some(3, 2)
            file["layers/dense/vars"].attrs["name"] = "d"

        found = read(h5_bytes(both))
        assert "d/kernel" in kernels(found)
        assert "w/kernel" in found.failed

    def test_virtual_datasets_are_not_followed(self) -> None:
        def fill(file: Any) -> None:
            layout = h5py.VirtualLayout((3, 2), "f4")
            layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", (3, 2))
            file.create_virtual_dataset("w/kernel", layout)
            file["d/kernel"] = some(3, 2)

        assert "w/kernel" not in kernels(read(h5_bytes(fill)))

    def test_groups_in_themselves_and_deep_ones_are_refused(self) -> None:
        def cycle(file: Any) -> None:
            file["d/kernel"] = some(3, 2)
            file["a/b"] = file["/"]

        def deep(file: Any) -> None:
            group = file
            for _ in range(300):
                group = group.create_group("a")
            group["kernel"] = some(3, 2)

        for fill in (cycle, deep):
            with pytest.raises(ReadError, match="nested too deep or in themselves"):
                read(h5_bytes(fill))

    def test_the_total_is_limited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        content = h5_bytes(
            lambda file: [file.create_dataset(f"d{i}/kernel", data=some(40, 40)) for i in range(4)]
        )
        monkeypatch.setattr(hdf5.limits, "MAX_BYTES", 20000)
        with pytest.raises(ReadError, match="more than the limit of 20000"):
            read(content)

    def test_members_of_an_archive_are_limited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("config.json", "{}")
            archive.writestr("model.weights.h5", bytes(10**6))
        monkeypatch.setattr(contents, "MAX_BYTES", 10**5)
        with pytest.raises(ReadError, match="more than the limit"):
            read(stream.getvalue())

    @pytest.mark.parametrize(
        "config", ["", "[" * 10**5, "3", "[]", "\xff", '{"config": {"layers": [3, {}]}}']
    )
    def test_damaged_descriptions(self, config: str) -> None:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("config.json", config)
            weights = h5_bytes(lambda file: write_weights(file, network()[1]))
            archive.writestr("model.weights.h5", weights)
        found, reason = outcome(stream.getvalue())
        assert kernels(found) if found else "description of the model" in reason

    @pytest.mark.parametrize(
        "config",
        [
            {"kernel_size": [5, 5]},
            {"kernel_size": [3]},
            {"strides": [0, 1]},
            {"strides": "two"},
            {"groups": -1},
            {"groups": "all"},
            {"padding": "around"},
            {"dilation_rate": [1, 1, 1]},
        ],
    )
    def test_descriptions_that_do_not_fit_are_refused_by_name(self, config: dict[str, Any]) -> None:
        given = convolution("Conv2D", "c", some(3, 3, 2, 4))
        given[0]["config"] |= config
        found = read(keras_bytes(*model(given, layer("Dense", "d", some(3, 3)))))
        assert list(found.failed) == ["c/kernel"]

    def test_archives_without_weights_or_in_shards(self, tmp_path: Path, capsys: Any) -> None:
        with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("config.json", "{}")
        assert_refused(capsys, tmp_path / "x.keras", "no model.weights.h5 in it")

    def test_a_library_that_dies_or_hangs_is_a_damaged_file(
        self, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "x.h5").write_bytes(
            h5_bytes(lambda file: file.create_dataset("d/kernel", data=some(3, 2)))
        )
        program = tmp_path / "program.py"
        for code in (
            "import os; os.abort()",
            "while True: pass",
            "print('{}')",
            "raise SystemExit(3)",
        ):
            program.write_text(code)
            monkeypatch.setattr(hdf5, "_PROCESS", program)
            monkeypatch.setattr(hdf5.limits, "HDF5_SECONDS", 0.2)
            assert_refused(capsys, tmp_path / "x.h5", "a damaged HDF5 file")

    def test_a_lower_limit_of_memory_is_kept(self, tmp_path: Path) -> None:
        pytest.importorskip("resource")
        limited = (
            "import os, resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)); "
            "os.execv(sys.executable, sys.argv[1:])"
        )
        content = h5_bytes(lambda file: file.create_dataset("d/kernel", data=some(3, 2)))
        (tmp_path / "x.h5").write_bytes(content)
        most = json.dumps(
            {"memory": 2**40, "seconds": 60, "bytes": 2**30, "depth": 9, "visits": 99, "text": 99}
        )
        with (tmp_path / "x.h5").open("rb") as stream:
            ended = subprocess.run(
                [sys.executable, "-c", limited, sys.executable, "-P", str(hdf5._PROCESS), most],
                stdin=stream,
                capture_output=True,
                check=False,
            )
        assert ended.returncode == 0
        assert json.loads(ended.stdout.partition(b"\n")[0])["arrays"] == [
            ["d/kernel", "<f4", [3, 2]]
        ]

    @pytest.mark.parametrize("count", [8, pytest.param(150, marks=pytest.mark.slow)])
    def test_damaged_files_are_read_or_refused_in_one_line(self, count: int) -> None:
        files = [keras_bytes(*network()), h5_bytes(lambda file: write_weights(file, network()[1]))]
        rng = random.Random(SEED + count)
        for _ in range(count):
            found, reason = outcome(damaged(rng.choice(files), rng))
            assert found.layers or found.spare if found else reason.count("\n") == 0


def outcome(content: bytes) -> tuple[Contents | None, str]:
    """Return what is in a file, or why it is refused."""
    try:
        return read(content), ""
    except ReadError as error:
        return None, str(error)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Change a few bytes, of an archive within a member whose checksum is then made right."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        victim = rng.choice(["config.json", "model.weights.h5"])
        members[victim] = damaged(members[victim], rng)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, member in members.items():
                archive.writestr(name, member)
        return stream.getvalue()
    found = bytearray(content[: rng.choice([len(content), rng.randrange(len(content))])])
    for _ in range(rng.choice([1, 2, 4, 16])):
        place = rng.randrange(min(len(found), 8192))
        new = rng.choice([b"\xff" * 8, bytes(8), b"\xff\xff\xff\x7f", rng.randbytes(1)])
        found[place : place + len(new)] = new
    return bytes(found)

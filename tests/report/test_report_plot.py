"""The pictures of the report: that they are written whole, the same each time, and show the norm they say."""

import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gramnorm.report import Row, bound_layer, failed_row
from gramnorm.report.files.contents import Layer, ReadError
from gramnorm.report.network import Constant
from gramnorm.report.table import Report
from tests.harness.reports import assert_refused, run, some, write_npz

pytest.importorskip("matplotlib")
plot = pytest.importorskip("gramnorm.report.plot")

pytestmark = pytest.mark.extra

PNG = b"\x89PNG\r\n\x1a\n"


def row(name: str, lower: float, upper: float) -> Row:
    return Row(name, "dense", (1, 1), "float64", 0.0, lower, upper, converged=True)


def drawn(tmp_path: Path, rows: list[Row]) -> bytes:
    plot.draw_bars(Report("x.npz", "0", rows, {}, {}), str(tmp_path / "x.png"))
    assert os.listdir(tmp_path) == ["x.png"]
    return (tmp_path / "x.png").read_bytes()


ODD = {
    "zero": [row("w", 0.0, 0.0)],
    "nothing known": [failed_row("w", "lost")],
    "not finite": [row("a", math.inf, math.inf), row("b", math.nan, math.nan)],
    "extreme": [row("a", 5e-324, 1e-323), row("b", 1e308, 1.7e308), row("c", 1e-149, 1e149)],
    "no lower bound": [row("w", 0.0, 3.0)],
    "upper bounds alone": [Row("w", "batch norm", (3,), "float32", 0.0, None, 3.0, None)] * 2,
    "mathematics": [row("$x_{$", 1.0, 2.0)],
    "letters": [row("\u5c42\n\x1b[2J", 1.0, 2.0)],
    "long": [row("a" * 10**4, 1.0, 2.0)],
    "many": [row(f"layer{i}", i + 1.0, i + 1.001) for i in range(100)],
}


@pytest.mark.parametrize("case", ODD)
def test_brackets_of_any_size_and_name_are_drawn(tmp_path: Path, case: str) -> None:
    assert drawn(tmp_path, ODD[case]).startswith(PNG)


def test_picture_without_a_product_has_one_part_and_says_why(tmp_path: Path) -> None:
    rows = ODD["many"][:5]
    whole = drawn(tmp_path, rows)
    report = Report("x.npz", "0", rows, {}, {}, obstacles={"pos": "not understood"})
    plot.draw_bars(report, str(tmp_path / "x.png"))
    assert (tmp_path / "x.png").read_bytes() != whole
    assert report.product_upper is None


@pytest.mark.parametrize(
    "case", ["many", "extreme", "no lower bound", "upper bounds alone", "long"]
)
def test_axis_ends_with_the_longest_bar_and_the_numbers_stand_inside_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    figures = []
    monkeypatch.setattr(plot, "_write", lambda figure, _: figures.append(figure))
    rows = ODD[case][:20]
    plot.draw_bars(Report("x.npz", "0", rows, {}, {}), str(tmp_path / "x.png"))
    (figure,) = figures
    figure.draw_without_rendering()
    bars, *others = figure.axes
    drawn_rows = [row.upper for row in rows if 1e-150 < row.upper < 1e150]
    assert bars.get_xlim()[1] == pytest.approx(max(drawn_rows))
    limit = others[0].bbox.x0 if others else figure.bbox.x1
    ends = [text.get_window_extent().x1 for text in bars.texts]
    assert len(ends) == len(rows)
    assert max(ends) <= limit


def test_title_has_the_constant_of_a_network_and_no_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    monkeypatch.setattr(plot, "_write", lambda f, _: titles.append(f.get_suptitle()))
    rows = [row("a", 1.0, 2.0), row("b", 1.0, 3.0)]
    for constant, text in [(Constant(5.0), "5.000000"), (Constant(None, "no"), "unknown")]:
        report = Report("x.npz", "0", rows, {}, {}, network=constant)
        plot.draw_bars(report, str(tmp_path / "x.png"))
        assert titles.pop() == f"x.npz\nconstant of the network: {text}"


def test_picture_is_the_same_each_time_and_grows_with_the_layers(tmp_path: Path) -> None:
    content = drawn(tmp_path, ODD["many"])
    assert drawn(tmp_path, ODD["many"]) == content
    heights = [int.from_bytes(drawn(tmp_path, ODD["many"][:n])[20:24], "big") for n in (1, 10, 100)]
    assert heights == sorted(set(heights))
    assert heights[2] > 20 * 100  # each line of the 100 can be read


@pytest.mark.parametrize(
    ("shape", "geometry"),
    [
        ((3, 2, 5), {}),
        ((3, 2, 7), {"stride": 2, "dilation": 3}),
        ((3, 2, 5), {"stride": (2,), "dilation": (2,)}),
        ((4, 2, 3, 3), {"groups": 2, "stride": (2, 1)}),
        ((4, 1, 3, 3), {"groups": 4, "stride": 2, "transposed": True}),
        ((2, 5, 2, 4), {"dilation": (1, 2)}),
    ],
)
@pytest.mark.parametrize("kind", ["float16", "complex128"])
def test_largest_norm_on_the_grid_lies_just_below_the_supremum(
    shape: tuple[int, ...], geometry: dict[str, Any], kind: str
) -> None:
    weight = some(*shape) + (1j * some(*shape[::-1]).T if kind == "complex128" else 0)
    layer = Layer("w", weight.astype(kind), geometry)
    bracket = bound_layer(layer, rtol=1e-4)
    largest = plot.symbol_norms(layer, 641 if len(shape) == 3 else 61).max()
    assert bracket.lower * 0.99 <= largest <= bracket.upper


def test_known_symbol_is_drawn_where_it_is() -> None:
    layer = Layer("w", np.array([[[1e200, -2e200, 1e200]]]), {})  # 2 - 2 cos w
    w = np.linspace(-np.pi, np.pi, 9)
    np.testing.assert_allclose(plot.symbol_norms(layer, 9) / 1e200, 2 - 2 * np.cos(w), atol=1e-12)


class TestCommand:
    @pytest.fixture
    def network(self, tmp_path: Path) -> Path:
        return write_npz(
            tmp_path / "net.npz",
            conv1=some(2, 2, 3, 3),
            conv2=some(2, 2, 5),
            conv3=some(2, 2, 2, 2, 2),
            fc4=some(3, 4),
        )

    @pytest.mark.parametrize("layer", ["conv1", "conv2"])
    def test_plots_are_written_beside_the_table(
        self, network: Path, capsys: Any, layer: str
    ) -> None:
        bars, symbol = network.parent / "bars.png", network.parent / "symbol.PNG"
        symbol.write_bytes(b"old")
        code, out, err = run(
            capsys,
            *("report", network, "--include", layer),
            *("--plot", bars, "--plot-symbol", symbol, "--input-shape", "8"),
        )
        assert (code, err) == (0, "")
        assert f" {layer} " in out
        assert bars.read_bytes().startswith(PNG)
        assert symbol.read_bytes().startswith(PNG)

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            (["--plot-symbol", "x.png"], "choose it with --include"),
            (["--plot-symbol", "x.png", "--include", "fc4"], "choose it with --include"),
            (["--plot-symbol", "x.png", "--include", "conv3"], "one or two spatial axes"),
            (["--plot", "x.pdf"], "end it in .png"),
            (["--plot", "nowhere/x.png"], "no such folder"),
            (["--plot", "folder.png"], "not a regular file"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused_before_the_work(
        self,
        network: Path,
        capsys: Any,
        monkeypatch: pytest.MonkeyPatch,
        arguments: list[str],
        match: str,
    ) -> None:
        monkeypatch.chdir(network.parent)
        Path("folder.png").mkdir()
        code, out, err = run(capsys, "report", network, *arguments)
        assert (code, out) == (2, "")
        assert match in err
        assert not Path("x.png").exists()

    def test_missing_library_is_one_line(
        self, network: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        code, out, err = run(capsys, "report", network, "--plot", network.parent / "x.png")
        assert (code, out) == (2, "")
        assert 'pip install "gramnorm[plot]"' in err

    def test_layer_without_a_finite_bound_has_no_picture(self, network: Path, capsys: Any) -> None:
        weight = some(2, 2, 3)
        weight[0, 0, 0] = math.inf
        path = write_npz(network.parent / "inf.npz", layers={"w": {}}, w=weight)
        code, _, err = run(capsys, "report", path, "--plot-symbol", network.parent / "x.png")
        assert code == 2
        assert "no finite bound" in err

    @pytest.mark.parametrize(
        ("shape", "layers"), [((1, 1, 3, 3), {"w": {"stride": 10**6}}), ((3000, 3000, 1), {})]
    )
    def test_what_would_take_for_ever_is_refused(
        self, tmp_path: Path, shape: tuple[int, ...], layers: Any
    ) -> None:
        layer = Layer("w", np.ones(shape, np.float32), layers.get("w"))
        with pytest.raises(ReadError, match="too large to draw"):
            plot.draw_symbol(layer, row("w", 1.0, 2.0), "", str(tmp_path / "x.png"))

    def test_interrupted_writing_leaves_the_old_picture(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn(tmp_path, ODD["zero"])
        old = (tmp_path / "x.png").read_bytes()

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            drawn(tmp_path, ODD["many"])
        assert os.listdir(tmp_path) == ["x.png"]
        assert (tmp_path / "x.png").read_bytes() == old

    def test_full_disk_is_one_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(ReadError, match="No space left"):
            drawn(tmp_path, ODD["zero"])


def test_damaged_file_with_a_plot_writes_none(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04")
    assert_refused(capsys, tmp_path / "x.npz")
    run(capsys, "report", tmp_path / "x.npz", "--plot", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()

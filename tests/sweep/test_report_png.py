"""The charts as pictures: their size and bytes, what they say of rows that are left out, and texts that stay inside."""

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from support.hostile import HOSTILE_TEXTS
from support.page_data import HOSTILE, example_data, hostile_data, large_data

from sweep.report.formats import png
from sweep.report.formats.png import CHARTS, write_pngs

Json = dict[str, Any]


def hidden_tick_labels(axes: Axes) -> list[Text]:
    """The labels of ticks that lie beyond the ends of their axis: matplotlib keeps them and does not draw them."""
    hidden = []
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        places = [*axis.get_majorticklocs(), *axis.get_minorticklocs()]
        hidden += [tick.label1 for tick, place in zip(ticks, places, strict=True) if not low <= place <= high]
    return hidden


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """``draw(data)``: each chart as its name, figure and words; every text stands inside its picture."""

    def draw_all(data: Json) -> dict[str, tuple[Figure, list[str]]]:
        charts: dict[str, tuple[Figure, list[str]]] = {}

        def inspect(figure: Figure) -> bytes:
            renderer = FigureCanvasAgg(figure).get_renderer()
            figure.draw(renderer)
            ticks = {id(text) for axis in figure.axes for text in hidden_tick_labels(axis)}
            texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
            texts = [text for text in texts if id(text) not in ticks]
            for text in texts:
                box = text.get_window_extent(renderer)
                inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
                assert inside, (text.get_text(), box, figure.bbox)
            charts[list(CHARTS)[len(charts)]] = figure, [text.get_text() for text in texts]
            return b""

        monkeypatch.setattr(png, "render_png", inspect)
        write_pngs(data, tmp_path)
        return charts

    return draw_all


def test_each_chart_is_a_picture_of_its_size_and_the_same_at_every_call(tmp_path: Path) -> None:
    paths = write_pngs(example_data(), tmp_path)
    assert [path.name for path in paths] == ["ranking.png", "pareto.png", "effects.png", "losses.png"]
    for path in paths:
        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert (width, height > 400, len(content) > 10_000) == (1500, True, True)
        assert b"tEXt" not in content
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    with matplotlib.rc_context({"font.size": 20, "figure.facecolor": "red", "xtick.major.size": 30}):  # a reader's own
        assert write_pngs(example_data(), tmp_path) == paths
        assert matplotlib.rcParams["font.size"] == 20
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == before  # and no file is touched


def test_a_chart_without_data_is_not_written_and_an_old_one_goes(tmp_path: Path) -> None:
    nothing = {**example_data(), "rows": [], "effects": [], "interactions": [], "curves": []}
    assert write_pngs(nothing, tmp_path / "new") == []
    assert not (tmp_path / "new").exists()
    for name in CHARTS:
        (tmp_path / name).touch()
    assert write_pngs(nothing, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_ranking_says_what_each_row_is(draw: Any) -> None:
    texts = draw(example_data())["ranking.png"][1]
    marks = [text.split("  ")[0] for text in texts if "  " in text]
    assert marks == ["8", "7", "4", "3", "5", "2", "1", "B2", "B1"]
    assert {"recommended", "tied with the best", "baseline (untuned)", "other trial"} <= set(texts)
    assert "Not drawn because they have no quality: 1 row, 6 (diverged)." in texts


def test_every_trial_stands_apart_from_those_of_the_same_cost(draw: Any) -> None:
    data = example_data()
    for row in data["rows"]:
        row["trainable_params"] = row["trainable_params"] and 1_000_000
    figure, texts = draw(data)["pareto.png"]
    places = [text.xy[0] for text in figure.axes[0].texts]
    assert len(set(places)) == len(places) == 7
    assert "1M" in texts


def test_effects_say_which_difference_is_shown(draw: Any) -> None:
    figure, texts = draw(example_data())["effects.png"]
    assert [text for text in texts if " − " in text] == [
        "r: 16 − 8", "targets: all_linear − attn", "bits: 8 − 4",
    ]  # fmt: skip
    dots = [line.get_color() for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert dots == [png.SOFT, png.ACCENT, png.SOFT]


def test_of_many_rows_the_best_are_drawn_with_the_recommended_one_and_the_baseline(draw: Any) -> None:
    texts = draw(large_data(trials=200))["ranking.png"][1]
    marks = [text.split("  ")[0] for text in texts if "  " in text]
    assert len(marks) == png.MAX_ROWS
    assert {"B1", "3"} <= set(marks)
    assert any("The best 38 of 200 rows, beside the recommended one and the baselines." in text for text in texts)


def test_a_loss_that_ran_away_does_not_flatten_the_others(draw: Any) -> None:
    figure, texts = draw(hostile_data())["losses.png"]
    assert figure.axes[0].get_ylim()[1] < 7
    assert "Not drawn: 2 loss values higher than 6.6." in texts


def test_the_losses_of_all_seeds_of_the_recommended_configuration_stand_out(draw: Any) -> None:
    data = example_data()
    recommended = next(row["mark"] for row in data["rows"] if row["recommended"])
    curve = next(curve for curve in data["curves"] if curve["mark"] == recommended)
    seeds = [{**curve, "mark": recommended + letter, "entry": recommended} for letter in "abc"]
    data["curves"] = [other for other in data["curves"] if other is not curve] + seeds
    figure, texts = draw(data)["losses.png"]
    assert [line.get_linewidth() for line in figure.axes[0].lines[-4:]] == [0.9, 2.0, 2.0, 2.0]
    assert {line.get_color() for line in figure.axes[0].lines[-3:]} == {png.ACCENT}
    assert texts.count("recommended") == 1


def test_no_text_leaves_its_picture_or_is_read_as_a_formula(draw: Any) -> None:
    """Warnings are errors: neither a formula nor a character that the font lacks may give one."""
    hostile = ["$", "$x$ \\frac{1}", "W" * 500, "\ufdfa" * 90, *HOSTILE_TEXTS]
    for start in range(0, len(hostile), 15):
        texts = itertools.cycle(hostile[start : start + 15])
        draw(_replaced({**hostile_data(), "texts": {}}, texts, {}))


def _replaced(value: Any, texts: Iterator[str], known: dict[str, str]) -> Any:
    """Each text that is hostile already, by the next one; equal ones by the same."""
    if isinstance(value, str):
        return known.setdefault(value, next(texts)) if HOSTILE in value else value
    if isinstance(value, dict):
        return {key: _replaced(each, texts, known) for key, each in value.items()}
    return [_replaced(each, texts, known) for each in value] if isinstance(value, list) else value


def test_many_levels_and_numbers_that_are_not_known(draw: Any) -> None:
    data = example_data()
    levels = [f"a/long/name/of/a/data/set/{place}" for place in range(40)]
    data["effects"][1]["contrasts"] = [
        {"level": level, "against": levels[0], "value": 1.0, "low": None, "high": None, "shown": False}
        for level in levels[1:]
    ]
    data["rows"] = [{**row, "low": None, "high": None} for row in data["rows"]]
    data["rows"][3].update(trainable_params=1e30, quality=1e9)
    data["curves"] = [{"mark": "1", "steps": [1], "losses": [3.0]}, {"mark": "gone", "steps": [1], "losses": [9.0]}]
    assert "Not drawn: 31 differences." in draw(data)["effects.png"][1]

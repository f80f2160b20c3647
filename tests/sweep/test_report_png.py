"""The charts as pictures: their size and bytes, what they say of rows that are left out, and texts that stay inside."""

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from support.hostile import HOSTILE_TEXTS
from support.page_data import HOSTILE, example_data, hostile_data, large_data

from sweep.report.formats.png import CHARTS, write_pngs

Json = dict[str, Any]
Sheets = dict[str, tuple[Figure, list[Text]]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Draw data, and give each chart with its texts; each of these is inside the sheet."""

    def draw(data: Json) -> Sheets:
        found: Sheets = {}

        def inspect(figure: Figure) -> bytes:
            renderer = FigureCanvasAgg(figure).get_renderer()
            texts = [each for each in figure.findobj(Text) if each.get_visible() and each.get_text().strip()]
            figure.draw_without_rendering()
            for each in texts:
                box = each.get_window_extent(renderer)
                inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
                assert inside, (each.get_text(), box, figure.bbox)
            found[list(CHARTS)[len(found)]] = figure, texts
            return b""

        monkeypatch.setattr("sweep.report.formats.png.png", inspect)
        write_pngs(data, tmp_path)
        return found

    return draw


def words(sheets: Sheets, name: str) -> list[str]:
    return [text.get_text() for text in sheets[name][1]]


def test_each_chart_is_a_picture_of_its_size_and_the_same_at_every_call(tmp_path: Path) -> None:
    paths = write_pngs(example_data(), tmp_path)
    assert [path.name for path in paths] == ["ranking.png", "pareto.png", "effects.png", "losses.png"]
    for path in paths:
        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert (width, height > 800, len(content) > 10_000) == (1500, True, True)
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


def test_the_ranking_says_what_each_row_is(drawn: Any) -> None:
    texts = words(drawn(example_data()), "ranking.png")
    order = [text for text in texts if text in {"B1", "B2", *map(str, range(1, 9))}]
    assert order == ["8", "7", "4", "3", "5", "2", "1", "B2", "B1"]
    assert {"37.6 [34.0, 41.3]", "no gain", "recommended", "tied with the best", "baseline (untuned)"} <= set(texts)
    assert "Not drawn, since without a quality: 1 row, 6 (diverged)." in texts
    assert "quality (0 to 100, higher is better)" in texts


def test_the_front_is_named_and_every_trial_stands_apart(drawn: Any) -> None:
    data = example_data()
    for row in data["rows"]:
        row["trainable_params"] = row["trainable_params"] and 1_000_000
    sheets = drawn(data)
    assert "On the front: 8 (r=16 all_linear 8bit)." in words(sheets, "pareto.png")
    axes = sheets["pareto.png"][0].axes[0]
    discs = [text for text in axes.texts if text.get_text().isdigit()]
    centres = sorted(axes.transData.transform(text.get_position())[0] for text in discs)
    assert len(centres) == 7
    assert min(b - a for a, b in itertools.pairwise(centres)) > 14 * 200 / 72  # pixels: a disc's width


def test_effects_say_which_difference_is_shown(drawn: Any) -> None:
    texts = {text.get_text(): text.get_color() for text in drawn(example_data())["effects.png"][1]}
    assert (texts["+6.7 [4.0, 9.4]"], texts["+2.3 [−0.4, 5.1]"]) == ("#0b6e69", "#626d75")
    assert {"all_linear − attn:", "r and targets", "■ all_linear", "base bits"} <= set(texts)
    assert "targets and base bits" not in texts  # its interaction is not visible


def test_of_many_rows_the_best_are_drawn_with_the_recommended_one_and_the_baseline(drawn: Any) -> None:
    sheets = drawn(large_data(trials=200))
    texts = words(sheets, "ranking.png")
    assert sum(text.endswith("]") and "[" in text for text in texts) == 41  # forty rows and the heading
    assert {"B1", "3"} <= set(texts)
    assert "The best 38 of 200 rows, beside the recommended one and the baselines." in texts
    assert "199 other trials" in words(sheets, "losses.png")


def test_a_loss_that_ran_away_does_not_flatten_the_others(drawn: Any) -> None:
    sheets = drawn(hostile_data())
    assert sheets["losses.png"][0].axes[0].get_ylim()[1] < 6
    assert "Higher than 5.2, and not drawn: 2 of the losses." in words(sheets, "losses.png")


def test_no_text_leaves_its_sheet_or_is_read_as_a_formula(drawn: Any) -> None:
    """Warnings are errors: neither a formula nor a character that the font lacks may give one."""
    hostile = ["$", "$x$ \\frac{1}", "W" * 500, "\ufdfa" * 90, *HOSTILE_TEXTS]
    for start in range(0, len(hostile), 15):
        texts = itertools.cycle(hostile[start : start + 15])
        drawn(_replaced({**hostile_data(), "texts": {}}, texts, {}))


def _replaced(value: Any, texts: Iterator[str], known: dict[str, str]) -> Any:
    """Each text that is hostile already, by the next one; equal ones by the same."""
    if isinstance(value, str):
        return known.setdefault(value, next(texts)) if HOSTILE in value else value
    if isinstance(value, dict):
        return {key: _replaced(each, texts, known) for key, each in value.items()}
    return [_replaced(each, texts, known) for each in value] if isinstance(value, list) else value


def test_many_levels_and_numbers_that_are_not_known(drawn: Any) -> None:
    data = example_data()
    levels = [f"a/long/name/of/a/data/set/{place}" for place in range(40)]
    span = {"mean": 30.0, "low": None, "high": None}
    data["effects"][1]["levels"] = [{"level": level, **span} for level in levels]
    data["effects"][1]["contrasts"] = [
        {"level": level, "against": levels[0], "value": 1.0, "low": None, "high": None, "shown": False}
        for level in levels[1:]
    ]
    data["interactions"][0]["cells"] = [{"a": a, "b": b, **span} for a in levels[:5] for b in levels]
    data["rows"] = [{**row, "low": None, "high": None} for row in data["rows"]]
    data["rows"][3].update(trainable_params=1e30, quality=1e9)
    data["curves"] = [{"mark": "1", "steps": [1], "losses": [3.0]}, {"mark": "gone", "steps": [1], "losses": [9.0]}]
    assert {"and 35 more", "and 32 more"} <= set(words(drawn(data), "effects.png"))

"""The report's page in a real browser: sorting, filters, charts, both themes, a phone, print, and hostile data."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import page_data
from support.chromium import DESKTOP, PHONE, PICTURES, watch

from sweep.report.analysis.texts import dump_script_json
from sweep.report.formats.html import FOLDER, place_on_bar, render_page

Json = dict[str, Any]
Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """``opened(data, viewport=…, color_scheme=…)``: the page in the browser.

    In the end, nothing was said on any page's console, nothing was thrown, no dialog came up and no request left it.
    """
    contexts, said = [], []

    def open_page(data: Json, **settings: Any) -> Any:
        path = tmp_path / "report.html"
        path.write_text(render_page(page_data.example_context(data), data), encoding="utf-8")
        context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light", **settings})
        contexts.append(context)
        page = context.new_page()
        watch(page, said)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def marks(page: Any) -> list[str]:
    """The rows that the summary table shows, in its order."""
    found: list[str] = page.eval_on_selector_all(
        "table.summary tbody tr", "rows => rows.filter(row => !row.hidden).map(row => row.id.slice(4))"
    )
    return found


def header(page: Any, name: str) -> Any:
    return page.locator("table.summary thead th").filter(has=page.get_by_role("button", name=name, exact=True))


def scrolled(page: Any) -> None:
    """Every chart has come near the window, and was drawn."""
    for plot in page.locator(".plot:visible").all():
        plot.scroll_into_view_if_needed()
        plot.locator("canvas").first.wait_for()


def width_of(page: Any) -> int:
    found: int = page.evaluate("document.documentElement.scrollWidth")
    return found


# ---- the table ----


def test_each_column_sorts_both_ways_and_back_and_unknown_comes_last(opened: Open) -> None:
    page = opened(page_data.example_data())
    order = ["B1", "B2", *"12345678"]
    assert marks(page) == order
    quality = header(page, "quality")
    quality.get_by_role("button").click()
    assert quality.get_attribute("aria-sort") == "descending"
    assert marks(page) == ["8", "7", "4", "3", "5", "2", "1", "B2", "B1", "6"]
    quality.get_by_role("button").click()
    assert quality.get_attribute("aria-sort") == "ascending"
    assert marks(page) == ["B1", "B2", "1", "2", "5", "3", "4", "7", "8", "6"]
    quality.get_by_role("button").click()
    assert quality.get_attribute("aria-sort") is None
    assert marks(page) == order
    trainable = header(page, "trainable")  # 460,800 before 2,442,240: as numbers, not as the words that are shown
    trainable.get_by_role("button").click()
    assert marks(page) == ["B1", "B2", *"12563478"]
    header(page, "row").get_by_role("button").click()
    assert trainable.get_attribute("aria-sort") is None
    assert page.locator("[aria-sort]").count() == 1
    header(page, "targets").get_by_role("button").click()
    assert marks(page)[-2:] == ["B1", "B2"]


def test_numbers_sort_as_numbers_however_they_are_written(opened: Open) -> None:
    page = opened(page_data.example_data())
    values = ["", "0.001", "-10.5", "3e-05", "-9", "1e+20", "0", "200", "30", "0.0001"]
    page.evaluate(
        "values => document.querySelectorAll('table.summary tbody tr').forEach((row, place) => "
        "{ row.cells[7].dataset.value = values[place] })",
        values,
    )
    header(page, "train s").get_by_role("button").click()
    found = page.eval_on_selector_all("table.summary tbody tr", "rows => rows.map(row => row.cells[7].dataset.value)")
    assert found == ["-10.5", "-9", "0", "3e-05", "0.0001", "0.001", "30", "200", "1e+20", ""]


def test_the_table_is_filtered_by_status_and_by_words(opened: Open) -> None:
    page = opened(page_data.example_data())
    status, words = page.get_by_label("Status"), page.get_by_label("Words")
    assert status.locator("option").all_text_contents() == ["any (10)", "complete (9)", "diverged (1)"]
    status.select_option("diverged")
    assert marks(page) == ["6"]
    assert page.locator("#table output").text_content() == "1 of 10 rows"
    status.select_option("complete")
    words.fill("R=16 attn")
    assert marks(page) == ["5"]
    words.fill("nothing has this")
    assert marks(page) == []
    status.select_option("")
    words.fill("")
    assert len(marks(page)) == 10
    assert page.locator("#table output").text_content() == ""


def test_the_keyboard_sorts_and_picks(opened: Open) -> None:
    page = opened(page_data.example_data())
    header(page, "quality").get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert marks(page)[0] == "8"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    picked = page.locator("#losses button").nth(6)
    picked.focus()
    page.keyboard.press("Space")
    assert picked.get_attribute("aria-pressed") == "true"
    assert page.locator("#losses button[aria-pressed=true]").count() == 1


def test_intervals_and_the_tied_group_are_drawn_in_the_cells(opened: Open) -> None:
    page = opened(page_data.example_data())
    track = page.locator("#row-3 .bar").bounding_box()
    band, dot = page.locator("#row-3 .bar i").bounding_box(), page.locator("#row-3 .bar u").bounding_box()
    row = page_data.example_data()["rows"][4]
    for place, value in (
        (band["x"], row["low"]),
        (band["x"] + band["width"], row["high"]),
        (dot["x"] + dot["width"] / 2, row["quality"]),
    ):
        assert (place - track["x"]) / track["width"] * 100 == pytest.approx(place_on_bar(value, (20, 45)), abs=1.1)
    assert "[34.0, 41.3]" in page.locator("#row-3 td.q").text_content()
    assert [row.get_attribute("id") for row in page.locator("tr.tied").all()] == ["row-3", "row-4", "row-7", "row-8"]
    assert page.locator("#row-6 .bar").count() == 0


# ---- charts ----


def test_the_front_follows_the_cost_that_the_reader_chooses(opened: Open) -> None:
    page = opened(page_data.example_data())
    chart = page.locator("#pareto .plot")
    assert "against trainable parameters. On the front: row 2 (30.6 at 461 k), row 5" in chart.get_attribute(
        "aria-label"
    )
    chart.scroll_into_view_if_needed()
    before = chart.screenshot()
    page.get_by_label("Cost").select_option("peak_memory_bytes")
    label = chart.get_attribute("aria-label")
    on = "row 3 (37.6 at 1.38 GiB), row 7 (39.2 at 1.44 GiB), row 8 (39.6 at 1.61 GiB)"
    assert label == f"Quality against peak memory. On the front: {on}."
    assert chart.screenshot() != before
    page.locator("#pareto summary").click()
    page.locator("#pareto tbody tr").first.wait_for()
    lines = page.locator("#pareto tbody tr").all_text_contents()
    assert len(lines) == 7
    assert lines[2] == "3r=8 all_linear 4bit37.6[34.0, 41.3]1.38 GiByes"


def test_every_chart_is_drawn_and_says_what_it_shows(opened: Open) -> None:
    page = opened(page_data.example_data())
    assert page.locator(".plot canvas").count() < 5, "charts far below are drawn before anybody comes near"
    scrolled(page)
    page.get_by_text("2 pairs of settings without a visible interaction").click()
    scrolled(page)
    sections = [plot.evaluate("node => node.closest('section').id") for plot in page.locator(".plot").all()]
    assert sections == ["pareto", *["effects"] * 6, "losses", "parallel", "timeline"]
    for plot in page.locator(".plot").all():
        assert plot.get_attribute("role") == "img"
        assert len(plot.get_attribute("aria-label")) > 20
        assert colours(plot) > 8
    effects = page.locator("#effects .panel").all_text_contents()
    assert "all_linear against attn: +6.7 [4.0, 9.4]" in effects[1]
    assert "no difference shown" not in effects[1]
    assert "16 against 8: +2.3 [-0.4, 5.1], no difference shown" in effects[0]
    assert page.locator("#losses .picks button").count() == 8
    assert "1 loss above 5.5 is not drawn" in page.locator("#losses").text_content()


def colours(plot: Any) -> int:
    """How many colours a drawn chart has."""
    found: int = plot.evaluate(
        """node => {
          const canvas = node.querySelector("canvas");
          const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return new Set(new Uint32Array(data.buffer)).size;
        }"""
    )
    return found


def test_charts_follow_the_theme_and_are_light_on_paper(opened: Open) -> None:
    page = opened(page_data.example_data(), color_scheme="dark")
    chart = page.locator("#pareto .plot")
    chart.scroll_into_view_if_needed()
    chart.locator("canvas").wait_for()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 27)"
    dark = pixels(chart)
    canvas = "document.querySelector('#pareto .plot canvas')?.toDataURL()"  # drawn anew when the page hears of it
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"dark => {canvas} !== dark", arg=dark)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"dark => {canvas} === dark", arg=dark)
    page.evaluate(
        "window.addEventListener('beforeprint', () => { window.onPaper = [...document.querySelectorAll('.plot')]"
        ".map(node => Boolean(node.querySelector('canvas'))) })"
    )
    paper = page.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    drawn = page.evaluate("window.onPaper")
    assert len(drawn) == 8
    assert all(drawn), "charts that nobody scrolled to are missing on paper"
    assert pixels(chart) == dark


def pixels(plot: Any) -> str:
    found: str = plot.evaluate("node => node.querySelector('canvas').toDataURL()")
    return found


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("device", "viewport"), [("phone", PHONE), ("desktop", DESKTOP)])
def test_the_page_scrolls_down_only_and_is_kept_as_a_picture(
    opened: Open, device: str, viewport: Json, scheme: str
) -> None:
    page = opened(page_data.example_data(), viewport=viewport, color_scheme=scheme)
    scrolled(page)
    assert width_of(page) == viewport["width"]
    page.evaluate("window.scrollTo(0, 0)")
    PICTURES.mkdir(exist_ok=True)
    page.screenshot(path=PICTURES / f"page-{device}-{scheme}.png", full_page=True)


# ---- what must not happen ----


def test_hostile_data_is_shown_and_does_nothing(opened: Open) -> None:
    page = opened(page_data.hostile_data(), viewport=PHONE)
    page.get_by_text("2 pairs of settings without a visible interaction").click()
    page.locator(".panel .numbers").nth(2).wait_for()
    for summary in page.locator(".numbers summary").all():
        summary.click()
    scrolled(page)
    for name in ("quality", "targets", "status"):
        header(page, name).get_by_role("button").click()
    assert page.locator("h1").text_content() == page_data.HOSTILE
    assert page.evaluate("document.scripts.length") == 3
    assert page.locator("img").count() == 0
    page.locator("#losses tbody tr").first.wait_for()
    assert page_data.HOSTILE in page.locator("#losses tbody tr").first.text_content()
    chart = page.locator("#pareto .plot canvas")
    for place in range(90, 350, 65):
        chart.hover(position={"x": place, "y": 150}, force=True)
    assert width_of(page) == PHONE["width"]


def test_only_the_pages_own_scripts_and_styles_run(browser: Any, tmp_path: Path) -> None:
    data = page_data.example_data()
    text = render_page(page_data.example_context(data), data)
    injected = "<script>window.ran = 1</script><p id=p style='color:red' onclick='window.ran = 2'>x</p></main>"
    path = tmp_path / "report.html"
    path.write_text(text.replace("</main>", f"{injected}<style>#p {{ color: red }}</style>", 1), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.locator("#p").click()
    assert page.evaluate("window.ran") is None
    assert page.evaluate("getComputedStyle(document.querySelector('#p')).color") != "rgb(255, 0, 0)"
    done = "() => { try { return document.defaultView.eval('1 + 1') } catch (error) { return error.name } }"
    assert page.evaluate(f"new Promise(done => setTimeout(() => done(({done})()), 0))") == "EvalError"
    page.close()


def test_the_policy_names_each_script_and_lets_further_ones_in_only_where_texts_stand_beside_the_page() -> None:
    data = page_data.example_data()
    text = render_page(page_data.example_context(data), data)
    policy = re.search('Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    scripts = re.findall("(?s)<script>(.*?)</script>", text)
    assert len(scripts) == 2
    for code in [*scripts, *re.findall("(?s)<style>(.*?)</style>", text)]:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "strict-dynamic" not in policy
    data["shards"] = {"0": "report-texts/0.js"}
    assert "strict-dynamic" in render_page(page_data.example_context(data), data)
    assert not re.search(
        r"""\sstyle=|\son\w+=|<(link|iframe|object|img)\b|\bsrc=""", re.sub("(?s)<script.*?</script>", "", text)
    )


def test_data_cannot_leave_its_element() -> None:
    hostile = {"a": "</script><!--<script>\ud800\u2028", "b": [None, 1.5, True]}
    text = dump_script_json(hostile)
    assert "<" not in text
    assert json.loads(text) == {**hostile, "a": "</script><!--<script>\ufffd\u2028"}
    text.encode()
    with pytest.raises(ValueError, match="JSON"):
        dump_script_json({"a": float("nan")})


def test_without_scripts_the_recommendation_and_the_table_are_there(browser: Any, tmp_path: Path) -> None:
    data = page_data.example_data()
    path = tmp_path / "report.html"
    path.write_text(render_page(page_data.example_context(data), data), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.get_by_text("Use row 3").is_visible()
    assert page.locator("#row-8 .bar i").is_visible()
    assert page.get_by_text("no difference between 8 and 16 is shown").is_visible()
    assert not page.locator("#pareto").is_visible()
    assert not page.get_by_label("Status").is_visible()
    for link in page.locator("nav a:visible").all():
        assert page.locator(link.get_attribute("href")).is_visible()
    context.close()


def test_the_library_is_the_one_that_its_licence_is_kept_for() -> None:
    folder = FOLDER / "echarts"
    assert {path.name for path in folder.iterdir()} == {"echarts.min.js", "LICENSE", "NOTICE", "LICENSE-d3"}
    code = (folder / "echarts.min.js").read_text(encoding="utf-8")
    assert re.search(r'\.version="(6\.\d+\.\d+)"', code)
    assert "Licensed to the Apache Software Foundation" in code
    assert "Apache ECharts" in (folder / "NOTICE").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_thousand_rows_open_and_stay_below_six_megabytes(opened: Open, tmp_path: Path) -> None:
    data = page_data.large_data()
    (tmp_path / "report-texts").mkdir()
    for place in range(50):
        (tmp_path / f"report-texts/{place}.js").write_text(f"loraSweepTexts({place}, {{}});", encoding="utf-8")
    page = opened(data)
    assert (tmp_path / "report.html").stat().st_size < 6_000_000
    header(page, "quality").get_by_role("button").click()
    assert len(marks(page)) == 1001
    scrolled(page)
    assert width_of(page) == 1280

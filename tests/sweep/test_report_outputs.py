"""All outputs of one report side by side: the same numbers in each, and hostile texts that stay texts in each."""

import csv
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from lxml import html as lxml_html
from support.chromium import watch
from support.hostile import HOSTILE_TEXTS
from support.report_files import config_of, entry_of, training_of, write_evaluation, write_sweep, write_trial
from test_report_ranking import grid

from lora_sweep.runs.files import sweep_file, trial_folder, write_atomic, write_json
from sweep.report.analysis.analyse import analyse_sweep
from sweep.report.formats.cells import format_cell
from sweep.report.write import write_report

Json = dict[str, Any]
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def read(runs: Path, name: str) -> str:
    return (runs / "sweeps/demo" / name).read_text(encoding="utf-8")


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Cells of every table outside code blocks, header first, split at each pipe as a GFM parser does."""
    tables: list[list[list[str]]] = [[]]
    for line in re.sub(r"(?ms)^(`{3,})\n.*?^\1$", "", text).split("\n"):
        if line.startswith("| "):
            cells = line[2:-2].split(" | ")
            tables[-1].append([html.unescape(cell.replace("<!-- -->", "")).strip("*") for cell in cells])
        elif tables[-1]:
            tables.append([])
    return [[table[0], *table[2:]] for table in tables if table]


def page_table(runs: Path) -> list[dict[str, str]]:
    """The page's first table, a dict a row."""
    table = lxml_html.document_fromstring(read(runs, "report.html")).xpath("//table[@class='summary']")[0]
    names = [" ".join(cell.text_content().replace("↕", "").split()) for cell in table.xpath("./thead//th")]
    lines = [[" ".join(c.text_content().split()) for c in row.xpath("./*")] for row in table.xpath("./tbody/tr")]
    return [dict(zip(names, line, strict=True)) for line in lines]


def page_data(runs: Path) -> Json:
    document = lxml_html.document_fromstring(read(runs, "report.html"))
    found: Json = json.loads(document.xpath("string(//script[@type='application/json'])"))
    return found


def test_every_number_is_the_same_in_every_output(tmp_path: Path) -> None:
    grid(tmp_path, effect=6.0)
    terminal = write_report(tmp_path, "demo")
    lines = list(csv.DictReader(io.StringIO(read(tmp_path, "report.csv"))))
    content = json.loads(read(tmp_path, "report.json"))
    tables = markdown_tables(read(tmp_path, "report.md"))
    summary = [dict(zip(tables[0][0], row, strict=True)) for row in tables[0][1:]]
    shown, data = page_table(tmp_path), page_data(tmp_path)
    assert len(lines) == len(content["rows"]) == len(content["ranking"]) == len(summary) == len(shown) == 9
    report_rows = analyse_sweep(tmp_path, "demo").rows.trials
    for line, row, standing, cells, page, drawn, report_row in zip(
        lines, content["rows"], content["ranking"], summary, shown, data["rows"], report_rows, strict=True
    ):
        assert {key: csv_text(value) for key, value in row.items() if key != "mark"} == line
        quality = standing["quality"]
        assert (row["quality_ci_low"], row["quality_ci_high"]) == (quality["low"], quality["high"])
        assert row["quality"] == pytest.approx(quality["value"], abs=1e-9)
        assert (drawn["quality"], drawn["low"], drawn["high"]) == (row["quality"], quality["low"], quality["high"])
        for key in ("trainable_params", "train_seconds", "peak_memory_bytes", "validation_loss", "verdict"):
            assert drawn[key] == row[key]
        assert (row["verdict"], row["tied_with_best"]) == (standing["verdict"], standing["tied"])
        if standing["versus_baseline"]:
            assert row["delta_baseline"] == standing["versus_baseline"]["value"]
            assert row["delta_best"] == standing["versus_best"]["value"]
        for header, key in SHOWN.items():
            wanted = format_cell(report_row, key)
            assert cells[header] == wanted
            assert page[header] == wanted.replace("(", "").replace(")", "")
        in_terminal = next(text for text in terminal.split("\n") if text.split()[:1] == [row["mark"]])
        assert format_cell(report_row, "quality") in in_terminal
    for effect, drawn, rows in zip(content["effects"], data["effects"], pairs(tables, "factor"), strict=True):
        for level, point, cells in zip(effect["levels"], drawn["levels"], rows, strict=True):
            mean = level["mean"]
            assert (point["mean"], point["low"], point["high"]) == (mean["value"], mean["low"], mean["high"])
            assert cells[2] == f"{mean['value']:.1f} [{mean['low']:.1f}, {mean['high']:.1f}]"
        contrast = effect["levels"][1]["contrast"]
        assert drawn["contrasts"][0]["value"] == contrast["value"]
        assert rows[1][3].endswith(f"[{contrast['low']:.1f}, {contrast['high']:.1f}]")
    compared = next(table for table in tables if "against its baseline" in table[0])
    for cells, standing in zip(compared[1:], content["ranking"][1:], strict=True):
        above, best = standing["versus_baseline"], standing["versus_best"]
        assert cells[2:4] == [str(standing["prompts"]), str(standing["seeds"])]
        assert cells[4].endswith(f"[{above['low']:.1f}, {above['high']:.1f}]")
        assert cells[5] == ", ".join(map(str, standing["against_baseline"]))
        assert cells[6].endswith(f"[{best['low']:.1f}, {best['high']:.1f}]")
    found = lxml_html.document_fromstring(read(tmp_path, "report.html")).xpath("//section[@id='comparisons']//tbody/tr")
    assert [[cell.text_content() for cell in row.xpath("./td")] for row in found] == [row[2:] for row in compared[1:]]
    for text in (content["text"], *content["notes"], *(each["text"] for each in content["observations"])):
        assert text in " ".join(lxml_html.document_fromstring(read(tmp_path, "report.html")).text_content().split())
        assert text in html.unescape(read(tmp_path, "report.md").replace("<!-- -->", ""))
        assert text in " ".join(terminal.split())


SHOWN = {
    "row": "mark",
    "r": "r",
    "base bits": "bits",
    "quality": "quality",
    "vs baseline": "delta_baseline",
    "validation loss": "validation_loss",
    "forgetting": "forgetting",
    "trainable": "trainable_params",
    "train s": "train_seconds",
    "peak memory": "peak_memory_bytes",
}


def csv_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return value if isinstance(value, str) else repr(value)


def pairs(tables: list[list[list[str]]], first: str) -> list[list[list[str]]]:
    """The lines of the table that begins with the header ``first``, two by two."""
    rows = next(table[1:] for table in tables if table[0][0] == first)
    return [rows[place : place + 2] for place in range(0, len(rows), 2)]


def hostile_sweep(runs: Path) -> None:
    """Every hostile text as a text, a reference, a product, a label, a reason, a log and a file of votes."""
    entries = []
    for place, text in enumerate(HOSTILE_TEXTS):
        label = text[:300].encode("utf-8", "replace").decode()
        entry = entry_of("trial", label, place)
        config = config_of(8 + place, "attn", 4)
        training = training_of(entry["trial_id"], "trial", config, place)
        write_trial(runs, entry, config, training, None)
        write_evaluation(runs, entry, training, 20.0 + place, values=[20.0 + place + n for n in range(12)])
        folder = trial_folder(runs, entry["trial_id"])
        lines = [
            {"prompt_id": f"validation-{n}", "product": words, "category": words, "prompt": words, "text": text}
            | {"reference": words, "finished": True, "new_tokens": 4}
            for n, words in enumerate(HOSTILE_TEXTS)
        ]
        written = "".join(json.dumps(line) + "\n" for line in lines)  # ASCII: half a surrogate pair as JSON spells it
        write_atomic(folder.evaluation(entry["eval_id"]).generations, written.encode())
        if place % 3 == 0:
            failed = {"status": "failed", "reason": text.encode("utf-8", "replace").decode(), "kind": "trial"}
            write_json(folder.result, failed)
            write_atomic(folder.log, text.encode("utf-8", "replace") + b"\xff\n\x1b[2J")
        entries.append(entry)
    write_sweep(runs, "demo", entries)
    path = sweep_file(runs, "demo")
    content = json.loads(path.read_text())
    content["command"] = " ".join(text[:200] for text in HOSTILE_TEXTS)
    for entry, text in zip(content["trials"], HOSTILE_TEXTS, strict=True):
        entry["overrides"] = [text[:300]]
    write_atomic(path, json.dumps(content).encode())
    for number, text in enumerate(HOSTILE_TEXTS[:5]):
        (runs / "sweeps/demo" / f"votes-{number}.json").write_bytes(text.encode("utf-8", "replace"))


def test_hostile_texts_stay_texts_in_every_output(tmp_path: Path, browser: Any) -> None:
    (tmp_path / "sweeps/demo").mkdir(parents=True)
    hostile_sweep(tmp_path)
    terminal = write_report(tmp_path, "demo")
    files = [path for path in (tmp_path / "sweeps/demo").rglob("*") if path.is_file() and "votes" not in path.name]
    assert len(files) >= 4
    for text in (terminal, *(path.read_text(encoding="utf-8") for path in files)):
        assert not HIDDEN.search(text.replace("\n", "").replace("\t", ""))

    cells = [cell for row in csv.reader(io.StringIO(read(tmp_path, "report.csv"))) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r")) or re.match(r"-(?!\d)", cell)]
    json.loads(read(tmp_path, "report.json"))
    for table in markdown_tables(read(tmp_path, "report.md")):
        assert {len(row) for row in table} == {len(table[0])}
    outside = re.sub(r"(?ms)^(`{3,})\n.*?^\1$", "", read(tmp_path, "report.md"))
    assert re.findall(r"<(?!br>|!-- -->|/?details>|/?summary>)", outside) == []

    said: list[str] = []
    page = browser.new_page()
    watch(page, said)
    page.goto((tmp_path / "sweeps/demo/report.html").as_uri())
    for plot in page.locator(".plot:visible").all():
        plot.scroll_into_view_if_needed()
    page.locator("#texts-shown article").first.wait_for()
    assert page.evaluate("[window.RAN, document.querySelectorAll('script').length, document.title]") == [
        None,
        3,
        "LoRA sweep demo",
    ]
    assert page.locator("table.summary tbody tr").count() == len(HOSTILE_TEXTS)
    page.close()
    assert said == []

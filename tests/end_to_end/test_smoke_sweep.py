"""The main command as a person types it, and everything that it leaves behind."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.chromium import DESKTOP, PHONE, PICTURES, watch
from support.commands import Finished, run_command

from lora_sweep.config.schema import Data
from lora_sweep.data.sources import make_tiny_records
from lora_sweep.data.splits import load_splits
from lora_sweep.errors import EXIT_INTERRUPTED
from lora_sweep.runs import files, results
from sweep.report.analysis.comparison import find_baseline
from sweep.report.analysis.load import load_sweep

README = Path(__file__).parents[2] / "README.md"
SMOKE = [sys.executable, "-m", "lora_sweep.train", "experiment=smoke"]


def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which the smoke experiment ran, and what it printed."""
    folder = tmp_path_factory.mktemp("smoke")
    plan = run([sys.executable, "-m", "sweep.plan", "experiment=smoke"], folder)
    assert (plan.returncode, plan.stderr) == (0, "")
    assert not list(folder.iterdir()), "a plan writes nothing"
    done = run(SMOKE, folder)
    assert re.sub("free: .*", "", done.stdout).startswith(re.sub("free: .*", "", plan.stdout)), (
        "another head than the plan's"
    )
    return folder, done


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs/sweeps/smoke/report.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_sweep_runs_and_says_where_the_report_is(smoke: Any) -> None:
    folder, done = smoke
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 trials and 1 baseline of tiny" in done.stdout
    for name in ("report.md", "report.csv", "report.json", "report.html"):
        path = f"runs/sweeps/smoke/{name}"
        assert path in done.stdout
        assert (folder / path).stat().st_size > 500
    assert re.search(r"W&B: offline. To upload: .*wandb.* sync runs/wandb", done.stdout)


def test_a_row_a_trial_with_every_column(smoke: Any) -> None:
    rows = rows_of(smoke[0])
    assert [row["kind"] for row in rows] == ["baseline"] + ["trial"] * 4
    assert {row["status"] for row in rows} == {"complete"}
    trials = rows[1:]
    assert [(row["r"], row["targets"]) for row in trials] == [
        ("2", "attn"),
        ("2", "all_linear"),
        ("4", "attn"),
        ("4", "all_linear"),
    ]
    per_rank = {"attn": 2 * (64 + 64 + 64 + 32), "all_linear": 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))}
    for row in trials:
        assert int(row["trainable_params"]) == int(row["r"]) * per_rank[row["targets"]]
        for column in ("quality", "validation_loss", "train_seconds", "tokens_per_second"):
            assert float(row[column]) >= 0, column
        assert int(row["peak_memory_bytes"]) > 100 * 2**20
        assert int(row["adapter_bytes"]) > 0
        assert row["bits"] in ("16", "32")
    assert rows[0]["trainable_params"] == "0"


def test_deleting_the_reports_and_reporting_again_gives_the_same_bytes(smoke: Any) -> None:
    folder, _ = smoke
    reports = {path: path.read_bytes() for path in (folder / "runs/sweeps/smoke").glob("report.*")}
    assert len(reports) == 4
    for path in reports:
        path.unlink()
    done = run_command("sweep.report.__main__", folder=folder)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in reports} == reports


def test_the_same_command_again_changes_no_file(smoke: Any) -> None:
    folder, first = smoke
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = run_command(*SMOKE[2:], folder=folder)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert "0 to run, 5 done" in again.stdout
    assert first.stdout.split("\nrow ")[1].split("\nW&B")[0].strip() == again.stdout.split("\nrow ")[1].strip()


def test_nothing_is_written_outside_runs(smoke: Any) -> None:
    assert [path.name for path in smoke[0].iterdir()] == ["runs"]


def offline_runs(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((folder / "runs/wandb").glob("offline-run-*/run-*.wandb")):
        read = run([sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)], folder)
        assert read.returncode == 0, read.stderr
        found.append({"id": path.stem.removeprefix("run-"), "text": read.stdout})
    return found


def test_wandb_holds_a_run_for_each_trial_the_baseline_and_the_sweep(smoke: Any) -> None:
    folder, _ = smoke
    runs = {found["id"]: found["text"] for found in offline_runs(folder)}
    rows = rows_of(folder)
    assert set(runs) == {*(f"{row['trial_id']}-{row['eval_id']}" for row in rows), "sweep-smoke"}
    for row in rows:
        text = runs[f"{row['trial_id']}-{row['eval_id']}"]
        assert row["label"] in text
        assert row["quality"][:6] in text, "the quality is not in the run"
    trial = runs[f"{rows[1]['trial_id']}-{rows[1]['eval_id']}"]
    losses = files.read_jsonl(files.trial_folder(folder / "runs", rows[1]["trial_id"]).losses)
    for point in losses:
        assert str(point["loss"])[:6] in trial, "the curve is not whole"


def test_generations_hold_prompts_texts_and_references(smoke: Any) -> None:
    folder, _ = smoke
    row = rows_of(folder)[1]
    result = results.load_record(folder / "runs", row["trial_id"], row["eval_id"])
    assert [g["prompt_id"] for g in result.generations] == [
        *(f"validation-{i}" for i in range(4)),
        "fixed-0",
        "fixed-1",
    ]
    assert all(g["prompt"].startswith("Below is an instruction") for g in result.generations)
    assert set(result.scores.prompts) == {g["prompt_id"] for g in result.generations}
    assert result.training.identity["kind"] == "trial"
    page = (folder / "runs/sweeps/smoke/report.html").read_text()
    assert "Corelogic Smooth Mouse" in page
    assert "Hoover Lightspeed" in page


def test_a_reader_opens_the_page_and_the_next_report_shows_the_votes(smoke: Any, browser: Any, tmp_path: Path) -> None:
    shutil.copytree(smoke[0] / "runs", tmp_path / "runs")
    folder = tmp_path / "runs/sweeps/smoke"
    said: list[str] = []
    page = browser.new_page(viewport=DESKTOP, accept_downloads=True)
    watch(page, said)
    page.goto((folder / "report.html").as_uri())

    rows = page.locator("table.summary tbody tr:visible")
    assert rows.count() == 5
    page.get_by_role("button", name="trainable", exact=True).click()
    marks = [row.get_attribute("id").removeprefix("row-") for row in rows.all()]
    params = {row["mark"]: row["trainable_params"] for row in json.loads((folder / "report.json").read_text())["rows"]}
    sizes = [params[mark] for mark in marks]
    assert sizes == sorted(sizes)
    page.get_by_label("Words").fill("all_linear")
    assert rows.count() == 2
    page.get_by_label("Words").fill("")
    page.get_by_label("Status").select_option("complete")
    assert rows.count() == 5

    page.get_by_label("Cost").select_option("train_seconds")
    page.locator("#pareto .plot").scroll_into_view_if_needed()  # a chart is drawn when a reader comes near it
    page.locator("#pareto canvas").first.wait_for()
    page.get_by_label("Prompt", exact=True).select_option(index=2)
    page.locator("#texts-shown article").first.wait_for()
    page.get_by_role("button", name="Start comparing").click()
    for number, key in enumerate("120", start=1):
        page.keyboard.press(key)
        page.get_by_text(f"Vote {number}").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save votes").click()
    download.value.save_as(folder / download.value.suggested_filename)
    for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
        page.set_viewport_size(size)
        page.evaluate("scrollTo(0, 0)")
        PICTURES.mkdir(exist_ok=True)
        page.screenshot(path=PICTURES / f"smoke-{name}.png")
        assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    page.close()
    assert said == []

    done = run_command("sweep.report.__main__", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    votes = json.loads((folder / "report.json").read_text())["votes"]
    assert sum(each["wins"] for each in votes.values()) == 2
    assert sum(each["ties"] for each in votes.values()) == 2  # one, seen from both of its rows
    assert "## Blind comparison" in (folder / "report.md").read_text()


@pytest.fixture(scope="module")
def one_trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """A folder in which one trial ran, with a key of TRL's own, and what the command printed."""
    folder = tmp_path_factory.mktemp("one")
    small = ["model=tiny", "data=tiny", "train.max_steps=2", "eval.prompts=1", "eval.max_new_tokens=2", "tracking=none"]
    one = ["quant=4bit", "+train.sft.adam_beta2=0.9", "sweep_name=one", "eval.validation_rows=2"]
    return folder, run_command("lora_sweep.train", *small, *one, folder=folder)


def test_one_trial_without_m_and_an_unpublished_key(one_trial: tuple[Path, Finished]) -> None:
    folder, done = one_trial
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 trial and 1 baseline of tiny" in done.stdout
    assert not (folder / "runs/wandb").exists()
    assert (folder / "runs/sweeps/one/report.csv").is_file()


def test_the_winner_is_used_as_the_readme_says(one_trial: tuple[Path, Finished]) -> None:
    """With an adapter that a real trial trained: the code runs, and the model's logits are not the base's."""
    (adapter,) = (one_trial[0] / "runs/trials").glob("*/adapter")
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    code = re.sub(r'adapter = "[^"]+"', f"adapter = {str(adapter)!r}", code)
    names: dict[str, Any] = {}
    exec(code, names)
    model, tokens = names["model"], names["tokenizer"]("a lamp", return_tensors="pt")
    adapted = model(**tokens).logits
    with model.disable_adapter():
        assert not torch.equal(adapted, model(**tokens).logits)


@pytest.mark.slow
def test_two_evaluations_of_one_sweep_are_rows_of_their_own(tmp_path: Path) -> None:
    small = ["model=tiny", "data=tiny", "train.max_steps=1", "eval.prompts=1", "tracking=none", "sweep_name=two"]
    done = run_command("lora_sweep.train", *small, "eval.max_new_tokens=2,3", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "runs/sweeps/two/report.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["kind"] for row in table] == ["baseline"] * 2 + ["trial"] * 2
    assert len({row["trial_id"] for row in table[2:]}) == 1
    assert len({row["eval_id"] for row in table[2:]}) == 2
    assert [row["eval.max_new_tokens"] for row in table] == ["2", "3", "2", "3"]
    report = (tmp_path / "runs/sweeps/two/report.md").read_text()
    assert "Rows were evaluated differently" in report


@pytest.mark.slow  # test_wrong_input sees the code, test_report the row
def test_a_failed_trial_gives_exit_code_1_and_stays_in_the_report(tmp_path: Path) -> None:
    small = ["model=tiny", "data=tiny", "train.max_steps=2", "eval.prompts=1", "eval.max_new_tokens=2", "tracking=none"]
    rates = ["-m", "lora.targets=mlp", "train.learning_rate=1e-3,1e30", "sweep_name=rates", "eval.validation_rows=2"]
    done = run_command("lora_sweep.train", *small, *rates, folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    report = (tmp_path / "runs/sweeps/rates/report.md").read_text()
    assert "diverged" in report
    assert "at step" in report
    with (tmp_path / "runs/sweeps/rates/report.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["complete", "complete", "diverged"]


def test_a_signal_before_anything_runs_ends_the_command_as_an_interruption(tmp_path: Path) -> None:
    script = (
        "import os, signal, hydra; from lora_sweep import train;"
        "hydra.main = lambda **settings: lambda task: lambda: os.kill(os.getpid(), signal.SIGTERM); train.main()"
    )
    done = run([sys.executable, "-c", script, "lora.r=8"], tmp_path)
    assert (done.returncode, done.stderr) == (EXIT_INTERRUPTED, "")
    assert done.stdout.endswith("Go on with:\n  python -m lora_sweep.train lora.r=8\n")


@pytest.mark.slow  # test_signals tells the story of a signal
@pytest.mark.parametrize(("pack", "saved"), [pytest.param("1", 1, marks=pytest.mark.slow), ("auto", 5)])
def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(pack: str, saved: int, tmp_path: Path) -> None:
    command = [*SMOKE, "tracking=none", f"launch.pack={pack}"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "r=2 all_linear" in line and "step 1/8" in line:
                os.killpg(process.pid, signal.SIGINT)  # what a terminal does: everyone in the foreground gets it
                break
        lines += process.stdout.readlines()
        assert process.wait() == EXIT_INTERRUPTED
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert lines[-2:] == [
        "interrupted; finished trials are kept. Go on with:\n",
        f"  python -m lora_sweep.train experiment=smoke tracking=none launch.pack={pack}\n",
    ]
    done = {
        path.parent.name: path.stat().st_mtime_ns
        for path in (tmp_path / "runs/trials").glob("*/result.json")
        if json.loads(path.read_text())["status"] == "complete"
    }
    assert len(done) >= (2 if saved == 1 else 1), (
        "one by one, the baseline and the first trial; in a pack the baseline has no texts yet"
    )
    outcomes = [json.loads(path.read_text()) for path in (tmp_path / "runs/trials").rglob("result.json")]
    assert [outcome["status"] for outcome in outcomes if outcome["status"] != "complete"] == ["preempted"] * saved
    again = run_command(*command[2:], folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {row["status"] for row in rows_of(tmp_path)} == {"complete"}
    assert (
        done.items()
        <= {p.parent.name: p.stat().st_mtime_ns for p in (tmp_path / "runs/trials").glob("*/result.json")}.items()
    )


@pytest.mark.slow
def test_each_model_is_compared_with_its_own_baseline(tmp_path: Path, tiny_folder: Any) -> None:
    small = ["data=tiny", "train.max_steps=1", "eval.prompts=1", "eval.max_new_tokens=2", "tracking=none"]
    models = f"model.path={tiny_folder('llama')},{tiny_folder('gpt2')}"
    done = run_command("lora_sweep.train", *small, models, "sweep_name=models", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = files.read_json(tmp_path / "runs/sweeps/models.json")
    assert sweep is not None
    named = {tuple(entry["baseline"]) for entry in sweep["trials"] if entry["kind"] == "trial"}
    assert named == {(e["trial_id"], e["eval_id"]) for e in sweep["trials"] if e["kind"] == "baseline"}
    loaded = load_sweep(tmp_path / "runs", "models")
    for trial in loaded.trials:
        if not trial.summary.is_baseline:
            baseline = find_baseline(loaded, trial)
            assert baseline is not None
            assert baseline.summary.base == trial.summary.base
    assert "smollm2_demo" not in (tmp_path / "runs/sweeps/models/report.md").read_text()


@pytest.mark.slow  # test_plan_table plans the experiment
def test_the_blogs_experiment_on_stand_ins_of_the_same_shape(tmp_path: Path, tiny_folder: Any) -> None:
    """Everything of experiment=databricks_table but the size: an untied Llama, its columns, its bits and its forms."""
    rows = [{**record, "text": ""} for record in make_tiny_records(60)]
    files.write_jsonl(tmp_path / "red_dot.jsonl", rows)
    small = [f"model.path={tiny_folder('llama')}", "data.path=red_dot.jsonl", "data.validation_fraction=0.2"]
    short = ["train.max_steps=2", "eval.prompts=2", "eval.validation_rows=4", "eval.max_new_tokens=4", "tracking=none"]
    done = run_command("lora_sweep.train", "experiment=databricks_table", *small, *short, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "runs/sweeps/databricks_table/report.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [(row["kind"], row["r"], row["bits"], row["eval_bits"], row["template"]) for row in table] == [
        ("baseline", "", "8", "8", "alpaca"),
        ("baseline", "", "8", "8", "qa"),
        ("trial", "8", "4", "8", "alpaca"),
        ("trial", "16", "4", "8", "alpaca"),
        ("trial", "8", "4", "8", "alpaca"),
        ("trial", "8", "8", "8", "alpaca"),
    ]
    assert table[-1]["target_modules"].split() == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    )
    assert {row["alpha"] for row in table[2:]} == {"8.0"}
    report = (tmp_path / "runs/sweeps/databricks_table/report.md").read_text()
    assert "red_dot.jsonl" in report
    assert "openllama" not in report, "the report names a model that was not used"
    assert "Corelogic Smooth Mouse" in report
    assert "Hoover Lightspeed" in report


def test_a_hub_data_set_is_read_as_the_datasets_library_gives_it(tmp_path: Path) -> None:
    """A folder stands in for a hub id: to the library they are the same call."""
    (tmp_path / "set").mkdir()
    files.write_jsonl(tmp_path / "set/train.jsonl", make_tiny_records(40))
    data = Data(name="hub", hub_id=str(tmp_path / "set"), sample=30, sample_seed=42)
    split = load_splits(data)
    assert split.rows_read == 40
    assert split.dropped["not among the 30 sampled"] == 10
    assert {row.product for row in split.train} <= {record["product"] for record in make_tiny_records(40)}

"""The W&B workspace and report of a sweep, as wandb-workspaces' own objects, built and serialised offline."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_report import build

from lora_sweep.errors import EXIT_COMPLETE, EXIT_FAILED, EXIT_REFUSED
from lora_sweep.runs.files import trial_folder
from sweep import dashboard
from sweep.report.analysis.analyse import analyse_sweep

needs_workspaces = pytest.mark.skipif(
    importlib.util.find_spec("wandb_workspaces") is None, reason="needs wandb-workspaces"
)

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # wandb-workspaces 0.4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep ``demo`` whose trials went to W&B's project ``p`` of ``team``."""
    folder = tmp_path_factory.mktemp("dashboard") / "runs"
    for entry in build(folder):
        path = trial_folder(folder, entry["trial_id"]).config
        content = json.loads(path.read_text())
        content["config"]["tracking"] |= {"project": "p", "entity": "team"}
        path.write_text(json.dumps(content))
    return folder


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "NETRC"))]:
        monkeypatch.delenv(name)
    for name in ("WANDB_SILENT", "WANDB_ERROR_REPORTING"):  # tracking sets them: have them taken away again
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def run_dashboard(runs: Path, *arguments: str) -> int:
    return dashboard.main(["--runs", str(runs), *arguments])


def panels(section: dict[str, Any]) -> list[tuple[str, Any]]:
    """Kind and configuration of each panel."""
    return [(panel["viewType"], panel["config"]) for panel in section["panels"]]


@needs_workspaces
def test_a_dry_run_prints_the_workspace_of_the_sweeps_runs(runs: Path, capsys: Any) -> None:
    assert run_dashboard(runs, "--dry-run") == EXIT_COMPLETE
    made = json.loads(capsys.readouterr().out)["workspace"]
    assert (made["entity"], made["project"], made["displayName"]) == ("team", "p", "LoRA sweep demo")
    section = made["spec"]["section"]
    (shown,) = section["runSets"]
    assert [(each["key"]["name"], each["op"], each["value"]) for each in shown["filters"]["filters"]] == [
        ("group", "=", "demo")
    ]
    assert shown["sort"]["keys"] == [{"key": {"section": "summary", "name": "quality"}, "ascending": False}]
    assert shown["runFeed"]["columnOrder"][:4] == [
        "run:displayName",
        "summary:quality",
        "summary:quality_ci_low",
        "summary:quality_ci_high",
    ]
    sections = {each["name"]: panels(each) for each in section["panelBankConfig"]["sections"]}
    assert list(sections) == [
        "Ranking",
        "Quality against cost",
        "What each setting changes",
        "Loss",
        "Memory and time",
        "Texts side by side",
    ]
    kind, bars = sections["Ranking"][0]
    assert (kind, bars["metrics"]) == ("Bar Chart", ["quality"])
    assert [(kind, each["xAxis"], each["yAxis"]) for kind, each in sections["Quality against cost"]] == [
        ("Scatter Plot", f"summary:{cost}", "summary:quality")
        for cost in ("trainable_params", "train_seconds", "peak_memory_bytes")
    ]
    assert sections["Loss"][0][1]["metrics"] == ["train/loss"]
    assert '"side_by_side"' in json.dumps(sections["Texts side by side"])
    effects = sections["What each setting changes"]
    assert {kind for kind, _ in effects} == {"Vega2"}
    assert effects[0][1]["fieldSettings"] == {"label": "r", "value": "mean quality"}
    assert '"effect_r_table"' in json.dumps(effects[0])


@needs_workspaces
def test_the_report_says_what_the_sweeps_report_says(runs: Path, capsys: Any) -> None:
    assert run_dashboard(runs, "demo", "--dry-run", "--entity", "me", "--project", "q") == EXIT_COMPLETE
    made = json.loads(capsys.readouterr().out)["report"]
    assert (made["displayName"], made["project"]["name"], made["project"]["entityName"]) == (
        "LoRA sweep demo",
        "q",
        "me",
    )
    blocks = made["spec"]["blocks"]
    analysis = analyse_sweep(runs, "demo")
    paragraphs = [block["children"][0]["text"] for block in blocks if block["type"] == "paragraph"]
    assert analysis.ranking.text in paragraphs
    said = json.dumps([block for block in blocks if block["type"] == "list"], ensure_ascii=False)
    for observation in analysis.observations:
        assert json.dumps(observation.text, ensure_ascii=False) in said
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert len(grids) == 6
    for grid in grids:
        (shown,) = grid["runSets"]
        assert [each["value"] for each in shown["filters"]["filters"]] == ["demo"]
        places = [panel["layout"] for panel in grid["panelBankSectionConfig"]["panels"]]
        assert len({(place["x"], place["y"]) for place in places}) == len(places)
        assert all(place["x"] + place["w"] <= 24 for place in places)


@needs_workspaces
def test_without_a_login_it_is_one_sentence(runs: Path, capsys: Any) -> None:
    assert run_dashboard(runs) == EXIT_REFUSED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "W&B: nobody is logged in (wandb login); --dry-run shows what would be saved\n"


@needs_workspaces
def test_with_a_login_both_are_saved(runs: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    monkeypatch.setattr(dashboard, "is_logged_in", lambda _: True)
    for made in (dashboard.import_workspaces()[0].Workspace, dashboard.import_workspaces()[1].Report):
        monkeypatch.setattr(made, "save", lambda self: saved.append((type(self).__name__, self.entity, self.project)))
        monkeypatch.setattr(made, "url", property(lambda self: f"https://wandb.ai/{type(self).__name__}"))
    assert run_dashboard(runs) == EXIT_COMPLETE
    assert saved == [("Workspace", "team", "p"), ("Report", "team", "p")]
    said = "workspace: https://wandb.ai/Workspace\nreport: https://wandb.ai/Report\n"
    assert capsys.readouterr().out == said

    def refuse(_: Any) -> None:
        raise ConnectionError("no answer\nof the server")

    monkeypatch.setattr(dashboard.import_workspaces()[0].Workspace, "save", refuse)
    assert run_dashboard(runs) == EXIT_FAILED
    assert capsys.readouterr().err == "W&B could not save it: ConnectionError: no answer\n"


def test_a_missing_package_is_one_sentence(runs: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert run_dashboard(runs, "--dry-run") == EXIT_REFUSED
    assert capsys.readouterr().err == "python -m sweep.dashboard: needs: pip install wandb-workspaces\n"


@pytest.mark.parametrize("name", ["demo2", "a'b", "../demo"])
def test_a_sweep_that_is_not_there_is_refused(runs: Path, capsys: Any, name: str) -> None:
    assert run_dashboard(runs, name, "--dry-run") == EXIT_REFUSED
    assert repr(name) in capsys.readouterr().err


def test_the_projects_own_name_is_used_where_no_trial_names_one() -> None:
    trial = SimpleNamespace(record=SimpleNamespace(config={"tracking": 3}))
    analysis: Any = SimpleNamespace(sweep=SimpleNamespace(trials=[trial]))
    assert dashboard.find_project(analysis, None, None) == (None, "lora-sweep")
    assert dashboard.find_project(analysis, "me", "q") == ("me", "q")

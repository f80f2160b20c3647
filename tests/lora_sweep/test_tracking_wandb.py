"""W&B as a mirror: what offline and online runs hold, and that no fault in it reaches a trial."""

import dataclasses
import json
import os
import pty
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lora_sweep.config.schema import Config, Lora, Tracking
from lora_sweep.runs.files import report_folder
from lora_sweep.tracking import run as tracking
from lora_sweep.tracking import wandb as wandb_runs
from lora_sweep.tracking.sweep_run import log_sweep

KEY = "0123456789abcdef" * 3
NOWHERE = "http://127.0.0.1:9"
HOSTILE = [
    "<script>alert(1)</script>\n</td>",
    '=HYPERLINK("http://x","y")',
    "\x1b[31mred\x1b[0m \u202eright to left\u202c \x00 \ufeff",
    "half a pair: \ud83d",
    "long " * 20_000,
]


@pytest.fixture(autouse=True)
def fresh_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody is logged in, the home directory is empty, and wandb has not been used in this process."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "NETRC", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_SILENT", "WANDB_ERROR_REPORTING"):  # tracking sets them: have them taken away again
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(wandb_runs, "_has_given_up", False)
    monkeypatch.setattr(wandb_runs, "_open_ids", set())
    yield
    if "wandb" in sys.modules:
        import wandb

        wandb.teardown()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def open_run(runs: Path, settings: Tracking | None = None, **changes: Any) -> tracking.Run:
    config = dataclasses.asdict(Config(lora=Lora(r=8, targets=["q_proj", "v_proj"])))
    values: dict[str, Any] = {
        "group": "first",
        "name": "r=8 attn 4bit",
        "run_id": "abc-def",
        "job_type": "trial",
        "config": config,
    }
    return tracking.open_run(settings or Tracking(), runs, **{**values, "tags": ["smollm2_demo"], **changes})


def folders(runs: Path) -> list[Path]:
    return sorted(path for path in (runs / "wandb").glob("*run-*") if not path.is_symlink())


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of an offline run, as wandb's own reader prints them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    return [json.loads(line) for line in subprocess.check_output(command, text=True).splitlines()]


def of_type(content: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in content if record["type"] == kind]


def summary(content: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary at the end of a run; nested keys are joined by dots."""
    merged: dict[str, Any] = {}
    for record in of_type(content, "summary"):
        merged |= record["update"]
    return merged


def table(folder: Path, content: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    saved = json.loads((folder / "files" / summary(content)[f"{key}.path"]).read_text(encoding="utf-8"))
    return [dict(zip(saved["columns"], row, strict=True)) for row in saved["data"]]


# --- what a run holds ------------------------------------------------------------------------------------------


def test_a_trial_is_mirrored_with_its_config_curves_numbers_and_texts(runs: Path, capfd: Any) -> None:
    run = open_run(runs)
    for step in (1, 2, 3):
        run.log_step(step, {"loss": 3 / step, "learning_rate": 1e-3, "grad_norm": None if step == 1 else 0.5})
    asked = {"words": 3, "quality": None, "prompt": "Write:"}
    rows: list[dict[str, Any]] = [{**asked, "prompt_id": f"fixed-{i}", "text": text} for i, text in enumerate(HOSTILE)]
    rows.append({"prompt_id": "validation-0", "quality": 41.5, "finished": True, "reference": "ok", "product": "Mouse"})
    run.finish({"quality": 41.5, "trainable_params": 2_662_400, "validation_loss": 3.16}, rows)
    run.finish({"quality": 0})
    run.log_step(4, {"loss": 0.0})

    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    (folder,) = folders(runs)
    content = records(folder)
    (header,) = of_type(content, "run")
    assert (header["run_group"], header["display_name"], header["run_id"]) == ("first", "r=8 attn 4bit", "abc-def")
    assert (header["project"], header["job_type"], header["tags"]) == ("lora-sweep", "trial", ["smollm2_demo"])
    assert "git" not in header
    config = header["config"]["update"]
    assert config["lora"]["r"] == 8
    assert config["lora"]["targets"] == ["q_proj", "v_proj"]
    assert config["train"]["learning_rate"] == 3e-3
    points = [record["item"] for record in of_type(content, "history")]
    assert [(p["_step"], p["train/loss"], p.get("train/grad_norm", "none")) for p in points] == [
        (1, 3, "none"),
        (2, 1.5, 0.5),
        (3, 1, 0.5),
    ]
    numbers = summary(content)
    assert (numbers["quality"], numbers["trainable_params"], numbers["validation_loss"]) == (41.5, 2_662_400, 3.16)
    assert (numbers["status"], numbers["reason"]) == ("complete", None)
    saved = table(folder, content, "generations")
    assert list(saved[0])[:4] == ["prompt_id", "product", "prompt", "text"]
    assert [row["text"] for row in saved[:-1]] == [text.replace("\ud83d", "?") for text in HOSTILE]
    assert (saved[-1]["quality"], saved[-1]["finished"], saved[-1]["reference"]) == (41.5, True, "ok")
    assert [record["exit_code"] for record in of_type(content, "exit")] == [0]  # beside it, its seconds


def test_runs_that_are_open_at_once_keep_apart_and_leave_the_process_as_it_was(runs: Path, tmp_path: Path) -> None:
    before = {**os.environ, "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    first = open_run(runs)
    second = open_run(runs, run_id="base-def", job_type="baseline", name="baseline 4bit")
    first.log_step(1, {"loss": 1.0})
    second.log_step(1, {"loss": 2.0})
    second.finish({"quality": 2.0}, [{"text": "two"}])
    first.log_step(2, {"loss": 0.5})
    first.finish({"quality": 1.0}, [{"text": "one"}])

    assert dict(os.environ) == before
    assert not list((tmp_path / "home").iterdir())
    found = {}
    for folder in folders(runs):
        content = records(folder)
        losses = [record["item"]["train/loss"] for record in of_type(content, "history")]
        found[of_type(content, "run")[0]["job_type"]] = (losses, table(folder, content, "generations"))
    assert found == {"baseline": ([2], [{"text": "two"}]), "trial": ([1, 0.5], [{"text": "one"}])}


def test_a_failed_run_says_how_and_why(runs: Path) -> None:
    run = open_run(runs)
    run.log_step(1, {"loss": float("nan"), "grad_norm": float("inf")})
    run.fail("diverged", "loss is nan at step 1")

    (folder,) = folders(runs)
    content = records(folder)
    assert of_type(content, "history")[0]["item"]["train/loss"] == "NaN"
    assert [record["exit_code"] for record in of_type(content, "exit")] == [1]
    assert (summary(content)["status"], summary(content)["reason"]) == ("diverged", "loss is nan at step 1")


def test_the_sweeps_own_run_has_its_table_and_its_best(runs: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"label": "base", "kind": "baseline", "status": "complete", "quality": 50.0, "target_modules": None},
        {"label": "a", "kind": "trial", "status": "complete", "quality": 31.0, "target_modules": ["q_proj", "v_proj"]},
        {"label": "b", "kind": "trial", "status": "complete", "quality": 44.0, "target_modules": ["q_proj"]},
        {"label": "c", "kind": "trial", "status": "failed", "quality": None, "target_modules": [], "reason": "why"},
        {"label": "d", "kind": "trial", "status": "diverged", "quality": 99.0, "target_modules": []},
        {"label": "e", "kind": "trial", "status": "complete", "quality": 98.0, "drift": ["data", "code"]},
    ]
    command = "python -m lora_sweep.train -m lora.r=8,16 train.sft.hub_token=hf_geheim"
    log_sweep(Tracking(project="other"), runs, name="first", command=command, rows=rows)

    (folder,) = folders(runs)
    content = records(folder)
    (header,) = of_type(content, "run")
    assert (header["run_group"], header["job_type"], header["project"]) == ("first", "sweep", "other")
    assert header["config"]["update"]["command"] == command.replace("hf_geheim", "***")
    numbers = summary(content)
    assert (numbers["best_quality"], numbers["best_label"], numbers["baseline_quality"]) == (44, "b", 50)
    assert (numbers["trials"], numbers["complete"]) == (6, 4)
    saved = table(folder, content, "trials")
    assert list(saved[0]) == ["label", "quality", "kind", "status", "target_modules", "reason", "drift"]
    assert [row["label"] for row in saved] == ["base", "a", "b", "c", "d", "e"]
    assert [row["target_modules"] for row in saved] == [None, "q_proj, v_proj", "q_proj", "", "", None]
    assert saved[5]["drift"] == "data, code"
    assert saved[3]["reason"] == "why"


def test_the_sweeps_own_run_draws_its_charts_and_holds_the_report(runs: Path, tmp_path: Path) -> None:
    folder = report_folder(runs, "first")
    folder.mkdir(parents=True)
    for file in ("report.html", "report.md", "report.csv", "other.json"):
        (folder / file).write_text(f"the {file}")
    effect = {"factor": "lora.r", "levels": [{"level": "8", "mean": 20.5, "low": 15.0, "high": 26.0}]}
    charts = {
        "rows": [
            {"mark": "1", "label": "r=8", "kind": "trial", "quality": 20.5, "trainable_params": 896, "low": 15.0}
            | {"recommended": True, "high": 26.0},
            {"mark": "2", "label": HOSTILE[0], "kind": "trial", "quality": None, "trainable_params": 1792},
        ],
        "factors": [{"key": "lora.r", "name": "r", "levels": ["8"], "numeric": True}],
        "effects": [effect],
        "prompts": [{"id": "validation-0", "prompt": "Write:", "reference": "ok"}, {"id": "validation-1"}],
        "texts": {"0": {"1": {"text": HOSTILE[3]}, "2": {"text": "two"}}},
    }
    log_sweep(Tracking(), runs, name="first", command="c", rows=[], charts=charts)

    assert not list((tmp_path / "home").iterdir())
    (written,) = folders(runs)
    content = records(written)
    numbers = summary(content)
    assert (numbers["recommended_label"], numbers["recommended_quality_ci_high"]) == ("r=8", 26)
    (scatter,) = table(written, content, "pareto_trainable_params_table")
    assert (scatter["trainable_params"], scatter["quality"], scatter["entry"]) == (896, 20.5, "1: r=8")
    (bar,) = table(written, content, "effect_r_table")
    assert bar == {"r": "8", "mean quality": 20.5, "low": 15, "high": 26}
    (text,) = table(written, content, "side_by_side")
    assert (text["prompt_id"], text["reference"], text["1: r=8"]) == ("validation-0", "ok", "half a pair: ?")
    assert text[f"2: {HOSTILE[0]}"] == "two"
    assert len(table(written, content, "ranking")) == 2
    said = json.dumps(content)
    assert '"wandb/scatter/v0"' in said.replace("\\", "")
    assert '"wandb/bar/v0"' in said.replace("\\", "")
    reports = [record for record in of_type(content, "artifact") if record["type"] == "report"]
    assert [record["name"] for record in reports] == ["report-first"]
    assert {entry["path"] for entry in reports[0]["manifest"]["contents"]} == {
        "report.html",
        "report.md",
        "report.csv",
    }


def test_no_secret_of_the_command_line_or_the_config_is_in_any_file(runs: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; from lora_sweep.config import schema as config\n"
        "from lora_sweep.tracking import run as tracking\n"
        "values = {'train': {'sft': {'hub_token': 'geheim-config', 'eos': 'kept'}}}\n"
        "run = tracking.open_run(config.Tracking(), Path(sys.argv[1]), group='g', name='n', run_id='i',\n"
        "                        job_type='trial', config=values, tags=[])\n"
        "run.log_step(1, {'loss': 1.0}); print('geheim-printed')\n"
        "run.finish({'quality': 1.0}, [{'text': 'seen'}])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(tracking.__file__).parents[2])}
    subprocess.run([sys.executable, str(script), str(runs), "--token=geheim-argv"], env=environment, check=True)

    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != script]
    content = b"".join(path.read_bytes() for path in written)
    assert b"kept" in content
    assert b"seen" in content
    assert b"geheim" not in content
    assert not [path for path in written if path.suffix in (".patch", ".py", ".txt") or path.name == "output.log"]


# --- where runs go ---------------------------------------------------------------------------------------------


def refuse_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX, f"a connection to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.mark.parametrize(
    ("settings", "environment", "file", "expected"),
    [
        (Tracking(), {}, None, "offline"),
        (Tracking(), {"WANDB_API_KEY": KEY}, None, "online"),
        (Tracking(), {}, (".netrc", f"machine api.wandb.ai\n login user\n password {KEY}\n"), "online"),
        (Tracking(), {}, (".netrc", "machine example.org login user password x\n"), "offline"),
        (Tracking(), {}, (".config/wandb/settings", f"[default]\napi_key = {KEY}\n"), "online"),
        (Tracking(), {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, None, "offline"),
        (Tracking(), {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, None, "none"),
        (Tracking(), {"WANDB_API_KEY": " no key "}, None, "offline"),
        (Tracking(mode="online"), {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, None, "online"),
        (Tracking(mode="online"), {}, None, "offline"),
        (Tracking(mode="offline"), {"WANDB_API_KEY": KEY}, None, "offline"),
    ],
)
def test_runs_go_online_when_there_is_a_login_and_nobody_said_otherwise(
    settings: Tracking,
    environment: dict[str, str],
    file: tuple[str, str] | None,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    refuse_network(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if file is not None:
        path = tmp_path / "home" / file[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file[1])
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert wandb_runs.choose_mode(settings) == expected
    assert tracking.is_logged_in(settings) == (expected == "online")
    assert capfd.readouterr().err == ""


def test_nobody_is_asked_for_a_login_even_at_a_terminal(runs: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from lora_sweep.config import schema as config\n"
        "from lora_sweep.tracking import run as tracking\n"
        "for mode in ('auto', 'online'):\n"
        "    run = tracking.open_run(config.Tracking(mode=mode), Path(sys.argv[1]), group='g', name='n', run_id=mode,\n"
        "                            job_type='trial', config={}, tags=[])\n"
        "    run.finish({'quality': 1.0})\n"
    )
    keyboard, terminal = pty.openpty()
    command = [sys.executable, "-c", script, str(runs)]
    environment = {**os.environ, "TERM": "xterm", "WANDB_SILENT": "false"}  # silent, it would ask nobody anyway
    done = subprocess.run(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, timeout=20)
    os.close(terminal)
    said = os.read(keyboard, 10_000).decode()
    os.close(keyboard)
    assert done.returncode == 0
    assert said.split("\r\n") == ["W&B: not logged in (wandb login), so this run is kept offline", ""]
    assert [folder.name.partition("-")[0] for folder in folders(runs)] == ["offline", "offline"]


def test_the_sync_line_finds_every_folder_of_a_run_that_was_made_twice(runs: Path, monkeypatch: Any) -> None:
    assert tracking.closing_line(Tracking(), runs) is None
    for quality in (1.0, 2.0):
        open_run(runs).finish({"quality": quality})
    line = tracking.closing_line(Tracking(), runs)
    assert line is not None
    said = subprocess.run(
        f"{line.removeprefix('W&B: offline. To upload: ')} --dry-run",
        shell=True,
        env={**os.environ, "WANDB_SILENT": "false"},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0
    assert "Would sync 2 run(s)" in said.stderr
    assert "resume" not in of_type(records(folders(runs)[0]), "run")[0]  # `wandb sync` would append, not replace
    assert tracking.closing_line(Tracking(backend="none"), runs) is None
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert tracking.closing_line(Tracking(), runs) is None


# --- a mirror's fault is no fault of the trial -----------------------------------------------------------------


def test_an_init_that_raises_is_one_line(runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    import wandb

    def broken(**_: Any) -> None:
        raise RuntimeError("no such thing\nand a second line")

    monkeypatch.setattr(wandb, "init", broken)
    run = open_run(runs)
    run.log_step(1, {"loss": 1.0})
    run.finish({"quality": 1.0}, [{"text": "x"}])
    captured = capfd.readouterr()
    assert captured.out == "W&B: the run 'r=8 attn 4bit' is not mirrored: RuntimeError: no such thing\n"
    assert captured.err == ""


@pytest.mark.parametrize("place", ["/proc/runs", "file"])
def test_a_folder_that_cannot_be_written_is_one_line_and_nothing_goes_elsewhere(
    place: str, tmp_path: Path, capfd: Any
) -> None:
    path = tmp_path / place  # an absolute one replaces tmp_path
    if place == "file":
        path.write_text("in the way")
    run = open_run(path)
    run.log_step(1, {"loss": 1.0})
    run.fail("failed", "why")
    said = capfd.readouterr().out
    assert said.count("\n") == 1
    assert "is not mirrored" in said
    assert not list(tmp_path.rglob("*.wandb"))


def test_a_server_that_cannot_be_reached_makes_later_runs_offline_at_once(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
    monkeypatch.setattr(wandb_runs, "INIT_SECONDS", 1.0)
    run = open_run(runs, Tracking(mode="online"))
    run.log_step(1, {"loss": 1.0})
    run.finish({"quality": 7.0}, [{"text": "x"}])
    started = time.monotonic()
    open_run(runs, Tracking(mode="online"), run_id="second").finish({"quality": 8.0})
    assert time.monotonic() - started < 1.0

    captured = capfd.readouterr()
    assert captured.out.startswith("W&B: going online failed, so runs are kept offline: CommError")
    assert (captured.out.count("\n"), captured.err) == (1, "")
    offline = [folder for folder in folders(runs) if folder.name.startswith("offline-")]
    assert [summary(records(folder))["quality"] for folder in offline] == [7, 8]
    assert tracking.closing_line(Tracking(mode="online"), runs) is not None


def test_an_end_of_the_service_that_would_end_the_process_does_not(runs: Path, capfd: Any) -> None:
    import wandb

    def broken(*, mode: str, **_: Any) -> None:
        raise RuntimeError(f"no {mode}")

    def crashed() -> None:
        sys.exit(2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setattr(wandb, "init", broken)
        patch.setattr(wandb, "teardown", crashed)
        open_run(runs).finish({"quality": 1.0})
    assert capfd.readouterr().out.splitlines() == [
        "W&B: going online failed, so runs are kept offline: RuntimeError: no online",
        "W&B: the run 'r=8 attn 4bit' is not mirrored: RuntimeError: no offline",
    ]


def test_a_service_that_dies_is_one_line(runs: Path) -> None:
    script = (
        "import os, signal, sys, time; from pathlib import Path; from lora_sweep.config import schema as config\n"
        "from lora_sweep.tracking import run as tracking\n"
        "run = tracking.open_run(config.Tracking(), Path(sys.argv[1]), group='g', name='n', run_id='i',\n"
        "                        job_type='trial', config={}, tags=[])\n"
        "run.log_step(1, {'loss': 1.0})\n"
        "for task in Path('/proc/self/task').iterdir():\n"
        "    for pid in (task / 'children').read_text().split():\n"
        "        assert 'wandb-core' in Path(f'/proc/{pid}/cmdline').read_text()\n"
        "        os.kill(int(pid), signal.SIGKILL)\n"
        "for step in range(2, 6):\n"
        "    time.sleep(0.1); run.log_step(step, {'loss': 1.0})\n"
        "run.finish({'quality': 1.0}, [{'text': 'x'}])\n"
        "print('the trial goes on', flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(runs)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("W&B: a run is not mirrored completely: ")
    assert second == "the trial goes on"


# --- online ----------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """As much of a W&B server as a run without a table asks for. ``answers`` cleared: it goes silent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = threading.Event()
        self.answers.set()
        self.closing = threading.Event()
        self.buckets: list[dict[str, Any]] = []
        self.points: list[dict[str, Any]] = []

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "P", "name": "lora-sweep", "entity": {"id": "E", "name": "somebody"}}
        bucket = {"id": "B", "name": "abc-def", "displayName": "r=8", "project": project, "historyLineCount": 0}
        if "upsertBucket" in query:
            self.buckets.append(variables)
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "RunResumeStatus" in query:
            tail = json.dumps([json.dumps(point) for point in self.points[-1:]])
            counts = {"historyLineCount": len(self.points), "eventsLineCount": 0, "logLineCount": 0}
            kept = {"historyTail": tail, "eventsTail": "[]", "config": "{}", "summaryMetrics": "{}", "tags": []}
            known = {**bucket, **counts, **kept, "wandbConfig": '{"t": {"value": 1}}'}
            return {"model": {**project, "bucket": known if self.points else None}}
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": []}}
        return {"viewer": {"id": "U", "entity": "somebody"}, "serverInfo": {"features": []}}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        while not self.server.answers.is_set() and not self.server.closing.wait(0.05):
            pass
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            answer = {"data": self.server.graphql(body["query"], body.get("variables") or {})}
        elif history := (body.get("files") or {}).get("wandb-history.jsonl"):
            self.server.points[history["offset"] :] = [json.loads(line) for line in history["content"]]
        payload = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


def test_an_online_run_that_is_made_again_goes_on_where_it_was(server: Server, runs: Path, capfd: Any) -> None:
    for steps in ((1, 2, 3), (2, 3, 4)):
        run = open_run(runs)
        for step in steps:
            run.log_step(step, {"loss": 1 / step})
        run.finish({"quality": 1.0})
    assert [(point["_step"], point["train/loss"]) for point in server.points] == [
        (1, 1),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
        (4, 0.25),
    ]
    first = server.buckets[0]
    assert (first["groupName"], first["displayName"], first["name"]) == ("first", "r=8 attn 4bit", "abc-def")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_server_that_falls_silent_does_not_hold_the_trial(
    server: Server, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_runs, "FINISH_SECONDS", 1.0)
    run = open_run(runs)
    run.log_step(1, {"loss": 1.0})
    server.answers.clear()
    started = time.monotonic()
    run.finish({"quality": 5.0})
    assert time.monotonic() - started < 5
    (folder,) = folders(runs)
    assert summary(records(folder))["quality"] == 5  # kept on disk: `wandb sync --include-online` uploads it


def test_a_run_that_cannot_go_online_leaves_the_open_ones_alone(
    server: Server, runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    first = open_run(runs)
    monkeypatch.setattr(wandb_runs, "INIT_SECONDS", 1.0)
    server.answers.clear()
    open_run(runs, run_id="second", name="second").finish({"quality": 1.0})
    server.answers.set()
    first.log_step(1, {"loss": 1.0})
    first.finish({"quality": 1.0})
    assert [point["train/loss"] for point in server.points] == [1]
    said = capfd.readouterr().out
    assert said.startswith("W&B: the run 'second' is not mirrored: CommError")
    assert said.count("\n") == 1

"""Trackio as a mirror, read back with its own API: in a process of its own, since its folder is fixed at import."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_sweep.config.schema import Tracking
from lora_sweep.tracking import run

needs_trackio = pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="needs trackio")
TRACKIO = Tracking(backend="trackio", project="p")

WRITE = """
import sys
from pathlib import Path
from lora_sweep.config import schema as config
from lora_sweep.tracking import run as tracking
from lora_sweep.runs.files import report_folder
from lora_sweep.tracking.sweep_run import log_sweep

runs, settings = Path(sys.argv[1]), config.Tracking(backend="trackio", project="p")
folder = report_folder(runs, "first")
folder.mkdir(parents=True)
(folder / "report.html").write_text("a page")

def open_run(run_id, name):
    return tracking.open_run(settings, runs, group="first", name=name, run_id=run_id, job_type="trial",
                             config={"lora": {"r": 8}, "hub_token": "geheim"}, tags=["tiny"])

first = open_run("abc", "r=08")
first.log_step(1, {"loss": 9.0})
first.fail("preempted", "killed here, and made again")
first, second = open_run("abc", "r=08"), open_run("bad", "r=16")
for step in (1, 2):
    first.log_step(step, {"loss": 3 / step, "grad_norm": None})
    second.log_step(step, {"loss": float("nan")})
text = "<script>alert(1)</script> half a pair: " + chr(0xD83D)
first.finish({"quality": 41.5, "trainable_params": 896}, [{"prompt_id": "validation-0", "text": text, "quality": None}])
second.fail("diverged", "loss is nan at step 2")
rows = [{"label": "a", "kind": "trial", "status": "complete", "quality": 41.5}]
log_sweep(settings, runs, name="first", command="c token=x", rows=rows)
"""

READ = """
import json, sys
import trackio
from trackio.sqlite_storage import SQLiteStorage
found = {}
for run in trackio.Api().runs("p"):
    logs = SQLiteStorage.get_logs("p", run.name, run_id=run.id)
    found[run.name] = {"id": run.id, "config": run.config, "logs": logs, "alerts": run.alerts()}
print(json.dumps(found, default=str))
"""


@needs_trackio
def test_runs_are_kept_below_the_runs_folder_and_read_back(tmp_path: Path) -> None:
    runs, here = tmp_path / "runs", tmp_path / "here"
    here.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(run.__file__).parents[2]), "HOME": str(here)}
    environment.pop("HF_HUB_OFFLINE", None)  # it would hide a call
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment |= {"TRACKIO_SPACE_ID": "somebody/space", "TRACKIO_SERVER_URL": url, "TRACKIO_WRITE_TOKEN": "x"}
        environment |= {"HF_TOKEN": "hf_geheim", "HF_ENDPOINT": url}
        command = [sys.executable, "-c", WRITE, str(runs)]
        done = subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True, timeout=60)
        with pytest.raises(BlockingIOError):  # nobody called, not even to ask whose token that is
            server.accept()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(here.iterdir())
    assert not [p for p in runs.rglob("*") if p.is_file() and b"geheim" in p.read_bytes()]

    environment |= {"TRACKIO_DIR": str(runs / "trackio")}
    said = subprocess.check_output([sys.executable, "-c", READ], env=environment, cwd=here, text=True)
    found: dict[str, Any] = json.loads(said)
    assert {name: run["id"] for name, run in found.items()} == {
        "r=08": "abc",
        "r=16": "bad",
        "sweep first": "sweep-first",
    }
    trial = found["r=08"]
    assert trial["config"]["lora"] == {"r": 8}
    assert (trial["config"]["_Group"], trial["config"]["kind"], trial["config"]["_Username"]) == (
        "first",
        "trial",
        None,
    )
    losses = [(log["step"], log["train/loss"]) for log in trial["logs"] if "train/loss" in log]
    assert losses == [(1, 3.0), (2, 1.5)]
    (summary,) = (log for log in trial["logs"] if "quality" in log)
    assert (summary["quality"], summary["trainable_params"], summary["status"]) == (41.5, 896, "complete")
    (table,) = (log["generations"]["_value"] for log in trial["logs"] if "generations" in log)
    assert table == [{"prompt_id": "validation-0", "text": "<script>alert(1)</script> half a pair: ?", "quality": None}]
    assert [alert["title"] for alert in found["r=16"]["alerts"]] == ["diverged: loss is nan at step 2"]
    assert found["sweep first"]["config"]["command"] == "c token=***"
    assert [path.read_bytes() for path in (runs / "trackio").rglob("*") if path.is_file()].count(b"a page") == 1


def test_the_closing_line_names_the_folder(tmp_path: Path) -> None:
    assert run.closing_line(TRACKIO, tmp_path) is None
    (tmp_path / "trackio").mkdir()
    line = f"Trackio: to see the runs: TRACKIO_DIR={tmp_path}/trackio trackio show --project p"
    assert run.closing_line(TRACKIO, tmp_path) == line

"""A plan as a table, and the command that prints it."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.plans import FACTS, changed, finish, planned, trials
from support.plans import asked as asked

from lora_sweep.errors import Refused
from lora_sweep.runs import files, results
from sweep.plan import __main__
from sweep.plan.table import format_plan
from sweep.resources import machine
from sweep.resources.machine import Slot
from sweep.store import trial_state
from sweep.store.trial_state import TrialState
from sweep.trials import Plan

ROOT = Path(__file__).parents[2]


# --- the table -------------------------------------------------------------------------------------------------------


CPU = Slot("cpu", None, "cpu", 16 << 30)


def table(plan: Plan, runs: Path, *devices: Slot, notes: tuple[str, ...] = (), **states: TrialState) -> list[str]:
    """The lines of the plan's table; ``states`` by the trials' labels without blanks, else as the files say."""
    found = trial_state.read_trial_states(plan, runs)
    by_label = {trial.label.replace(" ", "_").replace("=", ""): trial.key for trial in plan.trials}
    found |= {by_label[label]: state for label, state in states.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "find_slots", lambda _: devices or [CPU])
        return format_plan(plan, runs, "s", found, notes).splitlines()


def test_the_table_says_what_is_to_do_and_what_the_data_lost(tmp_path: Path) -> None:
    plan = planned(changed(lora__r=2), changed(lora__r=4))
    finish(tmp_path, trials(plan)[0])
    head, data, device, time, disk, blank, header, *rows = table(plan, tmp_path)
    assert head == "sweep s: 2 trials and 1 baseline of small; 2 to run, 1 done"
    assert data == (
        "data few: 40 training, 5 validation, 3 test rows, 1,234 training tokens an epoch; "
        "2 left out (repeated); 1 training and 0 validation rows cut at 256 tokens"
    )
    assert device == "device: cpu, 16.0 GiB"
    assert time == "time unknown: no trial of this base has finished"
    assert disk.startswith(f"disk needed: about 0.4 MB in {tmp_path} (free: ")
    assert blank == ""
    assert header.split() == ["#", "trial", "id", "state", "target", "modules", "trainable", "memory"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    for row, trial in zip(rows, plan.trials, strict=True):
        assert trial.label in row
        assert trial.trial_id in row
        assert f"{trial.trainable_params:,}" in row
        assert row.endswith(" GiB")


def test_the_table_counts_each_state_once_and_says_why_rows_are_broken(tmp_path: Path) -> None:
    plan = planned(*(changed(lora__r=r) for r in (1, 2, 3, 4, 5)))
    lines = table(
        plan,
        tmp_path,
        r1_attn_32bit=TrialState("trained"),
        r2_attn_32bit=TrialState("done", is_final=True),
        r3_attn_32bit=TrialState("diverged", "loss is nan", is_final=True),
        r4_attn_32bit=TrialState("broken", "losses.jsonl was altered"),
        r5_attn_32bit=TrialState("oom", "no memory"),
    )
    assert lines[0] == "sweep s: 5 trials and 1 baseline of small; 3 to run, 1 done, 1 diverged, 1 broken"
    shown = [line.split()[5] for line in lines if " attn " in line and "q_proj" in line]
    assert shown == ["trained", "done", "diverged", "broken", "oom"]
    assert lines[-2:] == ["", "broken: r=4 attn 32bit: losses.jsonl was altered"]


def test_a_failure_that_is_to_be_tried_again_is_to_run(tmp_path: Path) -> None:
    plan = planned(changed(launch__retry="failed"))
    assert "; 2 to run, 0 done" in table(plan, tmp_path, r8_attn_32bit=TrialState("timeout", is_final=True))[0]
    assert "; 1 to run, 1 done" in table(plan, tmp_path, r8_attn_32bit=TrialState("done", is_final=True))[0]


def test_wrong_points_are_rows_after_the_trials_and_their_reasons_stand_below(tmp_path: Path) -> None:
    lines = table(planned(changed(lora__r=33), changed(lora__r=4)), tmp_path)
    assert lines[0] == "sweep s: 1 trial and 1 baseline of small; 2 to run, 0 done, 1 invalid"
    row, blank, reason = lines[-3:]
    assert row.split()[:5] == [
        "3",
        "r=33",
        "attn",
        "32bit",
        planned(changed(lora__r=33), changed()).invalid[0].trial_id,
    ]
    assert row.split()[5:] == ["invalid", "-", "-", "-"]
    assert blank == ""
    assert reason == (
        "invalid: r=33 attn 32bit: lora.r = 33: is larger than the layer layers.0.attn.v_proj (64 x 32); at most 32"
    )


def test_a_trial_that_does_not_fit_is_marked(tmp_path: Path) -> None:
    plan = planned(changed(lora__r=2), changed(lora__r=2, train__per_device_train_batch_size=400))
    small, large = (trial.forecast.total for trial in trials(plan))
    assert small < 64 << 20 < large
    lines = table(plan, tmp_path, dataclasses.replace(CPU, memory_bytes=64 << 20))
    assert lines[2] == "device: cpu, 0.1 GiB; 1 of the rows does not fit"
    assert [line.endswith("GiB  does not fit 0.1 GiB") for line in lines[-3:]] == [False, False, True]
    done = table(
        plan,
        tmp_path,
        dataclasses.replace(CPU, memory_bytes=64 << 20),
        **{trials(plan)[1].label.replace(" ", "_").replace("=", ""): TrialState("done", is_final=True)},
    )
    assert "not fit" not in "".join(done), "it did fit"
    silent = dataclasses.replace(CPU, memory_bytes=None)
    assert "not fit" not in "".join(table(plan, tmp_path, silent))
    assert "not fit" not in "".join(table(plan, tmp_path, silent, dataclasses.replace(CPU, memory_bytes=1)))


@pytest.mark.parametrize(
    ("workers", "devices", "line", "fits"),
    [
        (None, [2], "device: big, 2.0 GiB", True),
        (None, [2, 2], "devices: 2 x big, 2.0 GiB each", True),
        (None, [2, 1], "devices: big, 2.0 GiB and big, 1.0 GiB", True),
        (1, [2, 2], "device: big, 2.0 GiB", True),
        (4, [2, 2], "devices: 2 x big, 2.0 GiB each; 4 workers share them; 2 of the rows do not fit", False),
        (2, [2], "device: big, 2.0 GiB; 2 workers share it; 2 of the rows do not fit", False),
    ],
)
def test_devices_and_the_workers_that_share_them(
    workers: int | None, devices: list[int], line: str, fits: bool, tmp_path: Path
) -> None:
    plan = planned(changed(launch__workers=workers))
    heavy = [dataclasses.replace(t, forecast=dataclasses.replace(t.forecast, weights=3 << 29)) for t in plan.trials]
    plan = dataclasses.replace(plan, trials=heavy)
    lines = table(plan, tmp_path, *(Slot("cuda", i, "big", size << 30) for i, size in enumerate(devices)))
    assert lines[2] == line
    assert ("does not fit" in lines[-1]) != fits


def test_a_plan_without_work_expects_nothing(tmp_path: Path) -> None:
    plan = planned(changed())
    for trial in plan.trials:
        finish(tmp_path, trial)
    lines = table(plan, tmp_path, notes=("drift: a note",))
    assert lines[2:5] == ["device: cpu, 16.0 GiB", "drift: a note", ""]


def test_the_time_is_learnt_from_finished_trials_of_this_base_on_this_device(tmp_path: Path) -> None:
    plan = planned(*(changed(lora__r=r) for r in (1, 2, 3)), changed(quant__bits=4))
    first = trials(plan)[0]
    finish(tmp_path, first)
    folder = files.trial_folder(tmp_path, first.trial_id)
    done = {"status": "complete", "kind": "trial", "identity": first.identity, "steps": 10, "train_seconds": 600.0}
    results.write_result(folder.result, {**done, "provenance": {"device": "cpu (2 threads)"}})
    results.write_result(folder.evaluation(first.eval_id).result, {"status": "complete", "generate_seconds": 300.0})
    # 40 rows in batches of 4 are 10 steps: twice 600 s, and 300 s for each of two trials and their baseline
    weights, said = table(plan, tmp_path)[3:5]
    assert weights == "dequantized weights: 0.00 GiB more, where there is room (quant.materialize=auto)"
    assert said == "about 35 min for 3 of the 5 that are left (from 1 finished trial of the same base)"
    two = table(plan, tmp_path, Slot("cpu", None, "cpu", None), Slot("cuda", 0, "big", None))[4]
    assert two.startswith("about 18 min for 3 of")
    assert table(plan, tmp_path, Slot("cuda", 0, "big", None))[4].startswith("time unknown")


def test_a_device_that_is_not_there_is_refused_with_the_plan(tmp_path: Path) -> None:
    plan = planned(changed(launch__devices=[3]))
    with pytest.raises(
        Refused, match=r"^launch\.devices = \[3\]: this machine has no accelerator; allowed: auto, cpu$"
    ):
        format_plan(plan, tmp_path, "s", trial_state.read_trial_states(plan, tmp_path))


def test_a_long_list_of_modules_is_cut_in_the_table(tmp_path: Path) -> None:
    names = [f"layers.{i}.attn.query_projection" for i in range(4)]
    trial = dataclasses.replace(trials(planned(changed()))[0], target_modules=names)
    assert "layers.0.attn.query_projection, layers.1...." in table(Plan([trial], [trial.key], []), tmp_path)[-1]


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., list[str]]:
    """``printed("lora.r=2,4")``: the lines of ``python -m sweep.plan model=tiny data=tiny lora.r=2,4``."""

    def run(*arguments: str) -> list[str]:
        line = ["sweep.plan", "model=tiny", "data=tiny", f"runs_dir={tmp_path}/runs", *arguments]
        monkeypatch.setattr(sys, "argv", line)
        __main__.main()
        return capsys.readouterr().out.splitlines()

    return run


def test_the_flag_of_hydras_multirun_may_be_left_out(printed: Callable[..., list[str]]) -> None:
    without = printed("lora.r=2,4")
    assert without == printed("-m", "lora.r=2,4") == printed("--multirun", "lora.r=2,4") == printed("lora.r=2,4", "-m")
    assert without[0].startswith("sweep sweep-")
    assert [line.split()[1:3] for line in without[-4:-1]] == [["baseline", "32bit"], ["r=2", "attn"], ["r=4", "attn"]]


def test_a_value_may_follow_another(printed: Callable[..., list[str]]) -> None:
    lines = printed("lora.r=2,4", "lora.alpha=${lora.r}")
    assert ["alpha=2.0" in lines[-3], "alpha=4.0" in lines[-2]] == [True, True]


def test_a_folder_of_ones_own_files(printed: Callable[..., list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "it's mine"
    (folder / "experiment").mkdir(parents=True)
    text = "# @package _global_\nsweep_name: ours\nhydra: {sweeper: {params: {lora.r: '2,4,8'}}}\n"
    (folder / "experiment/ours.yaml").write_text(text)
    assert printed("--config-dir", str(folder), "experiment=ours")[0].startswith("sweep ours: 3 trials and 1 baseline")


def test_a_plan_writes_no_result(printed: Callable[..., list[str]], tmp_path: Path) -> None:
    printed()
    assert not (tmp_path / "runs").exists()


def test_the_blogs_table_is_planned_without_any_network(tmp_path: Path) -> None:
    """Its exact numbers, with no weights, no tokenizer and no rows at hand, and not one call to a hub."""
    calls: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=count_calls, args=(server, calls), daemon=True).start()
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        proxies = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "ALL_PROXY"), proxy)
        environment = {**kept, **proxies, "NO_PROXY": "", "no_proxy": "", "LORA_SWEEP_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "sweep.plan", "-m", "experiment=databricks_table", f"runs_dir={tmp_path}/runs"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert calls == []
    head, data, device, weights, time, disk, _, _, *rows = done.stdout.strip().splitlines()
    assert head.startswith("sweep databricks_table: 4 trials and 2 baselines of openllama_3b_v2; 6 to run")
    assert data == "data red_dot: not downloaded yet, so the numbers of rows and tokens are unknown"
    assert device.startswith("device: cpu, ")
    assert weights.startswith("dequantized weights: ")
    assert weights.endswith(" GiB more, where there is room (quant.materialize=auto)")
    assert time == "time unknown: no trial of this base has finished"
    assert disk.startswith("disk needed: about 137 MB in ")  # fp32 adapters of 34 million numbers
    cells = [row.split() for row in rows]
    assert [row[-3] for row in cells] == ["0", "0", "2,662,400", "5,324,800", "12,994,560", "12,994,560"]
    assert [row[1:4] for row in cells[:2]] == [["baseline", "8bit", "alpaca"], ["baseline", "8bit", "qa"]]
    assert [row[1:4] for row in cells[2:]] == [
        ["r=8", "attn", "4bit"],
        ["r=16", "attn", "4bit"],
        ["r=8", "all_linear_and_head", "4bit"],
        ["r=8", "all_linear_and_head", "8bit"],
    ]
    memory = [float(row[-2]) for row in cells]
    assert all(row[-1] == "GiB" for row in cells)
    assert all(1 < gibibytes < 12 for gibibytes in memory), memory
    assert memory[2] < memory[3] < memory[4] < memory[5]  # rank, then targets, then bits


def count_calls(server: socket.socket, calls: list[Any]) -> None:
    """Accept and drop whatever calls come in, until the server is closed."""
    while True:
        try:
            connection, caller = server.accept()
        except OSError:
            return
        calls.append(caller)
        connection.close()


def test_planning_with_known_facts_loads_no_torch(tmp_path: Path) -> None:
    """In a fresh process whose only helper is forbidden to start."""
    code = "\n".join(
        [
            "import json, sys",
            "from sweep.plan import __main__ as command, facts",
            f"answer = json.loads({json.dumps(FACTS.to_json())!r})",
            "facts.ask_inspect = lambda requests, strict: [{'facts': answer} for _ in requests]",
            f"sys.argv = ['plan', 'model=tiny', 'data=tiny', 'lora.r=2,4', 'runs_dir={tmp_path}/runs']",
            "command.main()",
            "print(sorted({'torch', 'transformers', 'pandas', 'wandb'} & set(sys.modules)))",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "[]"

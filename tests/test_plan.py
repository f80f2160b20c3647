"""A plan: names, baselines, duplicates, sizes, sweeps' names and states; and the command that prints it."""

import copy
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

from lora_sweep import results
from lora_sweep.config import Config, Data, Model
from lora_sweep.errors import Refused
from lora_sweep.facts import DataFacts, Facts, Linear, ModelFacts
from sweep import plan as planning
from sweep import store
from sweep.plan import make_plan
from sweep.plan_table import plan_table, state
from sweep.trials import Plan, Planned, varied_keys, varied_values

ROOT = Path(__file__).parent.parent
LINEARS = [
    Linear("layers.0.attn.q_proj", 64, 64),
    Linear("layers.0.attn.v_proj", 64, 32),
    Linear("layers.0.mlp.up_proj", 64, 128),
    Linear("head", 64, 512),
]
FACTS = Facts(
    ModelFacts(
        fingerprint="model-1",
        model_type="small",
        linears=LINEARS,
        attn=["layers.0.attn.q_proj", "layers.0.attn.v_proj"],
        mlp=["layers.0.mlp.up_proj"],
        head="head",
        tied_head=False,
        total_params=80_000,
        bias_params=0,
        hidden_size=64,
        layers=1,
        vocab_size=512,
    ),
    DataFacts("data-1", "rows-1", 50, {"repeated": 2}, 40, 5, 3, 1, 1234, 60),
    compute_bytes=4,
)
BASE = Config(model=Model(name="small", tiny="llama"), data=Data(name="few", tiny=50), runs_dir="runs")


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[dict[str, Any]]]:
    """Each batch of questions to ``lora_sweep.inspect``, which is answered by the facts above without a process."""
    batches: list[list[dict[str, Any]]] = []

    def answer(requests: list[dict[str, Any]], strict: bool) -> list[dict[str, Any]]:
        batches.append(requests)
        return [{"facts": FACTS.to_json()} for _ in requests]

    monkeypatch.setattr(planning, "ask_inspect", answer)
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path / "cache"))
    return batches


def changed(**values: Any) -> Config:
    """The base config with values at dotted keys, a dot written as two underscores."""
    config = copy.deepcopy(BASE)
    for key, value in values.items():
        *parents, last = key.split("__")
        node: Any = config
        for parent in parents:
            node = getattr(node, parent)
        assert hasattr(node, last)
        setattr(node, last, value)
    return config


def planned(*configs: Config) -> Plan:
    return make_plan(list(configs), strict=True)


def trials(plan: Plan, kind: str = "trial") -> list[Planned]:
    return [trial for trial in plan.trials if trial.kind == kind]


def labels(plan: Plan, kind: str = "trial") -> list[str]:
    return [trial.label for trial in trials(plan, kind)]


# --- labels --------------------------------------------------------------------------------------------------------


def test_a_label_says_rank_targets_and_bits_and_what_else_varies() -> None:
    plan = planned(
        changed(lora__r=8),
        changed(lora__r=16, quant__bits=4),
        changed(lora__targets=["q_proj", "up_proj"], train__learning_rate=1e-4),
        changed(seed=3),
    )
    assert labels(plan) == [
        "r=8 attn 32bit learning_rate=0.003 seed=0",
        "r=16 attn 4bit learning_rate=0.003 seed=0",
        "r=8 q_proj+up_proj 32bit learning_rate=0.0001 seed=0",
        "r=8 attn 32bit learning_rate=0.003 seed=3",
    ]
    assert plan.varied == ["lora.r", "lora.targets", "quant.bits", "train.learning_rate", "seed"]


def test_a_trial_alone_varies_nothing() -> None:
    plan = planned(changed(train__learning_rate=0.5))
    assert (labels(plan), plan.varied) == (["r=8 attn 32bit"], [])


def test_what_follows_from_a_models_name_is_not_listed_beside_it() -> None:
    other = Model(name="hub", hub_id="a/b", revision="r", architecture={"hidden_size": 64})
    plan = planned(changed(data__train_rows=8), changed(model=other, data__train_rows=16))
    assert plan.varied == ["model.name", "data.train_rows"]
    assert labels(plan) == ["r=8 attn 32bit model=small train_rows=8", "r=8 attn 32bit model=hub train_rows=16"]


def test_what_varies_within_one_model_is() -> None:
    configs = [changed(), changed(model__revision="b"), changed(model=Model(name="other", tiny="gpt2"))]
    assert varied_keys(configs) == ["model.name", "model.revision"]
    assert varied_values(configs[1], ["model.name", "model.revision"]) == ["model=small", "revision=b"]


# --- baselines -----------------------------------------------------------------------------------------------------


def test_one_baseline_a_base_and_first_in_the_plan() -> None:
    plan = planned(*(changed(quant__bits=bits, lora__r=r) for bits in (4, 8) for r in (2, 4)))
    assert [trial.kind for trial in plan.trials] == ["baseline"] * 2 + ["trial"] * 4
    assert labels(plan, "baseline") == ["baseline 4bit", "baseline 8bit"]
    for baseline in trials(plan, "baseline"):
        assert (baseline.trainable_params, baseline.target_modules, baseline.forecast.adapter) == (0, [], 0)


def test_a_baseline_for_each_template_of_the_baseline() -> None:
    plan = planned(changed(eval__baseline_templates=["qa", "chat"]))
    assert labels(plan, "baseline") == ["baseline 32bit alpaca", "baseline 32bit qa", "baseline 32bit chat"]
    assert [trial.config.data.template for trial in trials(plan, "baseline")] == ["alpaca", "qa", "chat"]
    assert trials(plan)[0].config.data.template == "alpaca"


def test_the_datas_own_template_gives_no_second_baseline() -> None:
    assert len(trials(planned(changed(eval__baseline_templates=["alpaca"])), "baseline")) == 1


def test_evaluation_at_fixed_bits_shares_one_baseline() -> None:
    """The blog's way: trained at 4 and 8 bits, all of them written with the base in 8 bits."""
    plan = planned(changed(quant__bits=4, eval__quant="8bit"), changed(quant__bits=8, eval__quant="8bit"))
    assert labels(plan, "baseline") == ["baseline 8bit"]
    assert trials(plan, "baseline")[0].config.quant.bits == 8
    assert trials(plan)[0].config.quant.bits == 4
    assert len({trial.eval_id for trial in plan.trials}) == 1


def test_baselines_that_differ_have_labels_that_do() -> None:
    plan = planned(
        changed(data__template="alpaca", eval__max_new_tokens=16),
        changed(data__template="qa", eval__max_new_tokens=8),
        changed(data__template="qa", eval__max_new_tokens=16),
    )
    assert labels(plan, "baseline") == [
        "baseline 32bit max_new_tokens=16 alpaca",
        "baseline 32bit max_new_tokens=8 qa",
        "baseline 32bit max_new_tokens=16 qa",
    ]


def test_a_baseline_does_not_change_the_trial_it_was_made_from() -> None:
    config = changed(quant__bits=4, eval__quant="8bit", eval__baseline_templates=["qa"])
    before = copy.deepcopy(config)
    plan = planned(config)
    assert trials(plan)[0].config == before


# --- identity and duplicates ---------------------------------------------------------------------------------------


def test_two_spellings_of_one_trial_are_one_trial() -> None:
    plan = planned(
        changed(train__learning_rate=1e-4, lora__targets="attn"),
        changed(train__learning_rate=0.0001, lora__targets=["v_proj", "q_proj"]),
        changed(train__learning_rate=1e-4, train__per_device_train_batch_size=2, train__gradient_accumulation_steps=2),
    )
    assert len(trials(plan)) == 1
    assert plan.points == [trials(plan)[0].key] * 3


def test_points_keep_the_commands_order_and_repeat_what_it_repeats() -> None:
    plan = planned(changed(lora__r=8), changed(lora__r=4), changed(lora__r=8))
    keys = [trial.key for trial in trials(plan)]
    assert plan.points == [keys[0], keys[1], keys[0]]


def test_one_adapter_two_evaluations() -> None:
    plan = planned(changed(), changed(eval__max_new_tokens=7))
    assert len({trial.trial_id for trial in trials(plan)}) == 1
    assert len({trial.eval_id for trial in trials(plan)}) == 2


def test_where_results_go_is_no_part_of_a_trial() -> None:
    plan = planned(changed(), changed(runs_dir="elsewhere", sweep_name="x", tracking__project="y"))
    assert len(plan.trials) == 2


# --- checks and sizes ----------------------------------------------------------------------------------------------


def test_sizes_are_sums_over_the_resolved_modules() -> None:
    plan = planned(changed(lora__r=2), changed(lora__r=2, lora__targets="all_linear_and_head"))
    attn = 2 * (64 + 64) + 2 * (64 + 32)
    assert [trial.trainable_params for trial in trials(plan)] == [attn, attn + 2 * (64 + 128) + 2 * (64 + 512)]
    assert [trial.target_modules for trial in trials(plan)] == [
        ["q_proj", "v_proj"],
        ["head", "q_proj", "up_proj", "v_proj"],
    ]
    assert all(trial.forecast.total > trial.forecast.weights > 0 for trial in plan.trials)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (changed(lora__r=0), "lora.r = 0: must be"),
        (changed(lora__r=33), "lora.r = 33: is larger than the layer layers.0.attn.v_proj (64 x 32); at most 32"),
        (changed(lora__targets=["q_proj", "v_prj"]), "lora.targets: 'v_prj' matches no module"),
        (changed(sweep_name="../x"), "sweep_name = '../x'"),
    ],
)
def test_one_wrong_point_refuses_the_whole_command(config: Config, said: str) -> None:
    with pytest.raises(Refused) as caught:
        planned(changed(), config, changed(seed=2))
    assert str(caught.value).startswith(said)


def test_what_inspect_refuses_is_refused_as_it_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(planning, "ask_inspect", lambda requests, strict: [{"refused": "data few: is empty"}])
    with pytest.raises(Refused, match=r"^data few: is empty$"):
        planned(changed())
    assert not list((tmp_path / "cache").rglob("*.json"))


# --- facts ---------------------------------------------------------------------------------------------------------


def remember(config: Config, strict: bool = True) -> None:
    """What inspect does with the facts that it found."""
    from lora_sweep.facts import facts_file

    results.write_json(facts_file(config, strict), FACTS.to_json())


def test_a_thousand_points_ask_one_question(asked: list[Any]) -> None:
    configs = [
        changed(lora__r=1 + i % 10, train__learning_rate=1e-5 * (1 + i // 10), quant__bits=(None, 4)[i % 2])
        for i in range(1000)
    ]
    plan = planned(*configs)
    assert len(trials(plan)) == 1000
    assert len(trials(plan, "baseline")) == 2
    assert [len(batch) for batch in asked] == [1]


def test_what_is_known_is_not_asked_again(asked: list[Any]) -> None:
    planned(changed())
    remember(changed())
    planned(changed(lora__r=4, train__learning_rate=1e-5))
    assert len(asked) == 1


def test_new_rows_and_new_settings_of_the_trainer_are_asked_about(asked: list[Any]) -> None:
    planned(changed())
    remember(changed())
    planned(changed(data__tiny=60), changed(train__optim="adafactor"), changed(train__sft={"adam_beta2": 0.9}))
    assert [len(batch) for batch in asked] == [1, 3]
    remember(changed(data__tiny=60))
    planned(changed(data__tiny=60, train__optim="adafactor"), changed(train__sft={"adam_beta2": 0.9}))
    assert len(asked) == 2


def test_settings_that_were_refused_are_refused_again(monkeypatch: pytest.MonkeyPatch) -> None:
    planned(changed())
    remember(changed())
    answers = [{"refused": "train.optim = adam: is unknown"}]
    monkeypatch.setattr(planning, "ask_inspect", lambda requests, strict: answers)
    for _ in range(2):
        with pytest.raises(Refused, match=r"train\.optim = adam"):
            planned(changed(train__optim="adam"))


# --- sweeps --------------------------------------------------------------------------------------------------------


def finish(runs: Path, trial: Planned, status: str = "complete", evaluated: bool = True) -> None:
    folder = results.trial_folder(runs, trial.trial_id)
    results.write_json(folder.config, {"kind": trial.kind, "config": {}})
    results.write_json(folder.result, {"status": status, "reason": None if status == "complete" else "why"})
    if evaluated and status == "complete":
        results.write_json(folder.evaluation(trial.eval_id).result, {"status": "complete"})


def test_a_sweeps_own_name_does_not_depend_on_the_order() -> None:
    one = planned(changed(lora__r=4), changed(lora__r=8))
    other = planned(changed(lora__r=8), changed(lora__r=4), changed(lora__r=8))
    assert store.sweep_name(one) == store.sweep_name(other)
    assert store.sweep_name(one) != store.sweep_name(planned(changed(lora__r=4)))
    assert store.sweep_name(one).startswith("sweep-")
    assert store.sweep_name(planned(changed(sweep_name="mine"))) == "mine"


def test_a_name_used_again_means_the_union(tmp_path: Path) -> None:
    first, second = planned(changed(lora__r=4)), planned(changed(lora__r=8), changed(lora__r=16, quant__bits=4))
    store.write_sweep(first, tmp_path, "s", "first command")
    store.write_sweep(second, tmp_path, "s", "second command")
    sweep = results.read_json(results.sweep_file(tmp_path, "s"))
    assert sweep is not None
    assert [entry["kind"] for entry in sweep["trials"]] == ["baseline", "baseline", "trial", "trial", "trial"]
    assert {entry["trial_id"] for entry in sweep["trials"]} == {t.trial_id for t in [*first.trials, *second.trials]}
    assert (sweep["command"], sweep["varied"]) == ("second command", ["lora.r", "quant.bits"])


def test_a_finished_sweep_run_again_changes_no_file(tmp_path: Path) -> None:
    plan = planned(changed(lora__r=4), changed(lora__r=8))
    store.write_sweep(plan, tmp_path, "s", "a command")
    for trial in plan.trials:
        finish(tmp_path, trial)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    store.write_sweep(plan, tmp_path, "s", "the same command, spelt otherwise")
    assert store.unfinished(plan, tmp_path) == []
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_states_of_a_trial(tmp_path: Path) -> None:
    plan = planned(*(changed(lora__r=r) for r in (1, 2, 3, 4, 5)))
    new, trained, done, failed, diverged = trials(plan)
    finish(tmp_path, trained, evaluated=False)
    finish(tmp_path, done)
    finish(tmp_path, failed, "failed")
    finish(tmp_path, diverged, "diverged")
    states = [state(trial, tmp_path) for trial in trials(plan)]
    assert states == ["new", "trained", "done", "failed", "done"]  # the last would diverge again
    assert store.unfinished(plan, tmp_path) == [*trials(plan, "baseline"), new, trained, failed]


def test_a_failure_is_cleared_before_it_is_tried_again_and_a_training_is_not(tmp_path: Path) -> None:
    trained, failed = trials(planned(changed(lora__r=1), changed(lora__r=2)))
    finish(tmp_path, trained, evaluated=False)
    finish(tmp_path, failed, "oom")
    store.clear_failures([trained, failed], tmp_path)
    assert (state(trained, tmp_path), state(failed, tmp_path)) == ("trained", "new")


def test_the_table_says_what_is_to_do_and_what_the_data_lost(tmp_path: Path) -> None:
    plan = planned(changed(lora__r=2), changed(lora__r=4))
    finish(tmp_path, trials(plan)[0])
    head, data, blank, header, *rows = plan_table(plan, tmp_path, "s").splitlines()
    assert head == "sweep s: 2 trials and 1 baseline of small; 2 to run, 1 done"
    assert data == (
        "data few: 40 training, 5 validation, 3 test rows, 1,234 training tokens an epoch; "
        "2 left out (repeated); 1 training and 0 validation rows cut at 256 tokens"
    )
    assert blank == ""
    assert header.split() == ["#", "trial", "id", "state", "target", "modules", "trainable", "memory"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    for row, trial in zip(rows, plan.trials, strict=True):
        assert trial.label in row
        assert trial.trial_id in row
        assert f"{trial.trainable_params:,}" in row
        assert row.endswith(" GiB")


def test_a_long_list_of_modules_is_cut_in_the_table(tmp_path: Path) -> None:
    names = [f"layers.{i}.attn.query_projection" for i in range(4)]
    trial = dataclasses.replace(trials(planned(changed()))[0], target_modules=names)
    table = plan_table(Plan([trial], [trial.key], []), tmp_path, "s")
    assert "layers.0.attn.query_projection, layers.1.at…" in table


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., list[str]]:
    """``printed("lora.r=2,4")``: the lines of ``python -m sweep.plan model=tiny data=tiny lora.r=2,4``."""

    def run(*arguments: str) -> list[str]:
        line = ["sweep.plan", "model=tiny", "data=tiny", f"runs_dir={tmp_path}/runs", *arguments]
        monkeypatch.setattr(sys, "argv", line)
        planning.main()
        return capsys.readouterr().out.splitlines()

    return run


def test_the_flag_of_hydras_multirun_may_be_left_out(printed: Callable[..., list[str]]) -> None:
    without = printed("lora.r=2,4")
    assert without == printed("-m", "lora.r=2,4") == printed("--multirun", "lora.r=2,4") == printed("lora.r=2,4", "-m")
    assert without[0].startswith("sweep sweep-")
    assert [line.split()[1:3] for line in without[4:7]] == [["baseline", "32bit"], ["r=2", "attn"], ["r=4", "attn"]]


def test_a_value_may_follow_another(printed: Callable[..., list[str]]) -> None:
    lines = printed("lora.r=2,4", "lora.alpha=${lora.r}")
    assert ["alpha=2.0" in lines[5], "alpha=4.0" in lines[6]] == [True, True]


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
    head, data, _, _, *rows = done.stdout.strip().splitlines()
    assert head.startswith("sweep databricks_table: 4 trials and 2 baselines of openllama_3b_v2; 6 to run")
    assert data == "data red_dot: not at hand, so lengths and drops are unknown"
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
            "from sweep import plan",
            f"answer = json.loads({json.dumps(FACTS.to_json())!r})",
            "plan.ask_inspect = lambda requests, strict: [{'facts': answer} for _ in requests]",
            f"sys.argv = ['plan', 'model=tiny', 'data=tiny', 'lora.r=2,4', 'runs_dir={tmp_path}/runs']",
            "plan.main()",
            "print(sorted({'torch', 'transformers', 'pandas', 'wandb'} & set(sys.modules)))",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "[]"

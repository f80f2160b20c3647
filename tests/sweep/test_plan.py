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

from lora_sweep.config.schema import Config, Data, Model, config_from_json
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import DataFacts, Facts, Linear, ModelFacts
from lora_sweep.runs import files, results
from sweep.labels import label_values, list_varied_keys
from sweep.plan import __main__
from sweep.plan import facts as plan_facts
from sweep.plan.facts import gather_facts
from sweep.plan.make import make_plan
from sweep.plan.table import format_plan
from sweep.resources import machine
from sweep.resources.machine import Slot
from sweep.store import sweep_file, trial_state
from sweep.store.trial_state import TrialState
from sweep.trials import Plan, PlannedTrial

ROOT = Path(__file__).parents[2]
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
    """Each batch of questions to ``model.inspect``, which is answered by the facts above without a process."""
    batches: list[list[dict[str, Any]]] = []

    def answer(requests: list[dict[str, Any]], strict: bool) -> list[dict[str, Any]]:
        batches.append(requests)
        return [{"facts": FACTS.to_json()} for _ in requests]

    monkeypatch.setattr(plan_facts, "ask_inspect", answer)
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LORA_SWEEP_DEVICE", "cpu")  # whatever the machine has: no process looks for it
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


def trials(plan: Plan, kind: str = "trial") -> list[PlannedTrial]:
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
    assert list_varied_keys(configs) == ["model.name", "model.revision"]
    assert label_values(configs[1], ["model.name", "model.revision"]) == ["model=small", "revision=b"]


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


def test_where_results_go_and_how_they_are_made_is_no_part_of_a_trial() -> None:
    elsewhere = changed(runs_dir="elsewhere", sweep_name="x", tracking__project="y", launch__workers=2)
    assert [trial.key for trial in planned(elsewhere).trials] == [trial.key for trial in planned(changed()).trials]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("launch__workers", 2),
        ("launch__devices", [0, 1]),
        ("launch__strict", True),
        ("runs_dir", "elsewhere"),
        ("sweep_name", "x"),
        ("tracking__project", "y"),
    ],
)
def test_what_belongs_to_the_whole_sweep_is_one_for_all_points(key: str, value: Any, asked: list[Any]) -> None:
    with pytest.raises(Refused) as caught:
        planned(changed(), changed(lora__r=4), changed(lora__r=0, **{key: value}))
    dotted = key.replace("__", ".")
    assert str(caught.value) == f"{dotted}: differs between points; it is one setting of the whole sweep"
    assert asked == []


def test_a_setting_of_the_whole_sweep_that_is_no_number_is_equal_to_itself() -> None:
    with pytest.raises(Refused, match=r"^launch\.trial_minutes = nan: must be above 0"):
        planned(*(changed(launch__trial_minutes=float("nan"), seed=seed) for seed in (1, 2)))


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


WRONG = [
    (changed(lora__r=0), "lora.r = 0: must be"),
    (changed(lora__r=33), "lora.r = 33: is larger than the layer layers.0.attn.v_proj (64 x 32); at most 32"),
    (changed(lora__targets=["q_proj", "v_prj"]), "lora.targets: 'v_prj' matches no module"),
    (changed(lora__targets="atn"), "lora.targets = atn: is no target group"),
    (changed(lora__targets=[]), "lora.targets = []: must be"),
    (changed(lora__targets=None), "lora.targets = None: must be"),
    (changed(train__learning_rate=float("nan")), "train.learning_rate = nan: must be"),
    (changed(train__max_length=4096), "train.max_length = 4096: is more than this model's 1024 positions"),
    (changed(eval__max_new_tokens=1020), "eval.max_new_tokens = 1020: and the longest prompt's 30 tokens"),
    (changed(eval__quant="8bits"), "eval.quant = 8bits: is unknown"),
    (changed(eval__scorer="jsn"), "eval.scorer = jsn: is unknown"),
    (changed(eval__scorer="regex", eval__pattern="(a"), "eval.pattern = (a: is no regular expression"),
    (changed(eval__top_p=float("inf"), eval__do_sample=True), "eval.top_p = inf: must be"),
]


@pytest.fixture
def short_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with 1024 positions, and a longest prompt of 30 tokens."""
    model, data = (
        dataclasses.replace(FACTS.model, max_positions=1024),
        dataclasses.replace(FACTS.data, longest_prompt=30),
    )
    facts = Facts(model, data, 4).to_json()
    monkeypatch.setattr(plan_facts, "ask_inspect", lambda requests, strict: [{"facts": facts} for _ in requests])


@pytest.mark.usefixtures("short_model")
@pytest.mark.parametrize(("config", "said"), WRONG, ids=[said for _, said in WRONG])
class TestOneWrongPoint:
    def test_alone_it_is_refused(self, config: Config, said: str) -> None:
        with pytest.raises(Refused) as caught:
            planned(config)
        assert str(caught.value).startswith(said)

    def test_among_others_it_is_a_row(self, config: Config, said: str) -> None:
        plan = planned(changed(), config, changed(seed=2))
        assert len(trials(plan)) == 2
        (point,) = plan.invalid
        assert point.reason.startswith(said)
        assert plan.points == [trials(plan)[0].key, point.key, trials(plan)[1].key]
        assert len({*plan.points, *(trial.key for trial in plan.trials)}) == 4
        json.dumps(dataclasses.asdict(point.config), allow_nan=False)

    def test_a_strict_command_refuses_all(self, config: Config, said: str) -> None:
        strict = [copy.deepcopy(each) for each in (changed(), config, changed(seed=2))]
        for each in strict:
            each.launch.strict = True
        with pytest.raises(Refused) as caught:
            planned(*strict)
        assert str(caught.value).startswith(said)


def test_what_all_points_share_is_refused_with_its_first_sentence() -> None:
    with pytest.raises(Refused, match=r"^train\.optim = adam: is unknown$"):
        planned_with_answers({"refused": "train.optim = adam: is unknown"}, changed(lora__r=4), changed(lora__r=33))
    with pytest.raises(Refused, match=r"^lora\.r = 0: must be"):  # found first, though typed last
        planned(changed(lora__r=33), changed(lora__targets=["x"]), changed(lora__r=0))


def planned_with_answers(answer: dict[str, Any], *configs: Config) -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_facts, "ask_inspect", lambda requests, strict: [answer for _ in requests])
        return planned(*configs)


def test_of_two_models_the_missing_one_is_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(requests: list[dict[str, Any]], strict: bool) -> list[dict[str, Any]]:
        missing = "model.path = b: is no folder"
        return [
            {"refused": missing} if r["config"]["model"]["path"] == "b" else {"facts": FACTS.to_json()}
            for r in requests
        ]

    monkeypatch.setattr(plan_facts, "ask_inspect", answer)
    grid = [changed(model=Model(name="x", path=path), lora__r=r) for path in ("a", "b") for r in (4, 8)]
    plan = planned(*grid)
    assert labels(plan) == ["r=4 attn 32bit model=a", "r=8 attn 32bit model=a"]
    assert [point.label for point in plan.invalid] == ["r=4 attn 32bit model=b", "r=8 attn 32bit model=b"]
    assert {point.reason for point in plan.invalid} == {"model.path = b: is no folder"}
    assert len(trials(plan, "baseline")) == 1


def test_a_wrong_setting_of_the_trainer_spares_the_points_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(requests: list[dict[str, Any]], strict: bool) -> list[dict[str, Any]]:
        return [
            {"refused": "train.optim = x: is unknown"}
            if r["config"]["train"]["optim"] == "x"
            else {"facts": FACTS.to_json()}
            for r in requests
        ]

    monkeypatch.setattr(plan_facts, "ask_inspect", answer)
    for _ in range(2):  # asked, and with what is known by then
        plan = planned(changed(train__optim="x"), changed(), changed(train__optim="x", lora__r=4))
        assert [point.label for point in plan.invalid] == ["r=8 attn 32bit optim=x", "r=4 attn 32bit optim=x"]
        assert len(trials(plan)) == 1
        remember(changed())


def test_a_wrong_point_adds_no_baseline() -> None:
    plan = planned(changed(), changed(quant__bits=4, lora__r=33), changed(quant__bits=8, train__max_length=4))
    assert labels(plan, "baseline") == ["baseline 32bit max_length=256"]


def test_wrong_points_that_are_one_are_one_row() -> None:
    plan = planned(changed(), changed(lora__r=33), changed(lora__r=33), changed(lora__r=34))
    assert [point.label for point in plan.invalid] == ["r=33 attn 32bit", "r=34 attn 32bit"]
    assert plan.points[1] == plan.points[2] != plan.points[3]
    elsewhere = [dataclasses.replace(each, runs_dir="y", sweep_name="z") for each in (changed(), changed(lora__r=33))]
    assert planned(*elsewhere).invalid[0].key == plan.invalid[0].key


def test_a_wrong_points_config_is_read_back(tmp_path: Path) -> None:
    point = planned(changed(), changed(lora__r=33)).invalid[0]
    files.write_json(tmp_path / "x.json", dataclasses.asdict(point.config))
    assert config_from_json(files.read_json(tmp_path / "x.json") or {}) == point.config


def test_what_inspect_refuses_is_refused_as_it_says(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"^data few: is empty$"):
        planned_with_answers({"refused": "data few: is empty"}, changed())
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_facts_are_found_for_each_config_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(requests: list[dict[str, Any]], strict: bool) -> list[dict[str, Any]]:
        return [{"refused": "no"} if r["config"]["data"]["tiny"] == 9 else {"facts": FACTS.to_json()} for r in requests]

    monkeypatch.setattr(plan_facts, "ask_inspect", answer)
    found = gather_facts([changed(data__tiny=9), changed(), changed(data__tiny=9, lora__r=2)], strict=True)
    assert [isinstance(each, Refused) for each in found] == [True, False, True]
    assert found[1] == FACTS


# --- facts ---------------------------------------------------------------------------------------------------------


def remember(config: Config, strict: bool = True) -> None:
    """What inspect does with the facts that it found."""
    from lora_sweep.facts.facts import facts_file

    files.write_json(facts_file(config, strict), FACTS.to_json())


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


def test_the_cpu_is_asked_about_where_it_is_to_be_used(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORA_SWEEP_DEVICE")
    remember(changed())
    planned(changed())
    planned(changed(launch__devices="cpu"))
    gather_facts([changed(), changed(launch__devices="cpu")], strict=True)
    assert [batch[0]["config"]["launch"]["devices"] for batch in asked] == ["auto", "cpu", "cpu"]


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
    monkeypatch.setattr(plan_facts, "ask_inspect", lambda requests, strict: answers)
    for _ in range(2):
        with pytest.raises(Refused, match=r"train\.optim = adam"):
            planned(changed(train__optim="adam"))


# --- sweeps --------------------------------------------------------------------------------------------------------


def finish(runs: Path, trial: PlannedTrial, status: str = "complete", evaluated: bool = True) -> None:
    folder = files.trial_folder(runs, trial.trial_id)
    files.write_json(folder.config, {"kind": trial.kind, "config": {}})
    results.write_result(folder.result, {"status": status, "reason": None if status == "complete" else "why"})
    if evaluated and status == "complete":
        results.write_result(folder.evaluation(trial.eval_id).result, {"status": "complete"})


def test_a_sweeps_own_name_does_not_depend_on_the_order() -> None:
    one = planned(changed(lora__r=4), changed(lora__r=8))
    other = planned(changed(lora__r=8), changed(lora__r=4), changed(lora__r=8))
    assert sweep_file.name_sweep(one) == sweep_file.name_sweep(other)
    assert sweep_file.name_sweep(one) != sweep_file.name_sweep(planned(changed(lora__r=4)))
    assert sweep_file.name_sweep(one).startswith("sweep-")
    assert sweep_file.name_sweep(planned(changed(sweep_name="mine"))) == "mine"


def test_a_name_used_again_means_the_union(tmp_path: Path) -> None:
    first, second = planned(changed(lora__r=4)), planned(changed(lora__r=8), changed(lora__r=16, quant__bits=4))
    sweep_file.record_sweep(first, tmp_path, "s", "first command", {"code": "now"})
    sweep_file.record_sweep(second, tmp_path, "s", "second command", {"code": "now"})
    sweep = files.read_json(files.sweep_file(tmp_path, "s"))
    assert sweep is not None
    assert [entry["kind"] for entry in sweep["trials"]] == ["baseline", "baseline", "trial", "trial", "trial"]
    assert {entry["trial_id"] for entry in sweep["trials"]} == {t.trial_id for t in [*first.trials, *second.trials]}
    assert (sweep["command"], sweep["varied"]) == ("second command", ["lora.r", "quant.bits"])


def test_a_finished_sweep_run_again_changes_no_file(tmp_path: Path) -> None:
    plan = planned(changed(lora__r=4), changed(lora__r=8))
    sweep_file.record_sweep(plan, tmp_path, "s", "a command", {"code": "now"})
    for trial in plan.trials:
        finish(tmp_path, trial)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    sweep_file.record_sweep(plan, tmp_path, "s", "the same command, spelt otherwise", None)
    assert trial_state.is_done(plan, trial_state.read_trial_states(plan, tmp_path), tmp_path, "s")
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


# --- the table -----------------------------------------------------------------------------------------------------

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


# --- the command ---------------------------------------------------------------------------------------------------


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

"""What a plan refuses, which facts it asks for, and the sweep that it names."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from support.plans import FACTS, changed, finish, labels, planned, trials
from support.plans import asked as asked

from lora_sweep.config.schema import Config, Model, config_from_json
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import Facts
from lora_sweep.runs import files
from sweep.plan import facts as plan_facts
from sweep.plan.facts import gather_facts
from sweep.store import sweep_file, trial_state
from sweep.trials import Plan

# --- checks and sizes ------------------------------------------------------------------------------------------------


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


# --- facts -----------------------------------------------------------------------------------------------------------


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


# --- sweeps ----------------------------------------------------------------------------------------------------------


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

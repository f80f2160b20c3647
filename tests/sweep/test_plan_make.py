"""A plan's labels, baselines and identities."""

import copy
from typing import Any

import pytest
from support.plans import asked as asked
from support.plans import changed, labels, planned, trials

from lora_sweep.config.schema import Model
from lora_sweep.errors import Refused
from sweep.labels import label_values, list_varied_keys

# --- labels ----------------------------------------------------------------------------------------------------------


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


# --- baselines -------------------------------------------------------------------------------------------------------


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


# --- identity and duplicates -----------------------------------------------------------------------------------------


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

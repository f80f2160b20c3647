"""What makes two trials, or two evaluations, the same one."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.configs import changed, good

from lora_sweep.config.identity import (
    base_identity,
    baseline_identity,
    eval_identity,
    short_hash,
    to_canonical_json,
    trial_identity,
)
from lora_sweep.config.schema import Config


def trial_id(config: Config, modules: tuple[str, ...] = ("q_proj", "v_proj")) -> str:
    return short_hash(trial_identity(config, "model-1", "data-1", list(modules)))


def eval_id(config: Config) -> str:
    return short_hash(eval_identity(config))


# --- identity --------------------------------------------------------------------------------------------------------


THE_FINGERPRINT_COUNTS = "the fingerprint of the source stands in the identity, so a file may be renamed or moved"


A_MIRROR = "where results go and what they are called changes none of them"


A_WAY_TO_RUN = "changes no number of a trial"


WRITES_AFTER_TRAINING = "belongs to an evaluation of the adapter, which has its own identity"


# What a trial's identity leaves out, and why. Whatever is not named here must be in it.
NOT_IN_A_TRIAL = {
    "model": "model_fingerprint stands for the weights",
    "data.name": THE_FINGERPRINT_COUNTS,
    "data.licence": "is shown, and changes no row",
    "data.path": THE_FINGERPRINT_COUNTS,
    "data.hub_id": THE_FINGERPRINT_COUNTS,
    "data.revision": THE_FINGERPRINT_COUNTS,
    "data.wheel": THE_FINGERPRINT_COUNTS,
    "lora.targets": "the modules that it resolves to stand for it: attn and [q_proj,v_proj] are one trial",
    "quant.materialize": "computes with the same numbers, unpacked once and kept",
    "train.gradient_checkpointing": "computes the same numbers a second time to save memory",
    "train.checkpoint_steps": "saves what is there, and changes no number",
    "eval": WRITES_AFTER_TRAINING,
    "tracking": A_MIRROR,
    "launch": A_WAY_TO_RUN,
    "runs_dir": A_MIRROR,
    "sweep_name": A_MIRROR,
}


# The same for an evaluation, which lies in its trial's folder.
NOT_IN_AN_EVALUATION = {
    "model": "in the trial's identity",
    "data": "in the trial's identity",
    "lora": "in the trial's identity",
    "quant.double_quant": "in the trial's identity",
    "quant.materialize": "computes with the same numbers, unpacked once and kept",
    "eval.baseline_templates": "makes further baselines",
    "tracking": A_MIRROR,
    "launch": A_WAY_TO_RUN,
    "runs_dir": A_MIRROR,
    "sweep_name": A_MIRROR,
}


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in a tree of dataclasses that is no dataclass."""
    for name in (field.name for field in dataclasses.fields(node)):
        value = getattr(node, name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def another(value: Any) -> Any:
    """A value of the same kind that means something else. None may become anything: identity checks no type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "more"]
    if isinstance(value, dict):
        return {**value, "more": 1}
    return f"{value}-2"


def is_named(path: str, names: dict[str, str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


LEAVES = dict(leaves(good()))


@pytest.mark.parametrize("path", LEAVES)
def test_a_trial_s_id_changes_with_every_key_that_can_change_the_adapter(path: str) -> None:
    config = changed(good(), "quant.bits", 4)  # where double quantization means something
    value = dict(leaves(config))[path]
    other = changed(config, path, 8 if path == "quant.bits" else another(value))
    assert (trial_id(other) != trial_id(config)) == (not is_named(path, NOT_IN_A_TRIAL))


def test_the_same_rows_are_one_trial_whoever_limits_them() -> None:
    default = changed(good(), "data.default_rows", 64)
    assert trial_id(changed(good(), "data.train_rows", 64)) == trial_id(default)
    assert trial_id(changed(default, "data.train_rows", 32)) != trial_id(default)


@pytest.mark.parametrize("bits", [None, 8])
def test_double_quantization_names_no_trial_whose_base_has_none(bits: int | None) -> None:
    config = changed(good(), "quant.bits", bits)
    assert trial_id(changed(config, "quant.double_quant", False)) == trial_id(config)


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("path", LEAVES)
def test_an_evaluation_s_id_changes_with_every_key_that_can_change_what_is_written(path: str, sampling: bool) -> None:
    config = changed(good(), "eval.do_sample", sampling)
    config.quant.bits = 4
    reasons = NOT_IN_AN_EVALUATION | dict.fromkeys(
        (key for key in LEAVES if key.startswith("train.") and key != "train.max_length"), "in the trial's identity"
    )
    if not sampling:
        greedy = ("seed", "eval.temperature", "eval.top_p", "eval.batch_size")
        reasons |= dict.fromkeys(greedy, "greedy decoding draws nothing")
    before = eval_id(config)
    value = dict(leaves(config))[path]
    if path == "eval.quant":
        other = changed(config, path, "8bit")
    elif path == "quant.bits":
        other = changed(config, path, 8)
    else:
        other = changed(config, path, another(value))
    assert (eval_id(other) != before) == (not is_named(path, reasons))


@pytest.mark.parametrize("reasons", [NOT_IN_A_TRIAL, NOT_IN_AN_EVALUATION])
def test_no_exception_is_for_a_key_that_is_gone(reasons: dict[str, str]) -> None:
    for name in reasons:
        assert any(is_named(path, {name: ""}) for path in LEAVES), name


@pytest.mark.parametrize(
    ("path", "one", "same"),
    [
        ("train.learning_rate", 1e-4, 0.0001),
        ("lora.alpha", 8, 8.0),
        ("train.num_train_epochs", 3, 3.0),
        ("train.warmup_steps", 0, 0.0),
    ],
)
def test_two_spellings_of_a_number_are_one_trial(path: str, one: float, same: float) -> None:
    assert trial_id(changed(good(), path, one)) == trial_id(changed(good(), path, same))


def batches(batch: int, accumulated: int) -> Config:
    config = changed(good(), "train.per_device_train_batch_size", batch)
    return changed(config, "train.gradient_accumulation_steps", accumulated)


def test_the_batch_counts_as_a_whole() -> None:
    assert trial_id(batches(4, 2)) == trial_id(batches(8, 1)) == trial_id(batches(1, 8))
    assert trial_id(batches(4, 2)) != trial_id(batches(4, 1))
    assert trial_id(batches(4, 2)) != trial_id(batches(4, 4))


def test_of_epochs_and_steps_the_one_that_counts_is_in_the_identity() -> None:
    steps = changed(good(), "train.max_steps", 8)
    assert trial_id(steps) != trial_id(good())
    assert trial_id(changed(steps, "train.num_train_epochs", 9.0)) == trial_id(steps)
    assert trial_id(changed(steps, "train.max_steps", 9)) != trial_id(steps)


def test_target_modules_are_a_set() -> None:
    assert trial_id(good(), ("v_proj", "q_proj")) == trial_id(good(), ("q_proj", "v_proj"))
    assert trial_id(good(), ("q_proj",)) != trial_id(good(), ("q_proj", "v_proj"))
    listed = changed(good(), "lora.targets", ["q_proj", "v_proj"])
    assert trial_id(listed) == trial_id(good())


def test_a_trial_s_id_changes_with_the_model_and_the_data() -> None:
    def identity(model: str, data: str) -> str:
        return short_hash(trial_identity(good(), model, data, ["q_proj"]))

    ids = {identity("m", "d"), identity("n", "d"), identity("m", "e"), identity("d", "m")}
    assert len(ids) == 4


def test_identity_changes_no_config() -> None:
    config = good()
    trial_identity(config, "m", "d", ["q_proj"])
    baseline_identity(config, "m", "d", "qa")
    eval_identity(config)
    assert config == good()


def test_an_evaluation_at_the_trial_s_own_bits_is_the_one_at_these_bits_by_name() -> None:
    trained_at_4 = changed(good(), "quant.bits", 4)
    assert eval_id(trained_at_4) == eval_id(changed(trained_at_4, "eval.quant", "4bit"))
    assert eval_id(trained_at_4) != eval_id(changed(trained_at_4, "eval.quant", "8bit"))
    assert eval_id(good()) == eval_id(changed(good(), "eval.quant", "none"))
    fixed = changed(trained_at_4, "eval.quant", "8bit")
    assert eval_id(fixed) == eval_id(changed(fixed, "quant.bits", None))


@pytest.mark.parametrize(
    ("bits", "quant", "expected"),
    [(None, "same", None), (4, "same", 4), (4, "8bit", 8), (8, "none", None), (None, "4bit", 4)],
)
def test_bits_of_the_base_while_generating(bits: int | None, quant: str, expected: int | None) -> None:
    config = changed(changed(good(), "quant.bits", bits), "eval.quant", quant)
    assert config.eval_bits() == expected


def baseline_id(config: Config, template: str = "alpaca") -> str:
    return short_hash(baseline_identity(config, "model-1", "data-1", template))


def test_trials_that_differ_in_training_alone_share_their_baseline() -> None:
    for path, value in (("lora.r", 2), ("lora.targets", "mlp"), ("train.learning_rate", 1.0), ("seed", 7)):
        assert baseline_id(changed(good(), path, value)) == baseline_id(good()), path


def test_a_baseline_is_of_a_template_of_rows_and_of_the_bits_that_it_generates_with() -> None:
    assert baseline_id(good(), "qa") != baseline_id(good(), "alpaca")
    assert baseline_id(good(), "qa") == baseline_id(changed(good(), "data.template", "chat"), "qa")
    assert baseline_id(changed(good(), "data.split_seed", 1)) != baseline_id(good())
    assert baseline_id(changed(good(), "quant.bits", 4)) != baseline_id(good())
    four, eight = (changed(changed(good(), "quant.bits", bits), "eval.quant", "8bit") for bits in (4, 8))
    assert baseline_id(four) == baseline_id(eight)


def test_a_trial_is_never_taken_for_its_baseline() -> None:
    base = base_identity(good(), "m", "d")
    trial, baseline = trial_identity(good(), "m", "d", []), baseline_identity(good(), "m", "d", "alpaca")
    assert trial["kind"] == "trial"
    assert baseline["kind"] == "baseline"
    assert baseline["data"] == trial["data"] == base["data"]


# --- the canonical form ----------------------------------------------------------------------------------------------


def test_the_canonical_form_has_one_spelling() -> None:
    assert (
        to_canonical_json({"b": 8.0, "a": [1e-4, (1, None)], "c": {2: True}})
        == '{"a":[0.0001,[1,null]],"b":8,"c":{"2":true}}'
    )
    assert to_canonical_json(0.0001) == to_canonical_json(1e-4) == "0.0001"
    assert to_canonical_json("8") != to_canonical_json(8)
    assert to_canonical_json(True) != to_canonical_json(1)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_has_no_hash(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        short_hash({"x": number})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_equal_values_have_equal_hashes_in_any_order(value: Any) -> None:
    def turned(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: turned(sub) for key, sub in reversed(item.items())}
        if isinstance(item, list):
            return [turned(sub) for sub in item]
        as_float: Callable[[int], float] = float
        is_exact = isinstance(item, int) and not isinstance(item, bool) and abs(item) < 2**53
        return as_float(item) if is_exact else item

    assert short_hash(turned(value)) == short_hash(value)


def test_a_hash_is_short_and_hexadecimal() -> None:
    assert re.fullmatch(r"[0-9a-f]{12}", short_hash({"a": 1}))
    assert short_hash({"a": 1}, 24).startswith(short_hash({"a": 1}))

"""Looking at a model and its data: what is refused, what is cached, and the process that does it."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.inspected import WIDE, from_folder, tiny_config
from support.tiny_shapes import hand_facts

from lora_sweep.config.schema import Config, FixedPrompt, Model, Train, WheelFile
from lora_sweep.errors import Refused
from lora_sweep.facts import facts as facts_module
from lora_sweep.facts.facts import DataFacts, Facts, facts_file, facts_key, read_cached_facts
from lora_sweep.model.inspect import check_settings, inspect_trial


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without facts; tiny models are made in it anew."""
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "lr_scheduler_type",
            "linera",
            "train.lr_scheduler_type = linera: is unknown; did you mean 'linear'?; allowed: ",
        ),
        ("optim", "adamw_torhc", "train.optim = adamw_torhc: is unknown; did you mean 'adamw_torch'?; allowed: "),
        (
            "train_sampling_strategy",
            "group_by_lenght",
            "train.train_sampling_strategy = group_by_lenght: is unknown; did you mean 'group_by_length'?; allowed: ",
        ),
        ("sft", {"neftune_noise_alpa": 5}, "train.sft.neftune_noise_alpa: is no key of TRL's SFTConfig; "),
    ],
)
def test_settings_that_the_trainer_does_not_know_are_refused(key: str, value: Any, said: str, own_cache: Path) -> None:
    config = tiny_config()
    facts = inspect_trial(config, strict=True)
    setattr(config.train, key, value)
    assert read_cached_facts(config, strict=True) == facts  # known facts do not let them through
    with pytest.raises(Refused) as caught:
        inspect_trial(config, strict=True)
    assert str(caught.value).startswith(said)


def test_settings_that_the_trainer_knows_are_taken() -> None:
    train = Train(lr_scheduler_type="cosine", optim="sgd", train_sampling_strategy="sequential")
    check_settings(train)
    check_settings(Train(sft={"neftune_noise_alpha": 5.0}))


# --- cache -----------------------------------------------------------------------------------------------------------


def test_facts_are_remembered_and_read_back(own_cache: Path) -> None:
    config = tiny_config("phi3")
    assert read_cached_facts(config, strict=True) is None
    facts = inspect_trial(config, strict=True)
    assert read_cached_facts(config, strict=True) == facts
    assert Facts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert facts.model == hand_facts("phi3")
    assert facts.compute_bytes in (2, 4)
    assert facts_file(config, strict=True).is_relative_to(own_cache)
    assert read_cached_facts(config, strict=False) is None  # a plan asks for less


def test_known_facts_need_no_second_look(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    facts = inspect_trial(config, strict=True)
    monkeypatch.setattr("lora_sweep.model.inspect.inspect_model", lambda config: pytest.fail("looked again"))
    assert inspect_trial(config, strict=True) == facts


def test_known_facts_need_no_torch(own_cache: Path) -> None:
    config = tiny_config()
    inspect_trial(config, strict=True)
    program = (
        "import json, sys\n"
        "import lora_sweep.model.inspect\n"
        "from lora_sweep.config.schema import config_from_json\n"
        "from lora_sweep.facts.facts import read_cached_facts\n"
        "facts = read_cached_facts(config_from_json(json.loads(sys.argv[1])), strict=True)\n"
        "print(facts.model.model_type, sorted({'torch', 'transformers', 'pandas', 'peft'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", program, json.dumps(dataclasses.asdict(config))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "llama []\n"


def test_rows_are_refused_without_waiting_for_torch(tmp_path: Path, own_cache: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"product": "lamp"')
    config = tiny_config(path=str(tmp_path / "rows.jsonl"))
    program = (
        "import json, sys\n"
        "from lora_sweep.config.schema import config_from_json\n"
        "from lora_sweep.errors import Refused\n"
        "from lora_sweep.model.inspect import inspect_trial\n"
        "try:\n"
        "    inspect_trial(config_from_json(json.loads(sys.argv[1])), strict=True)\n"
        "except Refused as error:\n"
        "    print(error, 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, json.dumps(dataclasses.asdict(config))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    start = f"{tmp_path / 'rows.jsonl'}, line 1: is broken JSON ("
    assert done.stdout.startswith(start)
    assert done.stdout.endswith(") False\n")


def test_a_refusal_is_not_remembered(own_cache: Path) -> None:
    config = tiny_config()
    config.train.max_length = 16
    with pytest.raises(Refused, match="leave no room"):
        inspect_trial(config, strict=True)
    assert not facts_file(config, strict=True).exists()


def test_torn_facts_are_made_again(own_cache: Path) -> None:
    config = tiny_config()
    facts = inspect_trial(config, strict=True)
    path = facts_file(config, strict=True)
    path.write_text(path.read_text()[:100])
    assert read_cached_facts(config, strict=True) is None
    assert inspect_trial(config, strict=True) == facts


def changes() -> dict[str, Callable[[Config], None]]:
    return {
        "the model": lambda c: setattr(c.model, "tiny", "gpt2"),
        "a wheel": lambda c: setattr(c.data, "wheel", WheelFile("a==1", "00", "b")),
        "a column": lambda c: setattr(c.data.columns, "category", None),
        "the template": lambda c: setattr(c.data, "template", "qa"),
        "max_length": lambda c: setattr(c.train, "max_length", 512),
        "held-out prompts": lambda c: setattr(c.eval, "prompts", 13),
        "validation rows": lambda c: setattr(c.eval, "validation_rows", 65),
        "fixed prompts": lambda c: setattr(c.eval, "fixed_prompts", [FixedPrompt("lamp")]),
        "baseline templates": lambda c: setattr(c.eval, "baseline_templates", ["qa"]),
        "the split": lambda c: setattr(c.eval, "split", "test"),
        "the scorer": lambda c: setattr(c.eval, "scorer", "json"),
        "the labels": lambda c: setattr(c.eval, "labels", ["lamp"]),
        "the pattern": lambda c: setattr(c.eval, "pattern", "lamp"),
    }


@pytest.mark.parametrize("change", changes())
def test_facts_are_asked_for_again_when_what_they_depend_on_changes(change: str) -> None:
    config = tiny_config()
    changes()[change](config)
    assert facts_key(config, True) != facts_key(tiny_config(), True)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: setattr(c.lora, "r", 4),
        lambda c: setattr(c.quant, "bits", 4),
        lambda c: setattr(c.train, "learning_rate", 1.0),
        lambda c: setattr(c, "seed", 9),
        lambda c: setattr(c, "runs_dir", "elsewhere"),
    ],
)
def test_trials_of_one_sweep_share_their_facts(change: Callable[[Config], None]) -> None:
    config = tiny_config()
    change(config)
    assert facts_key(config, True) == facts_key(tiny_config(), True)


def test_a_changed_file_has_other_facts(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    (tmp_path / "model").mkdir()
    for file in tiny_folder("llama").iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"product": "a", "category": "b", "description": "c"}\n')
    config = from_folder(tmp_path / "model")
    config.data.path = str(rows)
    keys = {facts_key(config, True)}
    rows.write_text(rows.read_text() * 2)
    keys.add(facts_key(config, True))
    (tmp_path / "model" / "config.json").write_text("{}")
    keys.add(facts_key(config, True))
    assert len(keys) == 3


def test_facts_of_an_older_version_are_not_read(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    inspect_trial(config, strict=True)
    monkeypatch.setattr(facts_module, "FACTS_VERSION", facts_module.FACTS_VERSION + 1)
    assert read_cached_facts(config, strict=True) is None


# --- without the hub -------------------------------------------------------------------------------------------------


def on_the_hub() -> Config:
    config = tiny_config()
    architecture = {"model_type": "llama", **WIDE, "tie_word_embeddings": True}
    config.model = Model(name="far", hub_id="nobody/nothing", revision="c0ffee", architecture=architecture)
    config.data = dataclasses.replace(config.data, tiny=None, hub_id="nobody/rows", revision="f00d")
    return config


def test_a_plan_needs_neither_the_hub_s_model_nor_its_rows(own_cache: Path) -> None:
    facts = inspect_trial(on_the_hub(), strict=False)
    assert facts.data == DataFacts(fingerprint="nobody/rows@f00d")
    assert facts.model.fingerprint == "nobody/nothing@c0ffee"
    assert facts.model.tied_head
    assert len(facts.model.attn) == 4


def test_training_needs_them(own_cache: Path) -> None:
    config = on_the_hub()
    with pytest.raises(Refused, match=r"^data nobody/rows: could not be loaded from the hub"):
        inspect_trial(config, strict=True)
    config.data = tiny_config().data
    with pytest.raises(Refused, match=r"^model far: its tokenizer cannot be loaded: "):
        inspect_trial(config, strict=True)
    assert not (own_cache / "facts").exists()


# --- the process -----------------------------------------------------------------------------------------------------


def test_requests_are_answered_in_order_with_facts_or_a_sentence(tmp_path: Path, own_cache: Path) -> None:
    good, bad = tiny_config("gpt_neox"), tiny_config("llama", path=str(tmp_path / "rows.csv"), tiny=None)
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    requests = [{"config": dataclasses.asdict(config), "strict": True} for config in (bad, good)]
    asked.write_text(json.dumps(requests))
    command = [sys.executable, "-m", "lora_sweep.model.inspect", str(asked), str(answered)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    refused, facts = json.loads(answered.read_text())
    assert refused == {"refused": f"data.path = {tmp_path / 'rows.csv'}: is no file"}
    assert Facts.from_json(facts["facts"]).model == hand_facts("gpt_neox")
    assert read_cached_facts(good, strict=True) == Facts.from_json(facts["facts"])
    assert done.stdout == ""

"""Every file of conf/: it composes, its first line says how to use it, and its values are those of the schema."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from lora_sweep.config.checks import check_config
from lora_sweep.config.schema import (
    Config,
    Data,
    Eval,
    Launch,
    Lora,
    Model,
    Quant,
    Tracking,
    Train,
    config_from_json,
    register_schema,
)
from lora_sweep.errors import Refused
from sweep.compose import compose_points
from sweep.plan.facts import gather_facts
from sweep.plan.make import make_plan
from sweep.search.grid import list_points

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
GROUPS = {
    "model": Model,
    "data": Data,
    "lora": Lora,
    "quant": Quant,
    "train": Train,
    "eval": Eval,
    "tracking": Tracking,
    "launch": Launch,
}
# As the checkpoints on the hub have them, tied heads counted once.
PARAMETERS = {
    "openllama_3b_v2": 3_426_473_600,
    "smollm2_135m": 134_515_008,
    "llama_3_2_1b": 1_235_814_400,
    "qwen3_0_6b": 596_049_920,
}


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def group_of(path: Path) -> str:
    return str(path.parent.relative_to(CONF))


def name_of(path: Path) -> str:
    return str(path.relative_to(CONF))


def files_of(*groups: str) -> list[Path]:
    return [path for path in FILES if group_of(path) in groups]


def keys_and_values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a file as (dotted key, value); a list is a leaf."""
    if isinstance(node, DictConfig) and node:
        for key, value in node.items():
            yield from keys_and_values(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), node


def plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def planned_configs(arguments: list[str]) -> list[Config]:
    """The points of a command, as ``sweep.plan`` composes them."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    experiment = [argument for argument in arguments if argument.startswith("experiment=")]
    sweeper = compose("base", experiment, return_hydra_config=True).hydra.sweeper
    loader = hydra.config_loader
    return compose_points(loader, [], list_points(loader, arguments, dict(sweeper.params), list(sweeper.rows)))


@pytest.mark.parametrize("path", files_of(*GROUPS), ids=name_of)
def test_a_groups_file_composes_and_its_values_arrive(path: Path) -> None:
    group = group_of(path)
    config = compose("base", [f"{group}={path.stem}"])
    values = dict(keys_and_values(OmegaConf.load(path), f"{group}."))
    assert values
    for key, value in values.items():
        assert plain(OmegaConf.select(config, key)) == plain(value), key
    check_config(config_from_json(plain(config)))


@pytest.mark.parametrize("path", [p for p in FILES if group_of(p).startswith("hydra/")], ids=name_of)
def test_a_file_of_hydras_own_groups_composes(path: Path) -> None:
    config = compose("base", [f"{group_of(path)}={path.stem}"], return_hydra_config=True)
    values = dict(keys_and_values(OmegaConf.load(path), f"{group_of(path).replace('/', '.')}."))
    assert {key: plain(OmegaConf.select(config, key)) for key in values} == {k: plain(v) for k, v in values.items()}


def test_no_file_is_outside_the_groups_tried_here() -> None:
    known = [*files_of(*GROUPS, "experiment", "."), *(p for p in FILES if group_of(p).startswith("hydra/"))]
    assert sorted(known) == FILES
    assert files_of(".") == [CONF / "base.yaml"]
    assert {group_of(path) for path in FILES} >= {*GROUPS, "experiment"}


@pytest.mark.parametrize("path", files_of("experiment"), ids=name_of)
def test_an_experiment_composes_and_its_values_arrive(path: Path) -> None:
    configs = planned_configs([f"experiment={path.stem}"])
    assert len(configs) > 1
    written = dict(keys_and_values(OmegaConf.load(path)))
    for key, value in written.items():
        if key.partition(".")[0] not in ("defaults", "hydra"):
            assert plain(OmegaConf.select(OmegaConf.structured(configs[0]), key)) == plain(value), key


@pytest.mark.slow
def test_every_experiment_and_every_hub_model_plans_without_a_hub() -> None:
    """One test, because all their facts come from one process that imports torch.

    A model's parameters are counted on the meta device, from the few fields of its file alone.
    """
    commands = [[f"experiment={path.stem}"] for path in files_of("experiment")]
    sweeps = [planned_configs(command) for command in commands]
    for number, configs in enumerate(sweeps):
        if any(config.model.wheel or config.data.wheel for config in configs):  # not fetched in a test
            sweeps[number] = planned_configs([*commands[number], "model=tiny", "data=tiny"])
    names = [path.stem for path in files_of("model") if "architecture:" in path.read_text()]
    hub = planned_configs([f"model={','.join(names)}", "data=tiny"])
    found_facts = gather_facts([config for configs in [*sweeps, hub] for config in configs], strict=False)
    assert not [refused for refused in found_facts if isinstance(refused, Refused)]
    for configs in sweeps:
        plan = make_plan(configs, strict=False)
        assert len([trial for trial in plan.trials if trial.kind == "trial"]) == len(configs)
        assert len({trial.label for trial in plan.trials}) == len(plan.trials)
        assert plan.trials[0].kind == "baseline"
    found = {t.config.model.name: t.facts.model.total_params for t in make_plan(hub, strict=False).trials}
    assert found == PARAMETERS


@pytest.mark.parametrize("path", files_of(*GROUPS, "experiment", "."), ids=name_of)
def test_a_file_opens_with_the_command_that_uses_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    if lines[0].startswith("# @package"):
        lines = lines[1:]
    assert lines[0].startswith("# ")
    command = lines[0].removeprefix("# ").partition(": ")[0].removesuffix(" (default)")
    group, option = group_of(path), path.stem
    if group == "experiment":
        assert command == f"python -m lora_sweep.train experiment={option}"
    elif group == ".":
        assert "python -m lora_sweep.train" in lines[0]
    elif option == "default":  # nobody writes lora=default: its keys are what is typed
        typed = [word for word in command.split() if "=" in word]
        assert typed
        assert all(word.startswith(f"{group}.") for word in typed)
        planned_configs(typed)
    else:
        assert command.split()[0] == f"{group}={option}"
        compose("base", command.split())


@pytest.mark.parametrize("group", ["lora", "train", "eval", "launch"])
def test_the_schemas_defaults_are_the_default_files(group: str) -> None:
    """A config built in code is the one that a command without overrides gives."""
    written = plain(OmegaConf.load(CONF / group / "default.yaml"))
    schema = dataclasses.asdict(GROUPS[group]())
    if group == "eval":  # prompts are values for people: the schema has none
        assert written.pop("fixed_prompts")
        assert schema.pop("fixed_prompts") == []
    assert list(written) == list(schema), "the file shows every key, in the schema's order"
    assert written == schema


def test_the_schemas_other_defaults_are_the_default_choices() -> None:
    default, schema = config_from_json(plain(compose("base"))), Config()
    assert default.tracking == schema.tracking
    assert default.quant == schema.quant
    assert (default.seed, default.runs_dir, default.sweep_name) == (schema.seed, schema.runs_dir, schema.sweep_name)


@pytest.mark.parametrize("path", files_of("experiment"), ids=name_of)
def test_an_experiments_name_is_its_sweeps(path: Path) -> None:
    assert OmegaConf.load(path).sweep_name == path.stem  # type: ignore[union-attr]


def test_a_source_outside_this_machine_is_pinned() -> None:
    for path in files_of("model", "data"):
        values = OmegaConf.load(path)
        if "wheel" in values:
            assert re.fullmatch(r"[\w-]+==[\d.]+", values.wheel.requirement), path.name
            assert re.fullmatch(r"[0-9a-f]{64}", values.wheel.sha256), path.name
        if "hub_id" in values:
            assert re.fullmatch(r"[0-9a-f]{40}|main", values.revision), path.name


def test_the_main_commands_defaults_need_no_hub() -> None:
    config = compose("base")
    assert config.model.hub_id is None
    assert config.data.hub_id is None
    assert config.tracking.mode == "auto"


def test_the_blogs_experiment_is_a_list_with_its_own_hyperparameters() -> None:
    configs = planned_configs(["experiment=databricks_table"])
    rows = [(c.lora.r, c.lora.targets, c.quant.bits) for c in configs]
    assert rows == [(8, "attn", 4), (16, "attn", 4), (8, "all_linear_and_head", 4), (8, "all_linear_and_head", 8)]
    for config in configs:
        assert (config.lora.alpha, config.lora.dropout, config.lora.bias) == (8, 0.05, "none")
        assert (config.train.num_train_epochs, config.train.max_length) == (3, 256)
        assert config.eval.quant == "8bit"
        assert [(p.product, p.category) for p in config.eval.fixed_prompts] == [
            ("Corelogic Smooth Mouse", "Optical Mouse"),
            ("Hoover Lightspeed", "Cordless Vacuum Cleaner"),
        ]
        assert (config.data.template, config.eval.baseline_templates) == ("alpaca", ["qa"])
        assert (config.data.sample, config.data.sample_seed) == (5000, 42)

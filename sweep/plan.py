"""Configs to trials: identified, deduplicated, checked against the model and the data, and sized.

``python -m sweep.plan [-m] [KEY=VALUE ...]`` takes the overrides of ``lora_sweep.train`` and prints the plan
without training anything. Imports no torch: what a model looks like comes from a process of its own, once.
"""

import copy
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sweep.config import (
    Config,
    baseline_identity,
    eval_identity,
    register_schema,
    short_hash,
    trial_identity,
)
from lora_sweep.errors import EXIT_REFUSED, Refused
from lora_sweep.facts import Facts, cached_facts, facts_key
from lora_sweep.footprint import Forecast, forecast_memory, trainable_params
from lora_sweep.targets import check_rank, resolve_targets, target_modules

Key = tuple[str, str]  # trial id, evaluation id


@dataclass(frozen=True)
class Planned:
    """One trial or baseline, ready for a worker."""

    trial_id: str
    eval_id: str
    kind: str
    label: str
    config: Config
    facts: Facts
    target_modules: list[str]
    trainable_params: int
    forecast: Forecast
    identity: dict[str, Any]

    @property
    def key(self) -> Key:
        return self.trial_id, self.eval_id


@dataclass(frozen=True)
class Plan:
    """The trials of one command, baselines first.

    ``points`` holds the key of each point of the command, in its order; two points may share a trial.
    """

    trials: list[Planned]
    points: list[Key]
    varied: list[str]


def make_plan(configs: list[Config], strict: bool) -> Plan:
    """Identify, check and size the trials of ``configs``, and add a baseline for each base.

    Args:
        strict: everything that training needs must be at hand; otherwise what only a hub can give stays unknown.

    Raises:
        Refused: the first thing found that cannot work.
    """
    for config in configs:
        config.check()
    facts = find_facts(configs, strict)
    varied = varied_keys(configs)
    baselines: dict[Key, Planned] = {}
    trials: dict[Key, Planned] = {}
    keys = []
    for config in configs:
        known = facts[facts_key(config, strict)]
        for template in dict.fromkeys([config.data.template, *config.eval.baseline_templates]):
            baseline = plan_baseline(config, known, template, varied)
            baselines.setdefault(baseline.key, baseline)
        trial = plan_trial(config, known, varied)
        trials.setdefault(trial.key, trial)
        keys.append(trial.key)
    return Plan([*baselines.values(), *trials.values()], keys, varied)


def plan_trial(config: Config, facts: Facts, varied: list[str]) -> Planned:
    linears = resolve_targets(config.lora.targets, facts.model)
    check_rank(config.lora, linears)
    modules = target_modules(linears, facts.model)
    identity = trial_identity(config, facts.model.fingerprint, facts.data.fingerprint, modules)
    trainable = trainable_params(config.lora, linears, facts.model)
    return Planned(
        trial_id=short_hash(identity),
        eval_id=short_hash(eval_identity(config)),
        kind="trial",
        label=trial_label(config, facts, varied),
        config=config,
        facts=facts,
        target_modules=modules,
        trainable_params=trainable,
        forecast=forecast_memory(config, facts.model, trainable, facts.data.longest_row, facts.compute_bytes),
        identity=identity,
    )


def plan_baseline(config: Config, facts: Facts, template: str, varied: list[str]) -> Planned:
    """The untuned base of ``config`` as it generates, prompted in ``template``."""
    identity = baseline_identity(config, facts.model.fingerprint, facts.data.fingerprint, template)
    config = copy.deepcopy(config)
    config.quant.bits, config.eval.quant, config.data.template = config.eval_bits(), "same", template
    names = [
        "baseline",
        bits_name(config, facts),
        *varied_values(config, [k for k in varied if k.startswith("model.")]),
    ]
    return Planned(
        trial_id=short_hash(identity),
        eval_id=short_hash(eval_identity(config)),
        kind="baseline",
        label=" ".join([*names, *([template] if config.eval.baseline_templates else [])]),
        config=config,
        facts=facts,
        target_modules=[],
        trainable_params=0,
        forecast=forecast_memory(config, facts.model, 0, facts.data.longest_row, facts.compute_bytes),
        identity=identity,
    )


# --- facts -------------------------------------------------------------------------------------------------------


def find_facts(configs: list[Config], strict: bool) -> dict[str, Facts]:
    """The facts of every (model, data) pair of ``configs``: from the cache, else from one ``lora_sweep.inspect``."""
    known: dict[str, Facts] = {}
    missing: dict[str, Config] = {}
    for config in configs:
        key = facts_key(config, strict)
        if key not in known and key not in missing:
            cached = cached_facts(config, strict)
            if cached:
                known[key] = cached
            else:
                missing[key] = config
    if missing:
        requests = [{"config": dataclasses.asdict(config), "strict": strict} for config in missing.values()]
        for key, answer in zip(missing, ask_inspect(requests, strict), strict=True):
            if "refused" in answer:
                raise Refused("", answer["refused"])
            known[key] = Facts.from_json(answer["facts"])
    return known


def ask_inspect(requests: list[dict[str, Any]], strict: bool) -> list[dict[str, Any]]:
    """One answer a request, from a process that may import torch."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered, log = (Path(folder) / name for name in ("requests.json", "answers.json", "log"))
        asked.write_text(json.dumps(requests))
        environment = {**os.environ, **({} if strict else {"HF_HUB_OFFLINE": "1"})}  # a plan waits for no hub
        with log.open("w") as errors:
            command = [sys.executable, "-m", "lora_sweep.inspect", str(asked), str(answered)]
            done = subprocess.run(command, stderr=errors, stdin=subprocess.DEVNULL, env=environment, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"lora_sweep.inspect ended with exit code {done.returncode}:\n{log.read_text()[-4000:]}")
        answers: list[dict[str, Any]] = json.loads(answered.read_text())
        return answers


# --- names -------------------------------------------------------------------------------------------------------


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of dicts as {dotted path: leaf}."""
    if isinstance(value, dict) and value:
        return {k: v for key, sub in value.items() for k, v in flatten(sub, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): value}


def varied_keys(configs: list[Config]) -> list[str]:
    """The keys whose values differ between ``configs``, in the schema's order."""
    flat = [flatten(dataclasses.asdict(config)) for config in configs]
    keys = dict.fromkeys(key for tree in flat for key in tree)
    return [key for key in keys if len({json.dumps(tree.get(key)) for tree in flat}) > 1]


def varied_values(config: Config, keys: Sequence[str]) -> list[str]:
    flat = flatten(dataclasses.asdict(config))
    return [f"{key.rpartition('.')[2]}={flat.get(key)}" for key in keys if flat.get(key) is not None]


def bits_name(config: Config, facts: Facts) -> str:
    return f"{config.quant.bits or 8 * facts.compute_bytes}bit"


def trial_label(config: Config, facts: Facts, varied: list[str]) -> str:
    """What a person calls the trial: r, targets and bits, and whatever else varies."""
    targets = config.lora.targets if isinstance(config.lora.targets, str) else "+".join(config.lora.targets)
    shown = [f"r={config.lora.r}", targets, bits_name(config, facts)]
    others = [key for key in varied if key not in ("lora.r", "lora.targets", "quant.bits", "quant.double_quant")]
    if "model.name" in others:
        others = [key for key in others if not key.startswith("model.")] + ["model.name"]
    if "data.name" in others:
        others = [key for key in others if not key.startswith("data.")] + ["data.name"]
    return " ".join([*shown, *varied_values(config, others)])


# --- the command -------------------------------------------------------------------------------------------------


def print_plan(arguments: list[str]) -> None:
    """Compose the command's points as ``lora_sweep.train`` would, plan them, and print the table."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from sweep.compose import CONFIG_NAME, compose_points, points
    from sweep.plan_table import plan_table
    from sweep.store import sweep_name

    overrides = [argument for argument in arguments if argument not in ("-m", "--multirun")]
    with initialize_config_dir(str(Path(__file__).parent.parent / "conf"), version_base="1.3", job_name="plan"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        tree = loader.load_configuration(
            CONFIG_NAME, overrides, run_mode=RunMode.MULTIRUN, validate_sweep_overrides=False
        )
        sweeper = tree.hydra.sweeper
        trials = points(loader, list(tree.hydra.overrides.task), dict(sweeper.params), [list(r) for r in sweeper.rows])
        configs = compose_points(loader, list(tree.hydra.overrides.hydra), trials)
    plan = make_plan(configs, strict=False)
    print(plan_table(plan, Path(configs[0].runs_dir), sweep_name(plan)))


def main() -> None:
    from lora_sweep.composition_errors import as_refused

    register_schema()
    try:
        print_plan(sys.argv[1:])
    except Exception as error:
        refused = error if isinstance(error, Refused) else as_refused(error)
        if refused is None:
            raise
        print(f"refused: {refused}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    main()

"""Configs to trials: identified, deduplicated, checked against the model and the data, and sized.

``python -m sweep.plan [-m] [KEY=VALUE ...]`` takes the arguments of ``lora_sweep.train`` and prints the plan
without training anything. Imports no torch: what a model looks like comes from a process of its own, once.
"""

import argparse
import copy
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lora_sweep.config import Config, Train, register_schema, settle
from lora_sweep.errors import EXIT_REFUSED, Refused
from lora_sweep.facts import Facts, cached_facts, facts_key, library_versions
from lora_sweep.fetch import cache_folder
from lora_sweep.footprint import forecast_memory, trainable_params
from lora_sweep.identity import baseline_identity, eval_identity, short_hash, trial_identity
from lora_sweep.results import write_json
from lora_sweep.targets import check_rank, resolve_targets, target_modules
from sweep.plan_table import plan_table
from sweep.store import sweep_name
from sweep.trials import Key, Plan, Planned, baseline_label, trial_label, varied_keys


def make_plan(configs: list[Config], strict: bool) -> Plan:
    """Identify, check and size the trials of ``configs``, and add a baseline for each base.

    Args:
        strict: everything that training needs must be at hand; otherwise what only a hub can give stays unknown.

    Raises:
        Refused: the first thing found that cannot work.
    """
    configs = [settle(config) for config in configs]
    for config in configs:
        config.check()
    facts = find_facts(configs, strict)
    varied = varied_keys(configs)
    baselines: dict[Key, Planned] = {}
    trials: dict[Key, Planned] = {}
    keys = []
    for config in configs:
        known = facts[facts_key(config, strict)]
        of_base = [
            plan_baseline(config, known, template, varied)
            for template in dict.fromkeys([config.data.template, *config.eval.baseline_templates])
        ]
        for baseline in of_base:
            baselines.setdefault(baseline.key, baseline)
        trial = plan_trial(config, known, varied, of_base[0].key)
        trials.setdefault(trial.key, trial)
        keys.append(trial.key)
    return Plan([*baselines.values(), *trials.values()], keys, varied)


def plan_trial(config: Config, facts: Facts, varied: list[str], baseline: Key) -> Planned:
    linears = resolve_targets(config.lora.targets, facts.model)
    check_rank(config.lora, linears)
    check_positions(config, facts)
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
        baseline=baseline,
    )


def check_positions(config: Config, facts: Facts) -> None:
    """Refuse rows and texts that are longer than the model has positions for."""
    known, longest = facts.model.max_positions, facts.data.longest_prompt
    if known and config.train.max_length > known:
        raise Refused(f"train.max_length = {config.train.max_length}", f"is more than this model's {known} positions")
    if known and longest and longest + config.eval.max_new_tokens > known:
        what = f"and the longest prompt's {longest} tokens are more than this model's {known} positions"
        raise Refused(f"eval.max_new_tokens = {config.eval.max_new_tokens}", what)


def plan_baseline(config: Config, facts: Facts, template: str, varied: list[str]) -> Planned:
    """The untuned base of ``config`` as it generates, prompted in ``template``."""
    identity = baseline_identity(config, facts.model.fingerprint, facts.data.fingerprint, template)
    config = copy.deepcopy(config)
    config.quant.bits, config.eval.quant, config.data.template = config.eval_bits(), "same", template
    return Planned(
        trial_id=short_hash(identity),
        eval_id=short_hash(eval_identity(config)),
        kind="baseline",
        label=baseline_label(config, facts, varied),
        config=config,
        facts=facts,
        target_modules=[],
        trainable_params=0,
        forecast=forecast_memory(config, facts.model, 0, facts.data.longest_row, facts.compute_bytes),
        identity=identity,
    )


# --- facts -------------------------------------------------------------------------------------------------------


def find_facts(configs: list[Config], strict: bool) -> dict[str, Facts]:
    """The facts of every (model, data) pair of ``configs``: from the cache, else from one ``lora_sweep.inspect``.

    The same process judges settings of the trainer that no plan has used before.
    """
    known: dict[str, Facts | None] = {}
    missing: dict[tuple[str, Path], Config] = {}
    for config in configs:
        key, settings = facts_key(config, strict), settings_file(config.train)
        if key not in known:
            known[key] = cached_facts(config, strict)
        if known[key] is None or not settings.exists():
            missing.setdefault((key, settings), config)
    if missing:
        requests = [{"config": dataclasses.asdict(config), "strict": strict} for config in missing.values()]
        for (key, settings), answer in zip(missing, ask_inspect(requests, strict), strict=True):
            if "refused" in answer:
                raise Refused("", answer["refused"])
            known[key] = Facts.from_json(answer["facts"])
            write_json(settings, {"accepted": True})
    return {key: facts for key, facts in known.items() if facts}


def settings_file(train: Train) -> Path:
    """What is in the cache once the libraries were asked whether they know these names."""
    names: list[Any] = [train.lr_scheduler_type, train.optim, train.train_sampling_strategy]
    if train.sft:  # judged together with everything else
        names.append(dataclasses.asdict(train))
    names += library_versions()
    return cache_folder() / "settings" / f"{short_hash(names, 24)}.json"


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


# --- the command -------------------------------------------------------------------------------------------------


def print_plan(arguments: list[str]) -> None:
    """Compose the command's points as ``lora_sweep.train`` would, plan them, and print the table."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from sweep.compose import CONFIG_NAME, compose_points, points

    overrides = as_overrides(arguments)
    with initialize_config_dir(str(Path(__file__).parent.parent / "conf"), version_base="1.3", job_name="plan"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        tree = loader.load_configuration(
            CONFIG_NAME, overrides, run_mode=RunMode.MULTIRUN, validate_sweep_overrides=False
        )
        sweeper = dict(tree.hydra.sweeper)
        for key in sweeper:
            if key not in ("_target_", "params", "rows"):
                raise Refused(f"hydra.sweeper.{key}", "is no known key", ("params", "rows"), str(key))
        given: Any = OmegaConf.to_container(tree.hydra.overrides, resolve=False)  # ${lora.r} is each point's own
        trials = points(loader, given["task"], dict(sweeper["params"]), list(sweeper["rows"]))
        configs = compose_points(loader, given["hydra"], trials)
    plan = make_plan(configs, strict=False)
    print(plan_table(plan, Path(configs[0].runs_dir), sweep_name(plan)))


def as_overrides(arguments: list[str]) -> list[str]:
    """The overrides among the arguments of ``lora_sweep.train``; ``--config-dir`` becomes its override."""
    parser = argparse.ArgumentParser(prog="python -m sweep.plan", description="Show a command's trials; train nothing.")
    parser.add_argument("-m", "--multirun", action="store_true", help="taken as lora_sweep.train takes it")
    parser.add_argument("-cd", "--config-dir", help="a folder with further files of the groups")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_intermixed_args(arguments)
    if given.config_dir is None:
        return list(given.overrides)
    folder = Path(given.config_dir).absolute()
    if not folder.is_dir():
        raise Refused(f"--config-dir {given.config_dir}", "is no folder")
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.searchpath=['{quoted}']", *given.overrides]


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

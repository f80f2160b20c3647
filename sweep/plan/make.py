"""Configs to trials: identified, deduplicated, checked against the model and the data, and sized.

``python -m sweep.plan [-m] [KEY=VALUE ...]`` takes the arguments of ``lora_sweep.train`` and prints the plan
without training anything. Imports no torch: what a model looks like comes from a process of its own, once.
"""

import contextlib
import copy
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_sweep.config.identity import baseline_identity, eval_identity, short_hash, trial_identity
from lora_sweep.config.schema import Config, Train, settle
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import Facts, Linear, facts_key, library_versions, read_cached_facts
from lora_sweep.facts.memory import count_trainable_params, forecast_memory
from lora_sweep.facts.targets import check_rank, name_target_modules, resolve_targets
from lora_sweep.runs.cache import cache_folder
from lora_sweep.runs.files import write_json
from lora_sweep.scoring.scorers import check_scorer
from sweep.labels import label_baseline, label_trial, list_varied_keys
from sweep.trials import InvalidTrial, Key, Plan, PlannedTrial, make_invalid_trial


def make_plan(configs: list[Config], strict: bool) -> Plan:
    """Identify, check and size the trials of ``configs``, and add a baseline for each base.

    A point that cannot work is a row of the plan, unless no point can or ``launch.strict`` allows none.

    Args:
        strict: everything that training needs must be at hand; otherwise what only a hub can give stays unknown.

    Raises:
        Refused: a setting of the whole sweep differs between points; or the first thing found that cannot work.
    """
    check_shared(configs)
    configs = [settle(config) for config in configs]
    refused: dict[int, Refused] = {}  # by the point's number, in the order in which they are found
    for number, config in enumerate(configs):
        with refusals_as(refused, number):
            config.check()
            check_scorer(config.eval)
    stop_where_none_is_left(refused, configs)
    left = [number for number in range(len(configs)) if number not in refused]
    found = dict(zip(left, find_facts([configs[number] for number in left], strict), strict=True))
    refused |= {number: facts for number, facts in found.items() if isinstance(facts, Refused)}
    stop_where_none_is_left(refused, configs)
    draft = Draft(list_varied_keys(configs))
    drafted: dict[int, tuple[PlannedTrial, list[PlannedTrial]]] = {}
    for number, facts in found.items():
        if isinstance(facts, Facts):
            with refusals_as(refused, number):
                drafted[number] = draft.point(configs[number], facts)
    stop_where_none_is_left(refused, configs)
    return assembled(configs, drafted, refused, draft.varied)


def check_shared(configs: list[Config]) -> None:
    """Refuse what belongs to the whole sweep, and differs between its points all the same."""
    shared = ("tracking", "launch", "runs_dir", "sweep_name")
    if len({repr([getattr(config, name) for name in shared]) for config in configs}) > 1:
        keys = [key for key in list_varied_keys(configs) if key.partition(".")[0] in shared]
        raise Refused(keys[0], "differs between points; it is one setting of the whole sweep")


@contextlib.contextmanager
def refusals_as(refused: dict[int, Refused], number: int) -> Iterator[None]:
    """Keep what is refused in here as the word on that point."""
    try:
        yield
    except Refused as error:
        refused[number] = error


def stop_where_none_is_left(refused: dict[int, Refused], configs: list[Config]) -> None:
    """Raise the first refusal where every point is refused, or where one is enough."""
    if refused and (configs[0].launch.strict or len(refused) == len(configs)):
        raise next(iter(refused.values()))


def assembled(
    configs: list[Config],
    drafted: dict[int, tuple[PlannedTrial, list[PlannedTrial]]],
    refused: dict[int, Refused],
    varied: list[str],
) -> Plan:
    """The plan of the points, each drafted or refused; what is the same in several of them stands in it once."""
    compute_bytes = next(iter(drafted.values()))[0].facts.compute_bytes  # this machine's, so of every point
    baselines: dict[Key, PlannedTrial] = {}
    trials: dict[Key, PlannedTrial] = {}
    invalid: dict[Key, InvalidTrial] = {}
    points = []
    for number, config in enumerate(configs):
        if number in refused:
            point = make_invalid_trial(config, compute_bytes, varied, str(refused[number]))
            invalid.setdefault(point.key, point)
            points.append(point.key)
            continue
        trial, of_base = drafted[number]
        for baseline in of_base:
            baselines.setdefault(baseline.key, baseline)
        trials.setdefault(trial.key, trial)
        points.append(trial.key)
    return Plan([*baselines.values(), *trials.values()], points, varied, list(invalid.values()))


class Draft:
    """Points to trials and baselines. What many points of a grid share is worked out once."""

    def __init__(self, varied: list[str]) -> None:
        self.varied = varied
        self.resolved: dict[tuple[int, str], tuple[list[Linear], list[str]]] = {}
        self.of_base: dict[str, list[PlannedTrial]] = {}

    def point(self, config: Config, facts: Facts) -> tuple[PlannedTrial, list[PlannedTrial]]:
        """The trial, and the baselines of its base, its own first."""
        linears, modules = self.matrices(config.lora.targets, facts)
        check_rank(config.lora, linears)
        check_positions(config, facts)
        of_base = self.baselines(config, facts)
        identity = trial_identity(config, facts.model.fingerprint, facts.data.fingerprint, modules)
        trainable = count_trainable_params(config.lora, linears, facts.model)
        trial = PlannedTrial(
            trial_id=short_hash(identity),
            eval_id=short_hash(eval_identity(config)),
            kind="trial",
            label=label_trial(config, facts.compute_bytes, self.varied),
            config=config,
            facts=facts,
            target_modules=modules,
            trainable_params=trainable,
            forecast=forecast_memory(config, facts.model, trainable, facts.data.longest_row, facts.compute_bytes),
            identity=identity,
            baseline=of_base[0].key,
        )
        return trial, of_base

    def matrices(self, targets: str | list[str], facts: Facts) -> tuple[list[Linear], list[str]]:
        """The matrices that the targets name, and the names to give PEFT."""
        asked = (id(facts), repr(targets))
        if asked not in self.resolved:
            linears = resolve_targets(targets, facts.model)
            self.resolved[asked] = linears, name_target_modules(linears, facts.model)
        return self.resolved[asked]

    def baselines(self, config: Config, facts: Facts) -> list[PlannedTrial]:
        """A baseline for the form of the data and for each further one that is asked for."""
        asked = repr((config.model, config.data, config.quant, config.eval, config.train.max_length, config.seed))
        if asked not in self.of_base:
            templates = dict.fromkeys([config.data.template, *config.eval.baseline_templates])
            self.of_base[asked] = [plan_baseline(config, facts, template, self.varied) for template in templates]
        return self.of_base[asked]


def check_positions(config: Config, facts: Facts) -> None:
    """Refuse rows and texts that are longer than the model has positions for."""
    known, longest = facts.model.max_positions, facts.data.longest_prompt
    if known and config.train.max_length > known:
        raise Refused(f"train.max_length = {config.train.max_length}", f"is more than this model's {known} positions")
    if known and longest and longest + config.eval.max_new_tokens > known:
        what = f"and the longest prompt's {longest} tokens are more than this model's {known} positions"
        raise Refused(f"eval.max_new_tokens = {config.eval.max_new_tokens}", what)


def plan_baseline(config: Config, facts: Facts, template: str, varied: list[str]) -> PlannedTrial:
    """The untuned base of ``config`` as it generates, prompted in ``template``."""
    identity = baseline_identity(config, facts.model.fingerprint, facts.data.fingerprint, template)
    config = copy.deepcopy(config)
    config.quant.bits, config.eval.quant, config.data.template = config.eval_bits(), "same", template
    return PlannedTrial(
        trial_id=short_hash(identity),
        eval_id=short_hash(eval_identity(config)),
        kind="baseline",
        label=label_baseline(config, facts.compute_bytes, varied),
        config=config,
        facts=facts,
        target_modules=[],
        trainable_params=0,
        forecast=forecast_memory(config, facts.model, 0, facts.data.longest_row, facts.compute_bytes),
        identity=identity,
    )


# --- facts -------------------------------------------------------------------------------------------------------


def find_facts(configs: list[Config], strict: bool) -> list[Facts | Refused]:
    """The facts of each config, or why there can be none: from the cache, else from one ``lora_sweep.model.inspect``.

    The same process judges settings of the trainer that no plan has used before.
    """
    keys: dict[str, str] = {}  # by everything that a key of the facts is made of
    known: dict[str, Facts | None] = {}
    accepted: dict[Path, bool] = {}
    pairs: list[tuple[str, Path]] = []
    missing: dict[tuple[str, Path], Config] = {}
    for config in configs:
        asked = repr((config.model, config.data, config.eval, config.train.max_length, config.launch.devices))
        if asked not in keys:
            keys[asked] = facts_key(config, strict)
            known[keys[asked]] = read_cached_facts(config, strict)
        key, settings = keys[asked], settings_file(config.train)
        if settings not in accepted:
            accepted[settings] = settings.exists()
        if known[key] is None or not accepted[settings]:
            missing.setdefault((key, settings), config)
        pairs.append((key, settings))
    answers = answers_to(missing, strict)
    found = [answers.get(pair) or known[pair[0]] for pair in pairs]
    return [facts for facts in found if facts is not None]  # all of them: what was not known was asked


def answers_to(missing: dict[tuple[str, Path], Config], strict: bool) -> dict[tuple[str, Path], Facts | Refused]:
    """What ``lora_sweep.model.inspect`` says of each; settings that it accepts are remembered."""
    answers: dict[tuple[str, Path], Facts | Refused] = {}
    if not missing:
        return answers
    requests = [{"config": dataclasses.asdict(config), "strict": strict} for config in missing.values()]
    shared: dict[str, Facts] = {}  # one object a model and data set
    for (key, settings), answer in zip(missing, ask_inspect(requests, strict), strict=True):
        if "refused" in answer:
            answers[key, settings] = Refused("", answer["refused"])
            continue
        answers[key, settings] = shared.setdefault(key, Facts.from_json(answer["facts"]))
        write_json(settings, {"accepted": True})
    return answers


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
        if requests[0]["config"]["launch"]["devices"] == "cpu":  # the same for all
            environment["LORA_SWEEP_DEVICE"] = "cpu"
        with log.open("w") as errors:
            command = [sys.executable, "-m", "lora_sweep.model.inspect", str(asked), str(answered)]
            done = subprocess.run(command, stderr=errors, stdin=subprocess.DEVNULL, env=environment, check=False)
        if done.returncode != 0:
            raise RuntimeError(
                f"lora_sweep.model.inspect ended with exit code {done.returncode}:\n{log.read_text()[-4000:]}"
            )
        answers: list[dict[str, Any]] = json.loads(answered.read_text())
        return answers

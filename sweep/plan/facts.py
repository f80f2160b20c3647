"""Gather the facts of each configuration's model and data, from the cache or from a child process with torch."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, TypedDict

from lora_sweep.config.identity import short_hash
from lora_sweep.config.schema import Config, Train
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import Facts, facts_key, library_versions, read_cached_facts
from lora_sweep.runs.cache import cache_folder
from lora_sweep.runs.files import write_json

MAX_LOG_CHARACTERS = 4000  # of the child's log, in the message of an error


class InspectRequest(TypedDict):
    """A question to ``lora_sweep.model.inspect``: a configuration as a tree of dicts."""

    config: dict[str, Any]
    strict: bool


class InspectAnswer(TypedDict, total=False):
    """An answer: either ``facts`` as ``Facts.to_json`` writes them, or the sentence that refuses the point."""

    facts: dict[str, Any]
    refused: str


def gather_facts(configs: list[Config], strict: bool) -> list[Facts | Refused]:
    """The facts of each configuration, or its refusal, in the order of ``configs``.

    The child process also checks with the libraries those trainer settings that no plan has used before.

    Args:
        strict: as for :func:`sweep.plan.make.make_plan`.
    """
    keys: dict[str, str] = {}  # key of the facts in the cache, by the settings that it depends on
    cached: dict[str, Facts | None] = {}
    accepted: dict[Path, bool] = {}
    pairs: list[tuple[str, Path]] = []
    missing: dict[tuple[str, Path], Config] = {}
    for config in configs:
        settings = repr((config.model, config.data, config.eval, config.train.max_length, config.launch.devices))
        if settings not in keys:
            keys[settings] = facts_key(config, strict)
            cached[keys[settings]] = read_cached_facts(config, strict)
        key, marker = keys[settings], accepted_settings_file(config.train)
        if marker not in accepted:
            accepted[marker] = marker.exists()
        if cached[key] is None or not accepted[marker]:
            missing.setdefault((key, marker), config)
        pairs.append((key, marker))
    answers = inspect_missing(missing, strict)
    gathered = [answers.get(pair) or cached[pair[0]] for pair in pairs]
    return [facts for facts in gathered if facts is not None]  # every config has some: from the cache or as an answer


def inspect_missing(missing: dict[tuple[str, Path], Config], strict: bool) -> dict[tuple[str, Path], Facts | Refused]:
    """Ask ``lora_sweep.model.inspect`` about each configuration, and remember the trainer settings that it accepts."""
    answers: dict[tuple[str, Path], Facts | Refused] = {}
    if not missing:
        return answers
    requests: list[InspectRequest] = [{"config": dataclasses.asdict(c), "strict": strict} for c in missing.values()]
    shared: dict[str, Facts] = {}  # one object for each model and data set
    for (key, marker), answer in zip(missing, ask_inspect(requests, strict), strict=True):
        if "refused" in answer:
            answers[key, marker] = Refused("", answer["refused"])
            continue
        answers[key, marker] = shared.setdefault(key, Facts.from_json(answer["facts"]))
        write_json(marker, {"accepted": True})
    return answers


def accepted_settings_file(train: Train) -> Path:
    """A file in the cache that exists if the installed libraries have accepted these trainer settings before."""
    settings: list[Any] = [train.lr_scheduler_type, train.optim, train.train_sampling_strategy]
    if train.sft:  # the libraries check these together with all other settings
        settings.append(dataclasses.asdict(train))
    settings += library_versions()
    return cache_folder() / "settings" / f"{short_hash(settings, 24)}.json"


def ask_inspect(requests: list[InspectRequest], strict: bool) -> list[InspectAnswer]:
    """Run ``lora_sweep.model.inspect`` in a child process, and return one answer for each request.

    Raises:
        RuntimeError: the process failed; the message holds the end of its log.
    """
    with tempfile.TemporaryDirectory() as folder:
        request_path, answer_path, log_path = (Path(folder) / n for n in ("requests.json", "answers.json", "log"))
        request_path.write_text(json.dumps(requests))
        environment = {**os.environ, **({} if strict else {"HF_HUB_OFFLINE": "1"})}  # a plan must not wait for a hub
        if requests[0]["config"]["launch"]["devices"] == "cpu":  # the same for all points of a sweep
            environment["LORA_SWEEP_DEVICE"] = "cpu"
        with log_path.open("w") as log:
            command = [sys.executable, "-m", "lora_sweep.model.inspect", str(request_path), str(answer_path)]
            done = subprocess.run(command, stderr=log, stdin=subprocess.DEVNULL, env=environment, check=False)
        if done.returncode != 0:
            end_of_log = log_path.read_text()[-MAX_LOG_CHARACTERS:]
            raise RuntimeError(f"lora_sweep.model.inspect ended with exit code {done.returncode}:\n{end_of_log}")
        answers: list[InspectAnswer] = json.loads(answer_path.read_text())
        return answers

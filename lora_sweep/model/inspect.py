"""Finds the facts about base models and data sets without loading weights.

Planning runs ``python -m lora_sweep.model.inspect REQUESTS.json ANSWERS.json`` in a separate process, and so never
imports torch itself. Each answer is ``{"facts": ...}`` or ``{"refused": ...}``. Facts are cached; the key is a hash of
everything that they depend on. Standard output is for people, standard error has the messages of libraries.
"""

import gc
import json
import os
import sys
import tempfile
from pathlib import Path

from lora_sweep.config.schema import Config, Train, config_from_json
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import Facts, facts_file, is_cacheable, read_cached_facts
from lora_sweep.model.data_facts import inspect_data, list_prompts, load_splits_or_none
from lora_sweep.model.model_facts import inspect_model
from lora_sweep.runs.files import write_json
from lora_sweep.scoring.scorers import check_references


def inspect_trial(config: Config, strict: bool) -> Facts:
    """Check the data, the scorer, the trainer's settings and the model. Cache and return the facts.

    Args:
        strict: whether everything that training needs must be present. If not, facts that need the hub may stay
            unknown.

    Raises:
        Refused: the data, the scorer, the settings or the model cannot be used. Nothing is cached then.
    """
    check_model_path(config.model.path)
    cached = read_cached_facts(config, strict)
    splits = None if cached else load_splits_or_none(config, strict)  # first, because it needs no torch
    if not cached:
        check_references(config.eval, list_prompts(config, splits))
    check_settings(config.train)
    if cached:
        return cached
    data = inspect_data(config, splits, strict)
    from lora_sweep.model.device import pick_device

    facts = Facts(inspect_model(config), data, pick_device().compute_bytes)
    if is_cacheable(config) and data.longest_row is not None:
        write_json(facts_file(config, strict), facts.to_json())
    return facts


def check_model_path(path: str | None) -> None:
    """Refuse a ``model.path`` that is no folder in transformers' format. Imports no torch, which takes seconds."""
    if path is not None and not (Path(path).expanduser() / "config.json").is_file():
        fault = "holds no config.json" if Path(path).expanduser().is_dir() else "is no folder"
        raise Refused(f"model.path = {path}", f"{fault}; it must be a folder in transformers' format")


def check_settings(train: Train) -> None:
    """Refuse names now that transformers and TRL would refuse or ignore later, when training starts."""
    from transformers import SchedulerType, TrainingArguments
    from transformers.training_args import OptimizerNames

    sampling = TrainingArguments.__dataclass_fields__["train_sampling_strategy"]
    allowed = {
        "lr_scheduler_type": [name.value for name in SchedulerType],
        "optim": [name.value for name in OptimizerNames],
        "train_sampling_strategy": sampling.metadata["choices"],
    }
    for key, names in allowed.items():
        value = getattr(train, key)
        if value not in names:
            raise Refused(f"train.{key} = {value}", "is unknown", names, value)
    if train.sft:  # importing TRL takes seconds
        from lora_sweep.model.device import pick_device
        from lora_sweep.model.sft_settings import make_sft_config

        with tempfile.TemporaryDirectory() as scratch:
            make_sft_config(train, 0, pick_device(), Path(scratch))


def main() -> None:
    """Answer the requests in the file argv[1], ``[{"config": ..., "strict": bool}]``, in the file argv[2]."""
    gc.disable()  # the process imports much and lives for seconds: looking through the modules is wasted time
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    answers: list[dict[str, object]] = []
    for request in json.loads(Path(sys.argv[1]).read_text()):
        try:
            facts = inspect_trial(config_from_json(request["config"]), request["strict"])
            answers.append({"facts": facts.to_json()})
        except Refused as error:
            answers.append({"refused": str(error)})
    Path(sys.argv[2]).write_text(json.dumps(answers))
    gc.freeze()  # at its end, the process would look through them too


if __name__ == "__main__":
    main()

"""The commands that a reader wants next: to make a row again, and to use the chosen one."""

import shlex

from sweep.report.analysis.load import Row, Sweep
from sweep.text import escape_controls

AGAIN = "again"  # the runs folder of a row made again: in the old one it is there already


def reproduce(sweep: Sweep, row: Row) -> str | None:
    """The command that trains a row anew, in a runs folder of its own; None where its overrides were not recorded."""
    place = next(number for number, each in enumerate(sweep.rows) if each is row)
    overrides = sweep.overrides[place]
    if not overrides:
        return None
    kept = [each for each in overrides if not each.startswith(("runs_dir=", "sweep_name="))]
    return escape_controls(
        shlex.join(["python", "-m", "lora_sweep.train", *config_folder(sweep), *kept, f"runs_dir={AGAIN}"])
    )


def config_folder(sweep: Sweep) -> list[str]:
    """``--config-dir FOLDER``, where the sweep's command had it."""
    try:
        words = shlex.split(sweep.command)
    except ValueError:
        return []
    for place, word in enumerate(words[:-1]):
        if word in ("--config-dir", "-cd"):
            return [word, words[place + 1]]
    return [word for word in words if word.startswith("--config-dir=")]


def use(row: Row) -> str:
    """Python that loads a row's adapter on its base, from the folder that holds ``runs``, and saves both as one."""
    folder = f"runs/trials/{row['trial_id']}"
    return f"""from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from lora_sweep.config.schema import config_from_json
from lora_sweep.model.load import find_model_source
from lora_sweep.runs.files import read_json

config = config_from_json(read_json(Path("{folder}/config.json"))["config"])
source, revision = find_model_source(config.model)
base = AutoModelForCausalLM.from_pretrained(source, revision=revision)
model = PeftModel.from_pretrained(base, "{folder}/adapter")
model.merge_and_unload().save_pretrained("merged")
AutoTokenizer.from_pretrained(source, revision=revision).save_pretrained("merged")
"""

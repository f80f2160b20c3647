"""The commands that a reader may want next: to train a row again, and to use the recommended one."""

import itertools
import shlex

from sweep.report.analysis.configurations import TrialSummary
from sweep.report.analysis.load import Sweep
from sweep.report.analysis.rows import ReportRow
from sweep.text import escape_controls

AGAIN_FOLDER = "again"  # another runs folder, because the old one holds the result already


def write_train_command(sweep: Sweep, row: ReportRow) -> str:
    """The command that trains a row again, in another runs folder; "" if the row's overrides were not recorded."""
    if not row.trial.overrides:
        return ""
    kept = [text for text in row.trial.overrides if not text.startswith(("runs_dir=", "sweep_name="))]
    words = ["python", "-m", "lora_sweep.train", *find_config_folder(sweep), *kept, f"runs_dir={AGAIN_FOLDER}"]
    return escape_controls(shlex.join(words))


def find_config_folder(sweep: Sweep) -> list[str]:
    """The words of ``--config-dir FOLDER`` if they are in the sweep's command, else []."""
    try:
        words = shlex.split(sweep.command)
    except ValueError:
        return []
    for option, folder in itertools.pairwise(words):
        if option in ("--config-dir", "-cd"):
            return [option, folder]
    return [word for word in words if word.startswith("--config-dir=")]


def write_merge_script(row: TrialSummary) -> str:
    """Python that loads a row's adapter on its base and saves both as one model.

    It runs in the folder that holds ``runs``.
    """
    folder = f"runs/trials/{row.trial_id}"
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

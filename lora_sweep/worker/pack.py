"""A pack of trials: they use one base model, train together and generate together.

An error in a step of one trial is a failure of that trial. An error in the common work leaves the iterator, and
``worker.loop`` splits the pack. If a pack cannot train a trial or generate its texts exactly as the libraries do, the
trial runs after the pack, with TRL or PEFT.
"""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lora_sweep.config.identity import to_canonical_json
from lora_sweep.generation.losses import RowLoss, compute_member_losses, tokenize_neutral_text
from lora_sweep.generation.packed import GenerationRequest, generate_pack
from lora_sweep.generation.packed_base import infer_with_adapters
from lora_sweep.messages import Failure, Job, Reporter
from lora_sweep.model.device import Device, is_out_of_memory, pick_device, reset_peak_memory
from lora_sweep.model.load import silence_libraries
from lora_sweep.runs import files
from lora_sweep.runs.provenance import utc_now
from lora_sweep.training.packed import train_pack
from lora_sweep.worker.evaluation import (
    Evaluation,
    EvaluationTexts,
    generate_single,
    prepare_evaluation,
    write_evaluation,
)
from lora_sweep.worker.outcomes import attempt_step, describe_failure
from lora_sweep.worker.resident import Resident, make_resident_key
from lora_sweep.worker.tracker_runs import TrackerRuns
from lora_sweep.worker.trial import (
    PackTraining,
    SingleTraining,
    TrialTask,
    plan_training,
    train_single,
    write_baseline,
    write_pack_training,
)

DECODING_SETTINGS = ("max_new_tokens", "do_sample", "temperature", "top_p", "batch_size")
Outcome = tuple[Job, Failure | None]
Value = TypeVar("Value")


class PackRunner:
    """The ``messages.Runner`` that trains models and generates texts.

    A generator that is suspended keeps its local variables in memory, also a base model. So the work on a whole pack is
    a generator by itself: when it ends, its base is freed, and a single trial after it can load another base.
    """

    def __init__(self, runs: Path, sweep: str) -> None:
        silence_libraries()
        self.runs, self.device = runs, pick_device()
        self.tracker_runs = TrackerRuns(runs, sweep)
        self.resident: Resident | None = None

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error)

    def mirror_failure(self, job: Job, failure: Failure) -> None:
        self.tracker_runs.mirror_failure(job, failure)

    def run_step(self, task: TrialTask, step: Callable[[], Value]) -> Value | Failure:
        """Run a step of one trial; an exception becomes its failure."""
        return attempt_step(step, task.reporter, is_out_of_memory)

    # --- training ----------------------------------------------------------------------------------------------------

    def train(self, jobs: Sequence[Job], reporters: Sequence[Reporter]) -> Iterator[Outcome]:
        """Write the results of baselines, train the trials that can train in a pack, then the others with TRL."""
        tasks = yield from self.open_tasks(jobs, reporters)
        for task in tasks:
            if task.job.kind == "baseline":
                yield task.job, self.run_step(task, partial(write_baseline, task))
        trials = [task for task in tasks if task.job.kind == "trial"]
        single_trainings = yield from self.train_together(trials)
        for training in single_trainings:
            yield training.task.job, self.run_step(training.task, partial(train_single, training))

    def train_together(self, tasks: Sequence[TrialTask]) -> Generator[Outcome, None, list[SingleTraining]]:
        """Train the trials that can train in a pack. Returns the others."""
        if not tasks:
            return []
        base = self.run_step(tasks[0], partial(self.provide_base, tasks[0], tasks[0].job.config.quant.bits))
        if isinstance(base, Failure):
            yield from [(task.job, base) for task in tasks]
            return []
        pack: list[PackTraining] = []
        single_trainings: list[SingleTraining] = []
        for task in tasks:
            training = self.run_step(task, partial(plan_training, task, base))
            if isinstance(training, Failure):
                yield task.job, training
            elif isinstance(training, SingleTraining):
                single_trainings.append(training)
            else:
                pack.append(training)
        if pack:
            with self.drop_base_on_error(), tempfile.TemporaryDirectory() as scratch:
                trained = train_pack(base, [training.member for training in pack], self.device, Path(scratch))
            for training, ending in zip(pack, trained, strict=True):
                job = training.task.job
                if isinstance(ending, Exception):
                    yield job, describe_failure(ending, is_out_of_memory)
                else:
                    step = partial(write_pack_training, training, ending, len(pack))
                    yield job, self.run_step(training.task, step)
        return single_trainings

    # --- evaluation --------------------------------------------------------------------------------------------------

    def evaluate(self, jobs: Sequence[Job], reporters: Sequence[Reporter]) -> Iterator[Outcome]:
        """Generate, score and write results: for the trials that can generate in a pack, then for the others."""
        tasks = yield from self.open_tasks(jobs, reporters)
        single_evaluations = yield from self.evaluate_together(tasks)
        for evaluation in single_evaluations:
            reset_peak_memory(self.device)
            yield evaluation.task.job, self.run_step(evaluation.task, partial(evaluate_single, evaluation))

    def evaluate_together(self, tasks: Sequence[TrialTask]) -> Generator[Outcome, None, list[Evaluation]]:
        """Evaluate the trials that can generate in a pack. Returns the others."""
        if not tasks:
            return []
        base = self.run_step(tasks[0], partial(self.provide_base, tasks[0], tasks[0].job.config.eval_bits()))
        if isinstance(base, Failure):
            yield from [(task.job, base) for task in tasks]
            return []
        groups: dict[str, list[Evaluation]] = {}  # evaluations with equal decoding settings generate together
        single_evaluations: list[Evaluation] = []
        for task in tasks:
            evaluation = self.run_step(task, partial(prepare_evaluation, task, base))
            if isinstance(evaluation, Failure):
                yield task.job, evaluation
            elif evaluation.peft_reason:
                single_evaluations.append(evaluation)
            else:
                decoding = {key: getattr(task.job.eval_settings, key) for key in DECODING_SETTINGS}
                groups.setdefault(to_canonical_json(decoding), []).append(evaluation)
        for group in groups.values():
            with self.drop_base_on_error():
                generated = generate_together(base, group, self.device)
            for evaluation, texts in zip(group, generated, strict=True):
                step = partial(write_evaluation, evaluation, texts)
                yield evaluation.task.job, self.run_step(evaluation.task, step)
        return single_evaluations

    # --- what stays loaded -------------------------------------------------------------------------------------------

    def open_tasks(
        self, jobs: Sequence[Job], reporters: Sequence[Reporter]
    ) -> Generator[Outcome, None, list[TrialTask]]:
        """Load the tokenizer and the rows of each job, unless they are loaded. Yields the jobs for which this fails."""
        tasks = []
        for job, reporter in zip(jobs, reporters, strict=True):
            resident = attempt_step(partial(self.provide_resident, job), reporter, is_out_of_memory)
            if isinstance(resident, Failure):
                yield job, resident
            else:
                folder = files.trial_folder(self.runs, job.trial_id)
                tasks.append(TrialTask(job, reporter, folder, resident, self.tracker_runs))
        return tasks

    def provide_resident(self, job: Job) -> Resident:
        """The resident that this job uses. It is kept from the last job if model and data are the same.

        Raises:
            RuntimeError: the rows of the data have changed since planning.
        """
        if self.resident is None or self.resident.key != make_resident_key(job.config):
            self.resident = None  # this frees the old base before the next one is loaded
            self.resident = Resident(job.config, self.device)
        if self.resident.rows_fingerprint != job.facts["data"]["rows_fingerprint"]:
            self.resident = None
            raise RuntimeError(f"the rows of data {job.config.data.name} changed after planning: run the command again")
        return self.resident

    def provide_base(self, task: TrialTask, bits: int | None) -> Any:
        """The base model of a stage, at ``bits`` as configured. Starts the stage's peak of memory from zero.

        Raises:
            Preempted: a signal asked for a stop.
        """
        reset_peak_memory(self.device)
        base = task.resident.provide_base(dataclasses.replace(task.job.config.quant, bits=bits), task.reporter)
        task.raise_on_stop()
        return base

    @contextlib.contextmanager
    def drop_base_on_error(self) -> Iterator[None]:
        """Drop the base if the work in this block fails: the failure can leave adapters and hooks on it."""
        try:
            yield
        except BaseException:
            if self.resident is not None:
                self.resident.drop_base()
            raise


def evaluate_single(evaluation: Evaluation) -> None:
    """Generate with PEFT for one trial, and write its evaluation."""
    evaluation = dataclasses.replace(evaluation, started=utc_now())
    write_evaluation(evaluation, generate_single(evaluation))


def generate_together(base: Any, evaluations: Sequence[Evaluation], device: Device) -> list[EvaluationTexts]:
    """Generate the texts of evaluations that have equal decoding settings, and compute their losses.

    Raises:
        Preempted: a signal asked for a stop.
    """
    task = evaluations[0].task
    settings, tokenizer, stop = task.job.eval_settings, task.resident.tokenizer, task.reporter.is_stop_requested
    neutral_example = tokenize_neutral_text(base, tokenizer)
    losses: list[tuple[list[RowLoss], float | None]] = []
    with infer_with_adapters(base, [evaluation.adapter for evaluation in evaluations], device) as adapter_map:
        for member, evaluation in enumerate(evaluations):
            rows = evaluation.reference_rows
            row_sums = compute_member_losses(base, adapter_map, member, rows, settings.batch_size, device, stop)
            neutral_sums = compute_member_losses(base, adapter_map, member, [neutral_example], 1, device, stop)
            ((neutral_sum, tokens),) = neutral_sums
            losses.append((row_sums, neutral_sum / tokens if math.isfinite(neutral_sum) else None))
    requests = [
        GenerationRequest(
            evaluation.adapter,
            [prompt.token_ids for prompt in evaluation.prompts],
            evaluation.end_marker,
            evaluation.task.job.config.seed,
        )
        for evaluation in evaluations
    ]

    def report_text(member: int, done: int) -> None:
        evaluations[member].task.reporter.report_step(done, len(evaluations[member].prompts))

    texts, seconds = generate_pack(base, tokenizer, requests, settings, device, report_text, stop)
    return [
        EvaluationTexts(member_texts, row_sums, neutral, member_seconds)
        for member_texts, member_seconds, (row_sums, neutral) in zip(texts, seconds, losses, strict=True)
    ]

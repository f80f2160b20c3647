"""The straight line of a worker: base once, then adapters, texts, scores, results; a pack's common work once.

What fails in the common work takes the pack apart; what fails in a trial's own part is that trial's outcome.
"""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora_sweep.config.identity import canonical
from lora_sweep.errors import Apart, Preempted
from lora_sweep.generation.packed import GenerationRequest, compute_member_losses, generate_pack, infer_with_adapters
from lora_sweep.generation.single import tokenize_neutral_text
from lora_sweep.messages import Job, Voice
from lora_sweep.model.device import is_out_of_memory, pick_device, reset_peak_memory
from lora_sweep.model.load import quiet_libraries
from lora_sweep.multi_lora.linear import Adapter
from lora_sweep.runs import files
from lora_sweep.training.packed import train_pack
from lora_sweep.worker.resident import Shared, shared_key
from lora_sweep.worker.trial import Texts, Trial, open_run

DECODING = ("max_new_tokens", "do_sample", "temperature", "top_p", "batch_size")


class StraightLine:
    """A ``jobs.Line``: trains, generates, scores, and mirrors to a tracker."""

    def __init__(self, runs: Path, sweep: str) -> None:
        quiet_libraries()
        self.runs, self.sweep, self.device = runs, sweep, pick_device()
        self.key: str | None = None
        self.held: Shared | None = None
        self.jobs: list[tuple[Job, Voice]] = []
        self.trials: dict[str, Trial] = {}

    def together(self, jobs: list[Job], voices: list[Voice]) -> None:
        self.jobs = list(zip(jobs, voices, strict=True))
        self.trials = {}

    def train(self, job: Job, voice: Voice) -> None:
        trial = self.trial(job, voice)
        if job.kind == "trial" and trial.trained is None and not trial.why_trl:
            self.train_members(trial)
        trial.train()

    def evaluate(self, job: Job, voice: Voice) -> None:
        trial = self.trial(job, voice)
        if trial.written is None:
            self.write_members(trial)
        trial.evaluate()

    def failed(self, job: Job, status: str, reason: str) -> None:
        trial = self.trials.pop(job.trial_id, None)
        run = trial.run if trial else None
        if status != "preempted":
            (run or open_run(job, self.runs, self.sweep)).fail(status, reason)
        elif run is not None:
            run.fail(status, reason)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error)

    def trial(self, job: Job, voice: Voice) -> Trial:
        """A job's trial, made at its first stage."""
        if job.trial_id not in self.trials or self.trials[job.trial_id].job is not job:
            self.trials[job.trial_id] = Trial(job, self.runs, self.sweep, self.shared(job), voice)
        return self.trials[job.trial_id]

    def shared(self, job: Job) -> Shared:
        """What this job shares with the last one, or what it begins with."""
        key = shared_key(job.config)
        if self.key != key or self.held is None:
            self.key, self.held, self.trials = None, None, {}  # freed before the next one is loaded
            self.held = Shared(job.config, self.device)
            self.key = key
        if self.held.rows_fingerprint != job.facts["data"]["rows_fingerprint"]:
            self.key = None
            raise RuntimeError(f"the rows of data {job.config.data.name} changed after planning: run the command again")
        return self.held

    def members(self, first: Trial, wanted: Callable[[Trial], bool]) -> list[Trial]:
        """The trials of the pack that take part in a stage's common work; ``first`` is one of them."""
        found = []
        for job, voice in self.jobs:
            try:
                trial = self.trial(job, voice)
            except Exception:  # noqa: BLE001 - it is raised again, and becomes an outcome, in the job's own stage
                continue
            if trial is first or wanted(trial):
                found.append(trial)
        return found or [first]

    # --- training ----------------------------------------------------------------------------------------------------

    def train_members(self, first: Trial) -> None:
        """Train what waits of the pack; how each training ended is left in its trial."""
        reset_peak_memory(self.device)
        waiting = self.members(
            first, lambda t: t.job.kind == "trial" and t.trained is None and not t.why_trl and not t.is_trained
        )
        base = first.shared.base_at(first.job.config.quant, first.voice)
        first.obey()
        for trial in waiting:
            try:
                trial.begin(base)
            except Exception as error:  # noqa: BLE001 - its own stage raises it
                trial.trained = error
        packed = [(trial, trial.member) for trial in waiting if trial.member is not None]
        if not packed:
            return
        with self.common(first.shared), tempfile.TemporaryDirectory() as scratch:
            ended = train_pack(base, [member for _, member in packed], self.device, Path(scratch))
        for (trial, _), outcome in zip(packed, ended, strict=True):
            trial.trained, trial.pack = outcome, len(packed)

    # --- texts -------------------------------------------------------------------------------------------------------

    def write_members(self, first: Trial) -> None:
        """Write the texts that wait, of the pack's trials that are trained; what came of it is left in each."""
        reset_peak_memory(self.device)
        waiting = self.members(first, lambda trial: trial.written is None and trial.is_trained)
        config = first.job.config
        base = first.shared.base_at(dataclasses.replace(config.quant, bits=config.eval_bits()), first.voice)
        first.obey()
        alike: dict[str, list[tuple[Trial, Adapter | None]]] = {}
        for trial in waiting:
            try:
                adapter = trial.read_adapter(base)
            except Exception as error:  # noqa: BLE001 - its own stage raises it
                trial.written = error
                continue
            if not trial.why_trl:
                how = {key: getattr(trial.job.decoding, key) for key in DECODING}
                alike.setdefault(canonical(how), []).append((trial, adapter))
        with self.common(first.shared):
            for group in alike.values():
                self.write_group(base, [trial for trial, _ in group], [adapter for _, adapter in group])

    def write_group(self, base: Any, trials: list[Trial], adapters: list[Adapter | None]) -> None:
        """Write for trials that decode alike."""
        device, stop = self.device, trials[0].voice.stop
        settings, tokenizer = trials[0].job.decoding, trials[0].shared.tokenizer
        neutral = tokenize_neutral_text(base, tokenizer)
        losses = []
        with infer_with_adapters(base, adapters, device) as blocks:
            for number, trial in enumerate(trials):
                rows = trial.reference_rows
                known = compute_member_losses(base, blocks, number, rows, settings.batch_size, device, stop)
                losses.append((known, compute_member_losses(base, blocks, number, [neutral], 1, device, stop)[0]))
        authors = [
            GenerationRequest(adapter, trial.prompts, trial.marker, trial.job.config.seed)
            for trial, adapter in zip(trials, adapters, strict=True)
        ]

        def on_text(author: int, done: int) -> None:
            trials[author].voice.step(done, len(authors[author].prompts))

        texts, seconds = generate_pack(base, tokenizer, authors, settings, device, on_text, stop)
        for number, trial in enumerate(trials):
            known, (total, count) = losses[number]
            forgotten = total / count if math.isfinite(total) else None
            trial.written = Texts(texts[number], known, forgotten, seconds[number])

    @contextlib.contextmanager
    def common(self, shared: Shared) -> Iterator[None]:
        """Around what a pack does together: whatever breaks off there takes it apart, and costs the base."""
        try:
            yield
        except BaseException as error:
            shared.drop()
            full = isinstance(error, OSError) and error.errno in files.DISK_ERRORS
            if full or isinstance(error, Preempted) or not isinstance(error, Exception):
                raise
            raise Apart(f"{type(error).__name__}: {error}") from error

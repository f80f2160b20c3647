"""One trial in a worker: base once, then adapter, texts, scores, result. The straight line.

What trials of one worker share (device, rows, their token ids, the base) is loaded once and kept here. Faults are
raised: ``worker`` makes outcomes of them.
"""

import dataclasses
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from peft import PeftModel

from lora_sweep import results, score, tracking
from lora_sweep.adapters import attach_adapter
from lora_sweep.config import Config, Data, Eval, Quant, Train
from lora_sweep.data import Row, Split, load_split
from lora_sweep.device import Device, is_out_of_memory, peak_memory, pick_device, reset_peak_memory
from lora_sweep.errors import Preempted
from lora_sweep.finetune import Trained, finetune
from lora_sweep.generate import Written, generate, neutral_loss, reference_losses
from lora_sweep.identity import canonical, eval_identity, short_hash
from lora_sweep.jobs import Job, Voice
from lora_sweep.model import base_signature, load_base, load_tokenizer, quiet_transformers, stored_bits
from lora_sweep.prompts import Example, end_marker, examples, prompt_ids, prompt_text
from lora_sweep.provenance import now, provenance
from lora_sweep.scorers import Scorer, scorer_of

BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


class Shared:
    """What trials of one model and one split share: tokenizer, rows, token ids, and the one base that is loaded."""

    def __init__(self, config: Config, device: Device) -> None:
        self.model, self.device = config.model, device
        self.tokenizer = load_tokenizer(config.model)
        self.split: Split = load_split(config.data)
        self.rows_fingerprint = self.split.fingerprint()
        self.tokenized: dict[str, list[Example]] = {}
        self.quant: Quant | None = None
        self.base: Any = None
        self.signature: Any = None

    def examples(self, split: str, data: Data, max_length: int) -> list[Example]:
        """The rows of a split as token ids, made once for each form of the prompt."""
        key = canonical([split, data.template, data.end_marker, max_length])
        if key not in self.tokenized:
            self.tokenized[key] = examples(getattr(self.split, split), data, self.tokenizer, max_length)
        return self.tokenized[key]

    def base_at(self, quant: Quant, voice: Voice) -> Any:
        """The base with ``quant``'s weights, without an adapter; loaded where it is not the one at hand, untouched."""
        if self.quant != quant or base_signature(self.base) != self.signature:
            self.drop()
            reset_peak_memory(self.device)  # and with it the old one's memory, before the next one is loaded
            voice.phase("loading")
            started = time.perf_counter()
            self.base = load_base(self.model, quant, self.device)
            self.quant, self.signature = quant, base_signature(self.base)
            bits = stored_bits(quant.bits, self.device)
            voice.say(f"loaded {self.model.name} at {bits} bits in {time.perf_counter() - started:.1f} s")
        return self.base

    def release(self, model: PeftModel) -> None:
        """Take the adapter off. A base that is not as before is loaded anew by the next ``base_at``."""
        self.base = model.unload()

    def drop(self) -> None:
        """Forget the base: a training that broke off can leave hooks on it, which no signature shows."""
        self.base, self.quant = None, None


def shared_key(config: Config) -> str:
    """Equal for configs that can use one :class:`Shared`: the form of a prompt is a trial's own."""
    data = dataclasses.replace(config.data, template="alpaca", end_marker=None)
    return canonical([dataclasses.asdict(config.model), dataclasses.asdict(data)])


class StraightLine:
    """A ``jobs.Line``: trains with TRL, generates, scores, and mirrors to a tracker."""

    def __init__(self, runs: Path, sweep: str) -> None:
        quiet_transformers()
        self.runs, self.sweep, self.device = runs, sweep, pick_device()
        self.key: str | None = None
        self.held: Shared | None = None
        self.trial: Trial | None = None

    def together(self, jobs: list[Job], voices: list[Voice]) -> None:
        pass

    def train(self, job: Job, voice: Voice) -> None:
        reset_peak_memory(self.device)
        self.trial = Trial(job, self.runs, self.sweep, self.shared(job), voice)
        self.trial.train()

    def evaluate(self, job: Job, voice: Voice) -> None:
        reset_peak_memory(self.device)
        if self.trial is None or self.trial.job is not job:
            self.trial = Trial(job, self.runs, self.sweep, self.shared(job), voice)
        self.trial.evaluate()

    def failed(self, job: Job, status: str, reason: str) -> None:
        run = self.trial.run if self.trial is not None and self.trial.job is job else None
        self.trial = None
        if status != "preempted":
            (run or open_run(job, self.runs, self.sweep)).fail(status, reason)
        elif run is not None:
            run.fail(status, reason)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error)

    def shared(self, job: Job) -> Shared:
        """What this job shares with the last one, or what it begins with."""
        key = shared_key(job.config)
        if self.key != key or self.held is None:
            self.key, self.held, self.trial = None, None, None  # freed before the next one is loaded
            self.held = Shared(job.config, self.device)
            self.key = key
        if self.held.rows_fingerprint != job.facts["data"]["rows_fingerprint"]:
            self.key = None
            raise RuntimeError(f"the rows of data {job.config.data.name} changed after planning: run the command again")
        return self.held


def open_run(job: Job, runs: Path, sweep: str) -> tracking.Run:
    """The trial's run of the tracker."""
    planned = (results.read_json(results.sweep_file(runs, sweep)) or {}).get("trials", [])
    return tracking.open_run(
        job.config.tracking,
        runs,
        group=sweep,
        name=tracking.run_name(job.label, [str(entry["label"]) for entry in planned]),
        run_id=f"{job.trial_id}-{job.eval_id}",
        job_type=job.kind,
        config={**dataclasses.asdict(job.config), "target_modules": job.target_modules, "trial_id": job.trial_id},
        tags=[job.config.model.name, job.config.data.name],
    )


@dataclasses.dataclass
class Trial:
    """One job: train, then evaluate."""

    job: Job
    runs: Path
    sweep: str
    shared: Shared
    voice: Voice
    run: tracking.Run | None = None  # open from the first step to the scores, where both are of one process

    @property
    def folder(self) -> results.TrialFolder:
        return results.trial_folder(self.runs, self.job.trial_id)

    @property
    def device(self) -> Device:
        return self.shared.device

    def train(self) -> None:
        """Base and rows to adapter, and the training's result."""
        job, started = self.job, now()
        kept = {"trial_id": job.trial_id, "kind": job.kind, "config": dataclasses.asdict(job.config)}
        results.write_json(self.folder.config, kept)
        outcome: dict[str, Any] = {"trainable_params": 0, "template": job.config.data.template}
        bits = job.config.eval_bits()
        if job.kind == "trial":
            outcome, bits = self.train_adapter(), job.config.quant.bits
        files = ["config.json", "losses.jsonl", "adapter"] if job.kind == "trial" else ["config.json"]
        result = {
            "trial_id": job.trial_id,
            "kind": job.kind,
            "status": "complete",
            "reason": None,
            "bits": stored_bits(bits, self.device),
            **job.facts,
            **outcome,
            "setbacks": job.setbacks,
            "halved": job.halvings.get("train", 0),
            "provenance": provenance(self.device, started),
            "files": results.file_hashes(self.folder.path, files),
        }
        results.write_result(self.folder.result, result)
        shutil.rmtree(self.folder.checkpoints, ignore_errors=True)

    def train_adapter(self) -> dict[str, Any]:
        config = self.job.config
        rows = self.shared.examples("train", config.data, config.train.max_length)
        base = self.shared.base_at(config.quant, self.voice)
        self.obey()
        model = attach_adapter(base, config.lora, self.job.target_modules, config.seed)
        train = with_halved_batch(config.train, self.job.halvings.get("train", 0))
        self.voice.phase("training")
        try:
            trainable, _ = model.get_nb_trainable_parameters()
            planned = self.job.facts["trainable_params"]
            if trainable != planned:
                raise RuntimeError(f"PEFT would train {trainable} parameters, {planned} were planned")
            with tempfile.TemporaryDirectory() as scratch:
                trained = finetune(
                    model,
                    rows,
                    self.shared.tokenizer,
                    train,
                    config.seed,
                    self.device,
                    Path(scratch),
                    self.progress,
                    checkpoints=self.folder.checkpoints,
                    stop=self.voice.stop,
                )
            peaks = peak_memory(self.device)
            results.write_jsonl(self.folder.losses, trained.losses)
            # By default PEFT would add the embedding and the head, untouched, when the head is a target.
            model.save_pretrained(str(self.folder.adapter), save_embedding_layers=False)
        except BaseException:
            self.shared.drop()
            raise
        self.shared.release(model)
        self.voice.say(f"{self.job.label}: trained {trained.steps} steps in {trained.train_seconds:.0f} s")
        batch = {key: getattr(train, key) for key in BATCH}
        return {**training_numbers(trained), **batch, **peaks, "adapter_bytes": folder_bytes(self.folder.adapter)}

    def obey(self) -> None:
        """Stop where nothing is under way, if a signal asked for it."""
        if self.voice.stop():
            raise Preempted("before it began; nothing is lost")

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        """After each step. A training that goes on from a checkpoint is mirrored whole, at its end, from its file."""
        if step == 1 and "evaluate" in self.job.stages:
            self.run = open_run(self.job, self.runs, self.sweep)
        if self.run is not None:
            self.run.log_step(step, values)
        self.voice.step(step, steps, loss=values["loss"], tokens_per_second=values.get("tokens_per_second"))
        if step in (1, steps) or step * 4 // steps != (step - 1) * 4 // steps:
            self.voice.say(f"{self.job.label}: step {step}/{steps}, loss {values['loss']:.3f}")

    def evaluate(self) -> None:
        """Base, adapter and held-out prompts to texts, losses, scores, and the evaluation's result."""
        job, started = self.job, now()
        config = job.config
        folder = self.folder.evaluation(job.eval_id)
        base = self.shared.base_at(dataclasses.replace(config.quant, bits=config.eval_bits()), self.voice)
        self.obey()
        scorer = self.scorer()
        self.voice.phase("writing")
        model = PeftModel.from_pretrained(base, str(self.folder.adapter)) if job.kind == "trial" else base
        model.eval()
        try:
            generations, numbers = self.write_texts(model)
        finally:
            if job.kind == "trial":
                self.shared.release(model)
        scores = score.score(generations, scorer)
        results.write_jsonl(folder.generations, generations)
        results.write_json(folder.scores, scores)
        result = {
            "eval_id": job.eval_id,
            "status": "complete",
            "reason": None,
            "bits": stored_bits(config.eval_bits(), self.device),
            "eval": dataclasses.asdict(config.eval),
            "adapter": results.adapter_of(results.read_json(self.folder.result) or {}),
            **numbers,
            **peak_memory(self.device),
            "metrics": scores["means"],
            "halved": job.halvings.get("evaluate", 0),
            "provenance": provenance(self.device, started),
            "files": results.file_hashes(folder.path, ["generations.jsonl", "scores.json"]),
        }
        results.write_result(folder.result, result)
        quality, finished = scores["means"]["quality"], scores["means"]["finished"]
        known = "unknown" if quality is None else f"{quality:.1f}"
        loss = f"{config.eval.split} loss {numbers['validation_loss']:.3f}"
        self.voice.say(f"{job.label}: quality {known}, {loss}, {finished:.0%} end")
        self.track(generations, scores, result)

    @property
    def held_out(self) -> list[Row]:
        """The rows of the prompts that have a reference."""
        settings = self.job.config.eval
        rows: list[Row] = getattr(self.shared.split, settings.split)
        return rows[: settings.prompts]

    def scorer(self) -> Scorer | None:
        """What says what quality is, loaded before a text is written."""
        settings = self.job.config.eval
        scorer = scorer_of(settings, [row.description for row in self.held_out])
        if scorer is not None and short_hash(eval_identity(self.job.config)) != self.job.eval_id:
            raise RuntimeError(f"the scorer {settings.scorer} changed after planning: run the command again")
        return scorer

    def write_texts(self, model: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows of generations.jsonl, and the numbers of the evaluation's result that they do not hold."""
        config, tokenizer, held_out = self.job.config, self.shared.tokenizer, self.held_out
        settings = with_smaller_batch(config.eval, self.job.halvings.get("evaluate", 0))
        rows = self.shared.examples(config.eval.split, config.data, config.train.max_length)
        rows = rows[: max(config.eval.validation_rows, len(held_out))]
        stop = self.voice.stop
        losses = reference_losses(model, rows, tokenizer.pad_token_id, settings.batch_size, self.device, stop=stop)
        neutral = neutral_loss(model, tokenizer, self.device, stop)
        asked: list[tuple[str, str, str | None, str | None]]
        split = config.eval.split
        asked = [(f"{split}-{i}", row.product, row.category, row.description) for i, row in enumerate(held_out)]
        asked += [(f"fixed-{i}", p.product, p.category, None) for i, p in enumerate(config.eval.fixed_prompts)]
        template = config.data.template
        ids = [prompt_ids(template, product, category, tokenizer) for _, product, category, _ in asked]
        started = time.perf_counter()
        marker = end_marker(config.data, template)
        written = generate(
            model, tokenizer, ids, settings, marker, self.device, config.seed, stop=stop, on_batch=self.voice.step
        )
        seconds = time.perf_counter() - started
        generations = [
            {
                "prompt_id": prompt_id,
                "product": product,
                "category": category,
                "prompt": prompt_text(template, product, category, tokenizer),
                **dataclasses.asdict(text),
                "reference": reference,
                "response_nll": None if reference is None else losses[i][0] / losses[i][1],
            }
            for i, ((prompt_id, product, category, reference), text) in enumerate(zip(asked, written, strict=True))
        ]
        counted = losses[: config.eval.validation_rows]
        return generations, {
            "validation_loss": sum(total for total, _ in counted) / sum(count for _, count in counted),
            "validation_rows": len(counted),
            "neutral_loss": neutral,
            **generation_numbers(written, seconds),
        }

    def track(self, generations: list[dict[str, Any]], scores: dict[str, Any], result: dict[str, Any]) -> None:
        run = self.run
        if run is None:  # trained in another process, or with other trials in between: the curve comes from its file
            run = open_run(self.job, self.runs, self.sweep)
            for values in results.read_jsonl(self.folder.losses):
                run.log_step(int(values["step"]), {key: value for key, value in values.items() if key != "step"})
        training = results.read_json(self.folder.result) or {}
        numbers = tracking.numbers_of(self.job.kind, training, result, scores["prompts"])
        by_prompt = {prompt["prompt_id"]: prompt for prompt in scores["prompts"]}
        rows = [{**by_prompt[generation["prompt_id"]], **generation} for generation in generations]
        run.finish({**numbers, **scores["means"], "status": "complete", "kind": self.job.kind}, rows)
        self.run = None


def training_numbers(trained: Trained) -> dict[str, Any]:
    """The training's part of result.json; ``train_loss`` is the mean of the last tenth of the steps."""
    tail = trained.losses[-max(1, len(trained.losses) // 10) :]
    return {
        "steps": trained.steps,
        "resumed_from": trained.resumed_from,
        "train_loss": sum(values["loss"] for values in tail) / len(tail),
        "train_seconds": trained.train_seconds,
        "tokens_seen": trained.tokens,
        "tokens_per_second": trained.tokens / trained.train_seconds,
        "gpu_utilization_percent": trained.gpu_utilization_percent,
    }


def with_halved_batch(train: Train, halvings: int) -> Train:
    """The same effective batch from smaller parts: an odd part is not halved."""
    for _ in range(halvings):
        if train.per_device_train_batch_size % 2:
            break
        size, parts = train.per_device_train_batch_size // 2, train.gradient_accumulation_steps * 2
        train = dataclasses.replace(train, per_device_train_batch_size=size, gradient_accumulation_steps=parts)
    return train


def with_smaller_batch(settings: Eval, halvings: int) -> Eval:
    """Fewer texts at once."""
    return dataclasses.replace(settings, batch_size=max(1, settings.batch_size >> halvings))


def generation_numbers(written: list[Written], seconds: float) -> dict[str, Any]:
    """The generation's part of an evaluation's result."""
    tokens = sum(text.new_tokens for text in written)
    return {
        "generate_seconds": seconds,
        "new_tokens": tokens,
        "generate_tokens_per_second": tokens / seconds,
    }


def folder_bytes(folder: Path) -> int:
    """The size of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

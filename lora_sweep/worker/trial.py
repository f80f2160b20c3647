"""One trial: what is made of its training and of its texts: adapter, curve, scores, results, the tracker's run.

Its stages raise whatever goes wrong with it: ``worker`` makes outcomes of that.
"""

import dataclasses
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from peft import PeftModel

from lora_sweep.config.identity import eval_identity, short_hash
from lora_sweep.data.prompts import Example, choose_end_marker, tokenize_prompt, write_prompt
from lora_sweep.data.rows import Row
from lora_sweep.errors import Preempted
from lora_sweep.generation.single import GeneratedText, compute_neutral_loss, compute_reference_losses, generate_texts
from lora_sweep.messages import Job, Voice
from lora_sweep.model.device import Device, read_peak_memory
from lora_sweep.model.load import stored_bits
from lora_sweep.multi_lora.layout import explain_short_window
from lora_sweep.multi_lora.linear import Adapter
from lora_sweep.multi_lora.peft_format import attach_adapter, create_adapter, load_adapter, save_adapter
from lora_sweep.runs import files, results
from lora_sweep.runs.provenance import now, provenance
from lora_sweep.runs.records import EvaluationResult
from lora_sweep.scoring import score
from lora_sweep.scoring.scorers import Scorer, make_scorer
from lora_sweep.tracking import run as tracking
from lora_sweep.tracking.run import Run, numbers_of, run_name
from lora_sweep.training.packed import PackMember, find_trl_reason
from lora_sweep.training.single import Trained, train_with_trl
from lora_sweep.worker.resident import Shared

BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


def open_run(job: Job, runs: Path, sweep: str) -> Run:
    """The trial's run of the tracker."""
    return tracking.open_run(
        job.config.tracking,
        runs,
        group=sweep,
        name=run_name(job.label, files.read_labels(runs, sweep)),
        run_id=f"{job.trial_id}-{job.eval_id}",
        job_type=job.kind,
        config={**dataclasses.asdict(job.config), "target_modules": job.target_modules, "trial_id": job.trial_id},
        tags=[job.config.model.name, job.config.data.name],
    )


@dataclasses.dataclass(frozen=True)
class Texts:
    """What was written for a trial's prompts, and the losses of given texts; ``seconds`` are of the writing."""

    written: list[GeneratedText]
    losses: list[tuple[float, int]]
    neutral: float | None
    seconds: float


@dataclasses.dataclass
class Trial:
    """One job: train, then evaluate. What a pack does for all its members at once, ``line`` leaves here.

    Attributes:
        member: of a pack that trains together, from :meth:`begin` on.
        why_trl: why it takes TRL's way instead.
        trained, written: what came of the common work; an exception is raised by the stage that it belongs to.
        pack: how many trials trained together.
        began: when the common work of the stage at hand did.
        run: of the tracker: open from the first step to the scores, where both are of one process.
    """

    job: Job
    runs: Path
    sweep: str
    shared: Shared
    voice: Voice
    member: PackMember | None = None
    peft_config: Any = None
    why_trl: str | None = None
    trained: Trained | Exception | None = None
    written: Texts | Exception | None = None
    pack: int = 1
    began: str | None = None
    run: Run | None = None

    @property
    def folder(self) -> files.TrialFolder:
        return files.trial_folder(self.runs, self.job.trial_id)

    @property
    def device(self) -> Device:
        return self.shared.device

    @property
    def is_trained(self) -> bool:
        return results.is_trained(self.folder)

    @property
    def rows(self) -> list[Example]:
        config = self.job.config
        return self.shared.examples("train", config.data, config.train.max_length)

    def begin(self, base: Any) -> None:
        """Draw the adapter and become a member of a pack, unless the training must take TRL's way."""
        config, self.began = self.job.config, now()
        self.why_trl = find_trl_reason(config.train, config.lora, base, self.rows) or self.shared.no_packs(self.rows)
        if self.why_trl:
            self.voice.say(f"{self.job.label}: trains as TRL does: {self.why_trl}")
            return
        adapter, self.peft_config = create_adapter(base, config.lora, self.job.target_modules, config.seed)
        self.check_size(len(adapter.numbers))
        self.member = PackMember(
            adapter, self.rows, self.job.settings, config.seed, self.progress, self.folder.checkpoints, self.voice.stop
        )
        self.voice.phase("training")

    def check_size(self, trainable: int) -> None:
        planned = self.job.facts["trainable_params"]
        if trainable != planned:
            raise RuntimeError(f"PEFT would train {trainable} parameters, {planned} were planned")

    def train(self) -> None:
        """The training's files and its result, from what the pack or TRL's way made."""
        job, started, self.began = self.job, self.began or now(), None
        kept = {"trial_id": job.trial_id, "kind": job.kind, "config": dataclasses.asdict(job.config)}
        files.write_json(self.folder.config, kept)
        outcome: dict[str, Any] = {"trainable_params": 0, "template": job.config.data.template}
        bits = job.config.eval_bits()
        if job.kind == "trial":
            outcome, bits = self.train_adapter(), job.config.quant.bits
        written = ["config.json", "losses.jsonl", "adapter"] if job.kind == "trial" else ["config.json"]
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
            "provenance": provenance(self.device.name, str(self.device.compute_dtype), started),
            "files": files.file_hashes(self.folder.path, written),
        }
        results.write_result(self.folder.result, result)
        shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
        self.member = None  # its adapter is in its file

    def train_adapter(self) -> dict[str, Any]:
        if self.trained is None:
            self.train_as_trl()
        assert self.trained is not None
        if isinstance(self.trained, Exception):
            raise self.trained
        if self.member is not None:
            save_adapter(self.member.adapter, self.peft_config, self.folder.adapter)
        files.write_jsonl(self.folder.losses, self.trained.losses)
        self.voice.say(
            f"{self.job.label}: trained {self.trained.steps} steps in {self.trained.train_seconds:.0f} s"
            + (f" in a pack of {self.pack}" if self.pack > 1 else "")
        )
        return {
            **self.trained.numbers(),
            **{key: getattr(self.job.settings, key) for key in BATCH},
            **read_peak_memory(self.device),
            "adapter_bytes": folder_bytes(self.folder.adapter),
            "pack": self.pack,
            "why_trl": self.why_trl,
        }

    def train_as_trl(self) -> None:
        """Train with TRL's SFTTrainer, alone."""
        config = self.job.config
        base = self.shared.base_at(config.quant, self.voice)
        self.obey()
        model = attach_adapter(base, config.lora, self.job.target_modules, config.seed)
        self.voice.phase("training")
        try:
            self.check_size(model.get_nb_trainable_parameters()[0])
            with tempfile.TemporaryDirectory() as scratch:
                self.trained = train_with_trl(
                    model,
                    self.rows,
                    self.shared.tokenizer,
                    self.job.settings,
                    config.seed,
                    self.device,
                    Path(scratch),
                    self.progress,
                    checkpoints=self.folder.checkpoints,
                    stop=self.voice.stop,
                )
            # By default PEFT would add the embedding and the head, untouched, when the head is a target.
            model.save_pretrained(str(self.folder.adapter), save_embedding_layers=False)
        except BaseException:
            self.shared.drop()
            raise
        self.shared.release(model)

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
        """Texts and losses to scores, and the evaluation's result."""
        job, started, self.began = self.job, self.began or now(), None
        config = job.config
        folder = self.folder.evaluation(job.eval_id)
        if self.written is None:
            self.write_as_peft()
        assert self.written is not None
        if isinstance(self.written, Exception):
            raise self.written
        generations, numbers = self.generations(self.written)
        scores = score.score_generations(generations, self.scorer())
        files.write_jsonl(folder.generations, generations)
        files.write_json(folder.scores, scores)
        result = {
            "eval_id": job.eval_id,
            "status": "complete",
            "reason": None,
            "bits": stored_bits(config.eval_bits(), self.device),
            "eval": dataclasses.asdict(config.eval),
            "adapter": results.hash_adapter(results.read_trial_result(self.folder)),
            **numbers,
            **read_peak_memory(self.device),
            "metrics": scores["means"],
            "halved": job.halvings.get("evaluate", 0),
            "provenance": provenance(self.device.name, str(self.device.compute_dtype), started),
            "files": files.file_hashes(folder.path, ["generations.jsonl", "scores.json"]),
        }
        results.write_result(folder.result, result)
        quality, finished = scores["means"]["quality"], scores["means"]["finished"]
        known = "unknown" if quality is None else f"{quality:.1f}"
        loss = f"{config.eval.split} loss {numbers['validation_loss']:.3f}"
        self.voice.say(f"{job.label}: quality {known}, {loss}, {finished:.0%} end")
        self.track(generations, scores, result)

    # --- texts -------------------------------------------------------------------------------------------------------

    @property
    def asked(self) -> list[tuple[str, str, str | None, str | None]]:
        """Each prompt's id, product, category and reference."""
        settings = self.job.config.eval
        split = settings.split
        asked = [(f"{split}-{i}", row.product, row.category, row.description) for i, row in enumerate(self.held_out)]
        fixed = [
            (f"fixed-{i}", prompt.product, prompt.category, None) for i, prompt in enumerate(settings.fixed_prompts)
        ]
        return [*asked, *fixed]

    @property
    def prompts(self) -> list[list[int]]:
        """The prompts' token ids."""
        template, tokenizer = self.job.config.data.template, self.shared.tokenizer
        return [tokenize_prompt(template, product, category, tokenizer) for _, product, category, _ in self.asked]

    @property
    def marker(self) -> str:
        data = self.job.config.data
        return choose_end_marker(data, data.template)

    @property
    def reference_rows(self) -> list[Example]:
        """The rows of the validation loss, and of the prompts that have a reference."""
        config = self.job.config
        rows = self.shared.examples(config.eval.split, config.data, config.train.max_length)
        return rows[: max(config.eval.validation_rows, len(self.held_out))]

    def read_adapter(self, base: Any) -> Adapter | None:
        """What it writes with, as a pack takes it, after the scorer is known to work; None for a baseline.

        ``why_trl`` says afterwards whether it must write as PEFT does.
        """
        self.scorer()
        config, self.began = self.job.config, now()
        if self.job.kind == "trial" and (config.lora.use_dora or config.lora.bias != "none"):
            self.why_trl = "its adapter is more than LoRA's matrices"
        else:
            longest = max(map(len, [*self.prompts, *(row.input_ids for row in self.reference_rows)]), default=0)
            window = explain_short_window(base, longest + self.job.decoding.max_new_tokens)
            self.why_trl = window or self.shared.no_packs(self.reference_rows)
        self.voice.phase("writing")
        if self.why_trl:
            self.voice.say(f"{self.job.label}: writes as PEFT does: {self.why_trl}")
        if self.why_trl or self.job.kind != "trial":
            return None
        return load_adapter(self.folder.adapter, self.device.type)

    def write_as_peft(self) -> None:
        """Write with PEFT's model and transformers' generate, alone."""
        config, pad, stop = self.job.config, self.shared.tokenizer.pad_token_id, self.voice.stop
        settings, tokenizer, device = self.job.decoding, self.shared.tokenizer, self.device
        base = self.shared.base_at(dataclasses.replace(config.quant, bits=config.eval_bits()), self.voice)
        self.obey()
        is_trial = self.job.kind == "trial"
        model = PeftModel.from_pretrained(base, str(self.folder.adapter)) if is_trial else base
        model.eval()
        try:
            losses = compute_reference_losses(model, self.reference_rows, pad, settings.batch_size, device, stop=stop)
            neutral = compute_neutral_loss(model, tokenizer, device, stop)
            started = time.perf_counter()
            texts = generate_texts(
                model, tokenizer, self.prompts, settings, self.marker, device, config.seed, self.voice.step, stop
            )
            self.written = Texts(texts, losses, neutral, time.perf_counter() - started)
        finally:
            if is_trial:
                self.shared.release(model)

    @property
    def held_out(self) -> list[Row]:
        """The rows of the prompts that have a reference."""
        settings = self.job.config.eval
        rows: list[Row] = getattr(self.shared.split, settings.split)
        return rows[: settings.prompts]

    def scorer(self) -> Scorer | None:
        """What says what quality is, loaded before a text is written."""
        settings = self.job.config.eval
        scorer = make_scorer(settings, [row.description for row in self.held_out])
        if scorer is not None and short_hash(eval_identity(self.job.config)) != self.job.eval_id:
            raise RuntimeError(f"the scorer {settings.scorer} changed after planning: run the command again")
        return scorer

    def generations(self, texts: Texts) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows of generations.jsonl, and the numbers of the evaluation's result that they do not hold."""
        config, losses = self.job.config, texts.losses
        template, tokenizer = config.data.template, self.shared.tokenizer
        generations = [
            {
                "prompt_id": prompt_id,
                "product": product,
                "category": category,
                "prompt": write_prompt(template, product, category, tokenizer),
                **dataclasses.asdict(text),
                "reference": reference,
                "response_nll": None if reference is None else losses[i][0] / losses[i][1],
            }
            for i, ((prompt_id, product, category, reference), text) in enumerate(
                zip(self.asked, texts.written, strict=True)
            )
        ]
        counted = losses[: config.eval.validation_rows]
        return generations, {
            "validation_loss": sum(total for total, _ in counted) / sum(count for _, count in counted),
            "validation_rows": len(counted),
            "neutral_loss": texts.neutral,
            **generation_numbers(texts.written, texts.seconds),
        }

    def track(self, generations: list[dict[str, Any]], scores: dict[str, Any], result: dict[str, Any]) -> None:
        run = self.run
        if run is None:  # trained in another process, or with other trials in between: the curve comes from its file
            run = open_run(self.job, self.runs, self.sweep)
            for values in files.read_jsonl(self.folder.losses):
                run.log_step(int(values["step"]), {key: value for key, value in values.items() if key != "step"})
        training, evaluation = results.read_trial_result(self.folder), EvaluationResult.from_json(result)
        numbers = numbers_of(self.job.kind, training, evaluation, scores["prompts"])
        by_prompt = {prompt["prompt_id"]: prompt for prompt in scores["prompts"]}
        rows = [{**by_prompt[generation["prompt_id"]], **generation} for generation in generations]
        run.finish({**numbers, **scores["means"], "status": "complete", "kind": self.job.kind}, rows)
        self.run = None


def generation_numbers(written: list[GeneratedText], seconds: float) -> dict[str, Any]:
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

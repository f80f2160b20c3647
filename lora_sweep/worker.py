"""A pack in one process: trials that share a base, one after another. `python -m lora_sweep.worker PACK.json`.

Outcomes travel in the trials' files alone; the exit code says only that the process ended (0) or crashed. A trial's
fault becomes its status; after running out of memory the process ends, and the orchestrator starts a fresh one.
"""

import ctypes
import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from lora_sweep import results, score, tracking
from lora_sweep.config import Config, Quant, config_from_json
from lora_sweep.data import Split, load_split
from lora_sweep.device import Device, is_out_of_memory, peak_memory, pick_device, reset_peak_memory
from lora_sweep.errors import Diverged
from lora_sweep.finetune import Trained, attach_adapter, finetune
from lora_sweep.generate import Written, generate, reference_losses
from lora_sweep.model import base_signature, load_base, load_tokenizer, quiet_transformers, stored_bits
from lora_sweep.prompts import end_marker, examples, prompt_ids, prompt_text
from lora_sweep.provenance import now, provenance


@dataclass(frozen=True)
class Job:
    """One trial of a pack: its config, and what planning already knows about it."""

    trial_id: str
    eval_id: str
    kind: str
    label: str
    config: Config
    target_modules: list[str]
    facts: dict[str, Any]  # identity, fingerprints, trainable_params, total_params, data

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Job":
        return cls(**{**value, "config": config_from_json(value["config"])})


def run_pack(jobs: list[Job], runs: Path, sweep: str, say: Callable[[str], None]) -> None:
    """Train, generate and score every job that has no outcome yet, and write its files."""
    device = pick_device()
    shared = jobs[0].config
    tokenizer = load_tokenizer(shared.model)
    split = load_split(shared.data)
    planned = jobs[0].facts["data"]["rows_fingerprint"]
    if split.fingerprint() != planned:
        raise RuntimeError(f"the rows of data {shared.data.name} changed after planning: run the command again")
    bases = Bases(shared, device, say)
    trials = [Trial(job, runs, sweep, device, tokenizer, split, bases, say) for job in jobs]
    for stage in stages(trials):
        if not stage():
            return  # out of memory: what is left goes to a fresh process


def stages(trials: list["Trial"]) -> list[Callable[[], bool]]:
    """Each trial's evaluation right after its training where both use one base; else all trainings first."""
    if all(trial.one_base for trial in trials):
        return [stage for trial in trials for stage in (trial.try_train, trial.try_evaluate)]
    return [trial.try_train for trial in trials] + [trial.try_evaluate for trial in trials]


class Bases:
    """The one base that the worker holds, loaded when another number of bits is asked for."""

    def __init__(self, config: Config, device: Device, say: Callable[[str], None]) -> None:
        self.config, self.device, self.say = config, device, say
        self.quant: Quant | None = None
        self.base: Any = None
        self.signature: Any = None

    def at(self, quant: Quant) -> Any:
        """The base with ``quant``'s weights, without an adapter."""
        if self.quant != quant or base_signature(self.base) != self.signature:
            self.base = None  # freed before the next one is loaded
            started = time.perf_counter()
            self.base = load_base(self.config.model, quant, self.device)
            self.quant, self.signature = quant, base_signature(self.base)
            bits = stored_bits(quant.bits, self.device)
            self.say(f"loaded {self.config.model.name} at {bits} bits in {time.perf_counter() - started:.1f} s")
        return self.base

    def release(self, model: PeftModel) -> None:
        """Take the adapter off. A base that is not as before is loaded anew by the next ``at``."""
        self.base = model.unload()

    def drop(self) -> None:
        """Forget the base: a training that broke off can leave hooks on it, which no signature shows."""
        self.base, self.quant = None, None


@dataclass
class Trial:
    """One job in this process: train, then evaluate."""

    job: Job
    runs: Path
    sweep: str
    device: Device
    tokenizer: Any
    split: Split
    bases: Bases
    say: Callable[[str], None]
    run: tracking.Run | None = None  # open from the first step to the scores, where nothing comes between

    @property
    def folder(self) -> results.TrialFolder:
        return results.trial_folder(self.runs, self.job.trial_id)

    @property
    def one_base(self) -> bool:
        return self.job.config.eval_bits() == self.job.config.quant.bits

    def try_train(self) -> bool:
        return self.attempt(self.train, self.folder.result)

    def try_evaluate(self) -> bool:
        if (results.read_json(self.folder.result) or {}).get("status") != "complete":
            return True
        return self.attempt(self.evaluate, self.folder.evaluation(self.job.eval_id).result)

    def attempt(self, stage: Callable[[], None], target: Path) -> bool:
        """Run a stage unless it has an outcome; turn its fault into one. False after running out of memory."""
        if (results.read_json(target) or {}).get("status") in results.SETTLED:
            return True
        reset_peak_memory(self.device)
        try:
            stage()
        except Exception as error:  # noqa: BLE001 - a trial's fault is an outcome: it never takes the sweep down
            traceback.print_exc()
            status = "diverged" if isinstance(error, Diverged) else "oom" if is_out_of_memory(error) else "failed"
            reason = str(error).strip() or type(error).__name__
            reason = reason if isinstance(error, Diverged) else f"{type(error).__name__}: {reason}"
            self.write_failure(status, reason[:2000])
            return status != "oom"
        return True

    def write_failure(self, status: str, reason: str) -> None:
        job = self.job
        ids = {"trial_id": job.trial_id, "eval_id": job.eval_id, "kind": job.kind}
        results.write_failure(self.runs, ids, dataclasses.asdict(job.config), job.facts, status, reason)
        self.say(f"{job.label}: {status}: {reason.splitlines()[0][:160]}")
        (self.run or self.open_run()).fail(status, reason)
        self.run = None

    def open_run(self) -> tracking.Run:
        job = self.job
        return tracking.open_run(
            job.config.tracking,
            self.runs,
            group=self.sweep,
            name=job.label,
            run_id=f"{job.trial_id}-{job.eval_id}",
            job_type=job.kind,
            config={**dataclasses.asdict(job.config), "target_modules": job.target_modules, "trial_id": job.trial_id},
            tags=[job.config.model.name, job.config.data.name],
        )

    # --- the straight line -------------------------------------------------------------------------------------

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
            "provenance": provenance(self.device, started),
            "files": results.file_hashes(self.folder.path, files),
        }
        results.write_json(self.folder.result, result)

    def train_adapter(self) -> dict[str, Any]:
        config = self.job.config
        rows = examples(self.split.train, config.data, self.tokenizer, config.train.max_length)
        model = attach_adapter(self.bases.at(config.quant), config.lora, self.job.target_modules, config.seed)
        try:
            trainable, _ = model.get_nb_trainable_parameters()
            planned = self.job.facts["trainable_params"]
            if trainable != planned:
                raise RuntimeError(f"PEFT would train {trainable} parameters, {planned} were planned")
            with tempfile.TemporaryDirectory() as scratch:
                trained = finetune(
                    model, rows, self.tokenizer, config.train, config.seed, self.device, Path(scratch), self.progress
                )
            peaks = peak_memory(self.device)
            results.write_jsonl(self.folder.losses, trained.losses)
            # By default PEFT would add the embedding and the head, untouched, when the head is a target.
            model.save_pretrained(str(self.folder.adapter), save_embedding_layers=False)
        except BaseException:
            self.bases.drop()
            raise
        self.bases.release(model)
        self.say(f"{self.job.label}: trained {trained.steps} steps in {trained.train_seconds:.0f} s")
        return {**training_numbers(trained), **peaks, "adapter_bytes": folder_bytes(self.folder.adapter)}

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        if self.one_base:
            self.run = self.run or self.open_run()
            self.run.log_step(step, values)
        if step in (1, steps) or step * 4 // steps != (step - 1) * 4 // steps:
            self.say(f"{self.job.label}: step {step}/{steps}, loss {values['loss']:.3f}")

    def evaluate(self) -> None:
        """Base, adapter and held-out prompts to texts, losses, scores, and the evaluation's result."""
        job, started = self.job, now()
        config = job.config
        folder = self.folder.evaluation(job.eval_id)
        base = self.bases.at(dataclasses.replace(config.quant, bits=config.eval_bits()))
        model = PeftModel.from_pretrained(base, str(self.folder.adapter)) if job.kind == "trial" else base
        model.eval()
        try:
            generations, numbers = self.write_texts(model)
        finally:
            if job.kind == "trial":
                self.bases.release(model)
        scores = score.score(generations)
        results.write_jsonl(folder.generations, generations)
        results.write_json(folder.scores, scores)
        result = {
            "eval_id": job.eval_id,
            "status": "complete",
            "reason": None,
            "bits": stored_bits(config.eval_bits(), self.device),
            "eval": dataclasses.asdict(config.eval),
            **numbers,
            **peak_memory(self.device),
            "metrics": scores["means"],
            "provenance": provenance(self.device, started),
            "files": results.file_hashes(folder.path, ["generations.jsonl", "scores.json"]),
        }
        results.write_json(folder.result, result)
        quality, finished = scores["means"]["quality"], scores["means"]["finished"]
        self.say(
            f"{job.label}: quality {quality:.1f}, validation loss {numbers['validation_loss']:.3f}, {finished:.0%} end"
        )
        self.track(generations, scores, result)

    def write_texts(self, model: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows of generations.jsonl, and the numbers of the evaluation's result that they do not hold."""
        config = self.job.config
        held_out = self.split.validation[: config.eval.prompts]
        scored = self.split.validation[: max(config.eval.validation_rows, len(held_out))]
        rows = examples(scored, config.data, self.tokenizer, config.train.max_length)
        losses = reference_losses(model, rows, self.tokenizer.pad_token_id, config.eval.batch_size, self.device)
        asked: list[tuple[str, str, str | None, str | None]]
        asked = [(f"validation-{i}", row.product, row.category, row.description) for i, row in enumerate(held_out)]
        asked += [(f"fixed-{i}", p.product, p.category, None) for i, p in enumerate(config.eval.fixed_prompts)]
        template, tokenizer = config.data.template, self.tokenizer
        ids = [prompt_ids(template, product, category, tokenizer) for _, product, category, _ in asked]
        started = time.perf_counter()
        marker = end_marker(config.data, template)
        written = generate(model, tokenizer, ids, config.eval, marker, self.device, config.seed)
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
        validation = losses[: config.eval.validation_rows]
        return generations, {
            "validation_loss": sum(total for total, _ in validation) / sum(count for _, count in validation),
            "validation_rows": len(validation),
            **generation_numbers(written, seconds),
        }

    def track(self, generations: list[dict[str, Any]], scores: dict[str, Any], result: dict[str, Any]) -> None:
        run = self.run
        if run is None:  # trained in another process, or with other trials in between: the curve comes from its file
            run = self.open_run()
            for values in results.read_jsonl(self.folder.losses):
                run.log_step(int(values["step"]), {key: value for key, value in values.items() if key != "step"})
        training = results.read_json(self.folder.result) or {}
        numbers = {key: value for key, value in {**training, **result}.items() if isinstance(value, int | float)}
        by_prompt = {prompt["prompt_id"]: prompt for prompt in scores["prompts"]}
        rows = [{**by_prompt[generation["prompt_id"]], **generation} for generation in generations]
        run.finish({**numbers, **scores["means"], "status": "complete", "kind": self.job.kind}, rows)
        self.run = None


def training_numbers(trained: Trained) -> dict[str, Any]:
    """The training's part of result.json; ``train_loss`` is the mean of the last tenth of the steps."""
    tail = trained.losses[-max(1, len(trained.losses) // 10) :]
    return {
        "steps": trained.steps,
        "train_loss": sum(values["loss"] for values in tail) / len(tail),
        "train_seconds": trained.train_seconds,
        "tokens_seen": trained.tokens,
        "tokens_per_second": trained.tokens / trained.train_seconds,
        "gpu_utilization_percent": trained.gpu_utilization_percent,
    }


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


def die_with_parent() -> None:
    """On Linux: end this process when the orchestrator ends, however it ends (PR_SET_PDEATHSIG, man 2 prctl)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> None:
    die_with_parent()
    quiet_transformers()
    pack = json.loads(Path(sys.argv[1]).read_text())
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what compiled code prints belongs in the log, which is stderr
    jobs = [Job.from_json(job) for job in pack["jobs"]]
    run_pack(jobs, Path(pack["runs_dir"]), pack["sweep"], print)


if __name__ == "__main__":
    main()

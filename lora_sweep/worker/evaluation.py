"""The evaluation of one trial: from its adapter to generated texts, scores and the evaluation's result.json.

:func:`prepare_evaluation` collects the inputs. ``worker.pack`` generates the texts of a whole pack, and
:func:`generate_single` the texts of one trial with PEFT. :func:`write_evaluation` scores them and writes the files.
"""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from lora_sweep.config.identity import eval_identity, short_hash
from lora_sweep.data.prompts import Example, choose_end_marker, tokenize_prompt, write_prompt
from lora_sweep.data.rows import Row
from lora_sweep.generation.losses import RowLoss, compute_neutral_loss, compute_reference_losses
from lora_sweep.generation.single import GeneratedText, generate_texts
from lora_sweep.messages import Job
from lora_sweep.model.device import read_peak_memory
from lora_sweep.model.load import stored_bits
from lora_sweep.multi_lora.adapter import Adapter
from lora_sweep.multi_lora.layout import explain_short_window
from lora_sweep.multi_lora.peft_format import load_adapter
from lora_sweep.runs import files, results
from lora_sweep.runs.provenance import collect_provenance, utc_now
from lora_sweep.runs.records import EvaluationResult, Generation
from lora_sweep.scoring import score
from lora_sweep.scoring.scorers import Scorer, make_scorer
from lora_sweep.tracking.values import collect_numbers
from lora_sweep.worker.trial import ResultFields, TrialTask


@dataclass(frozen=True)
class EvalPrompt:
    """A prompt of an evaluation. A fixed prompt has no reference."""

    prompt_id: str
    product: str
    category: str | None
    reference: str | None
    token_ids: list[int]


@dataclass(frozen=True)
class Evaluation:
    """The inputs of one evaluation.

    Attributes:
        end_marker: the text that ends a response.
        reference_rows: the loss of their responses is computed. The first ones belong to the prompts that have a
            reference.
        scorer: computes the quality; None for the formula of ``scoring.score``.
        adapter: the trial's adapter in the form of a pack. None for a baseline, and if ``peft_reason`` is set.
        peft_reason: why the trial cannot generate in a pack but only with PEFT; None if it can.
        started: when the work on this evaluation began, in ISO 8601.
    """

    task: TrialTask
    prompts: list[EvalPrompt]
    end_marker: str
    reference_rows: list[Example]
    scorer: Scorer | None
    adapter: Adapter | None
    peft_reason: str | None
    started: str


@dataclass(frozen=True)
class EvaluationTexts:
    """The texts that the model generated for the prompts, and its losses on the references and the neutral text.

    Attributes:
        texts: one for each prompt.
        losses: for each reference row, the sum of the loss in nats and the number of tokens.
        neutral_loss: the loss on the neutral text, in nats a token; None if it is not finite.
        seconds: how long the generation took.
    """

    texts: list[GeneratedText]
    losses: list[RowLoss]
    neutral_loss: float | None
    seconds: float


def prepare_evaluation(task: TrialTask, base: Any) -> Evaluation:
    """Load the scorer and the adapter, and make the prompts.

    Raises:
        RuntimeError, Refused: see :func:`load_scorer`.
    """
    job, resident, started = task.job, task.resident, utc_now()
    config = job.config
    held_out_rows = select_prompt_rows(task)
    scorer = load_scorer(job, held_out_rows)  # before any text is generated, because it may fail
    prompts = make_prompts(task, held_out_rows)
    rows = resident.tokenize_rows(config.eval.split, config.data, config.train.max_length)
    reference_rows = rows[: max(config.eval.validation_rows, len(held_out_rows))]
    marker = choose_end_marker(config.data, config.data.template)
    if job.kind == "trial" and (config.lora.use_dora or config.lora.bias != "none"):
        peft_reason: str | None = "its adapter has more than LoRA's matrices"
    else:
        lengths = [len(prompt.token_ids) for prompt in prompts] + [len(row.input_ids) for row in reference_rows]
        max_tokens = max(lengths, default=0) + job.eval_settings.max_new_tokens
        peft_reason = explain_short_window(base, max_tokens) or resident.find_pack_problem(reference_rows)
    task.reporter.report_phase("writing")
    adapter = None
    if peft_reason:
        task.reporter.report_text(f"{job.label}: generates with PEFT: {peft_reason}")
    elif job.kind == "trial":
        adapter = load_adapter(task.folder.adapter, task.device.type)
    return Evaluation(task, prompts, marker, reference_rows, scorer, adapter, peft_reason, started)


def select_prompt_rows(task: TrialTask) -> list[Row]:
    """The rows of the prompts that have a reference."""
    settings = task.job.config.eval
    rows: list[Row] = getattr(task.resident.splits, settings.split)
    return rows[: settings.prompts]


def load_scorer(job: Job, rows: list[Row]) -> Scorer | None:
    """The scorer of an evaluation; None for the formula of ``scoring.score``.

    Raises:
        RuntimeError: the scorer is not the one that was planned.
        Refused: the scorer cannot be loaded.
    """
    settings = job.config.eval
    scorer = make_scorer(settings, [row.description for row in rows])
    if scorer is not None and short_hash(eval_identity(job.config)) != job.eval_id:
        raise RuntimeError(f"the scorer {settings.scorer} changed after planning: run the command again")
    return scorer


def make_prompts(task: TrialTask, rows: list[Row]) -> list[EvalPrompt]:
    """The prompts of the held-out rows, then the fixed ones."""
    settings, template = task.job.config.eval, task.job.config.data.template
    tokenizer = task.resident.tokenizer

    def make_prompt(prompt_id: str, product: str, category: str | None, reference: str | None) -> EvalPrompt:
        return EvalPrompt(
            prompt_id, product, category, reference, tokenize_prompt(template, product, category, tokenizer)
        )

    return [
        *(
            make_prompt(f"{settings.split}-{index}", row.product, row.category, row.description)
            for index, row in enumerate(rows)
        ),
        *(
            make_prompt(f"fixed-{index}", prompt.product, prompt.category, None)
            for index, prompt in enumerate(settings.fixed_prompts)
        ),
    ]


def generate_single(evaluation: Evaluation) -> EvaluationTexts:
    """Generate with PEFT's model and transformers' ``generate``, for one trial.

    Raises:
        Preempted: a signal asked for a stop.
    """
    task, config = evaluation.task, evaluation.task.job.config
    settings, tokenizer, device = task.job.eval_settings, task.resident.tokenizer, task.device
    stop = task.reporter.is_stop_requested
    base = task.resident.provide_base(dataclasses.replace(config.quant, bits=config.eval_bits()), task.reporter)
    task.raise_on_stop()
    has_adapter = task.job.kind == "trial"
    model = PeftModel.from_pretrained(base, str(task.folder.adapter)) if has_adapter else base
    model.eval()
    try:
        losses = compute_reference_losses(
            model, evaluation.reference_rows, tokenizer.pad_token_id, settings.batch_size, device, stop=stop
        )
        loss_on_neutral_text = compute_neutral_loss(model, tokenizer, device, stop)
        started = time.perf_counter()
        texts = generate_texts(
            model,
            tokenizer,
            [prompt.token_ids for prompt in evaluation.prompts],
            settings,
            evaluation.end_marker,
            device,
            config.seed,
            task.reporter.report_step,
            stop,
        )
        return EvaluationTexts(texts, losses, loss_on_neutral_text, time.perf_counter() - started)
    finally:
        if has_adapter:
            task.resident.detach_adapter(model)


def write_evaluation(evaluation: Evaluation, generated: EvaluationTexts) -> None:
    """Score the texts, write generations.jsonl, scores.json and result.json, and finish the tracker's run."""
    task = evaluation.task
    job, device, folder = task.job, task.device, task.folder.evaluation(task.job.eval_id)
    generations = make_generation_rows(evaluation, generated)
    scores = score.score_generations(generations, evaluation.scorer)
    files.write_jsonl(folder.generations, generations)
    files.write_json(folder.scores, scores)
    fields = compute_result_fields(job, generated)
    result = {
        "eval_id": job.eval_id,
        "status": "complete",
        "reason": None,
        "bits": stored_bits(job.config.eval_bits(), device),
        "eval": dataclasses.asdict(job.config.eval),
        "adapter": results.hash_adapter(results.read_trial_result(task.folder)),
        **fields,
        **read_peak_memory(device),
        "metrics": scores["means"],
        "halved": job.halvings.get("evaluate", 0),
        "provenance": collect_provenance(device.name, str(device.compute_dtype), evaluation.started),
        "files": files.hash_files(folder.path, ["generations.jsonl", "scores.json"]),
    }
    results.write_result(folder.result, result)
    quality, finished = scores["means"]["quality"], scores["means"]["finished"]
    quality_text = "unknown" if quality is None else f"{quality:.1f}"
    loss_text = f"{job.config.eval.split} loss {fields['validation_loss']:.3f}"
    task.reporter.report_text(f"{job.label}: quality {quality_text}, {loss_text}, {finished:.0%} finished")
    finish_tracker_run(task, generations, scores, result)


def make_generation_rows(evaluation: Evaluation, generated: EvaluationTexts) -> list[Generation]:
    """The rows of generations.jsonl. The loss of a reference is in nats a token."""
    template, tokenizer = evaluation.task.job.config.data.template, evaluation.task.resident.tokenizer
    rows: list[Generation] = []
    for index, (prompt, text) in enumerate(zip(evaluation.prompts, generated.texts, strict=True)):
        response_nll = None
        if prompt.reference is not None:  # these prompts come first, as their rows do among the losses
            loss, tokens = generated.losses[index]
            response_nll = loss / tokens
        rows.append(
            {
                "prompt_id": prompt.prompt_id,
                "product": prompt.product,
                "category": prompt.category,
                "prompt": write_prompt(template, prompt.product, prompt.category, tokenizer),
                "text": text.text,
                "finished": text.finished,
                "new_tokens": text.new_tokens,
                "reference": prompt.reference,
                "response_nll": response_nll,
            }
        )
    return rows


def compute_result_fields(job: Job, generated: EvaluationTexts) -> ResultFields:
    """The fields of an evaluation's result.json that generations.jsonl does not hold. Losses are in nats a token."""
    losses = generated.losses[: job.config.eval.validation_rows]
    new_tokens = sum(text.new_tokens for text in generated.texts)
    return {
        "validation_loss": sum(loss for loss, _ in losses) / sum(tokens for _, tokens in losses),
        "validation_rows": len(losses),
        "neutral_loss": generated.neutral_loss,
        "generate_seconds": generated.seconds,
        "new_tokens": new_tokens,
        "generate_tokens_per_second": new_tokens / generated.seconds,
    }


def finish_tracker_run(
    task: TrialTask, generations: list[Generation], scores: score.Scores, result: ResultFields
) -> None:
    """Finish the tracker's run of a trial with its numbers and a table of its texts."""
    run = task.tracker_runs.take_run(task.job, files.read_jsonl(task.folder.losses))
    training, evaluation = results.read_trial_result(task.folder), EvaluationResult.from_json(result)
    qualities = [prompt.get("quality") for prompt in scores["prompts"]]
    numbers = collect_numbers(task.job.kind, training, evaluation, qualities)
    metrics = {prompt["prompt_id"]: prompt for prompt in scores["prompts"]}
    rows = [{**metrics[generation["prompt_id"]], **generation} for generation in generations]
    run.finish({**numbers, **scores["means"], "status": "complete", "kind": task.job.kind}, rows)

"""Trials on a worker that trains models: outcomes, whatever happens, and files that can be used elsewhere."""

import dataclasses
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support.scripted import job_json

from lora_sweep.config.schema import Config, Data, Eval, Lora, Model, Quant, Tracking, Train, config_from_json
from lora_sweep.data.prompts import tokenize_prompt
from lora_sweep.data.splits import load_splits
from lora_sweep.generation.single import generate_texts
from lora_sweep.messages import Job, Reporter
from lora_sweep.model.device import pick_device
from lora_sweep.model.inspect import inspect_trial
from lora_sweep.model.load import load_base, load_tokenizer
from lora_sweep.runs import files, results
from lora_sweep.runs.records import TrialRecord
from lora_sweep.worker import pack as pack_module
from lora_sweep.worker import resident
from lora_sweep.worker.loop import run_pack
from lora_sweep.worker.trial import TrialTask
from sweep.plan import facts as plan_facts
from sweep.plan.make import make_plan


def config(**changes: Any) -> Config:
    base = Config(
        model=Model(name="tiny", tiny="llama"),
        data=Data(name="tiny", tiny=60, train_rows=8),
        lora=Lora(r=4),
        train=Train(max_steps=3, learning_rate=1e-2),
        eval=Eval(prompts=2, validation_rows=4, max_new_tokens=8),
        tracking=Tracking(backend="none"),
    )
    return dataclasses.replace(base, **changes)


def run(configs: list[Config], runs: Path, **more: Any) -> tuple[list[Job], list[str]]:
    """Run a plan's trials in this process, as a worker would; the jobs, baselines first, and what they said."""
    plan = make_plan(configs, strict=True)
    jobs = [Job.from_json(job_json(each, **more)) for each in plan.trials]
    said: list[str] = []
    reporter = Reporter(lambda event: said.append(event.get("text", "")))
    runner = pack_module.PackRunner(runs, "test")
    if any(job.config.eval_bits() != job.config.quant.bits for job in jobs):  # as the schedule does: a base at a time
        jobs = [dataclasses.replace(job, stages=[stage]) for stage in ("train", "evaluate") for job in jobs]
    for job in jobs:
        if run_pack([job], runs, runner, reporter) == ["oom"]:
            break  # the worker would end
    return jobs[-len(plan.trials) :], said


def outcome(job: Job, runs: Path) -> TrialRecord:
    return results.load_record(runs, job.trial_id, job.eval_id, job.label)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Job], list[str], Path]:
    runs = tmp_path_factory.mktemp("runs")
    jobs, said = run([config(), config(lora=Lora(r=2, targets="all_linear"))], runs)
    return jobs, said, runs


def test_a_trial_is_complete_with_every_number(pack: Any) -> None:
    jobs, _, runs = pack
    for job in jobs:
        result = outcome(job, runs)
        assert (result.status, result.kind, result.training.bits) == (
            "complete",
            job.kind,
            8 * pick_device().compute_bytes,
        )
        assert 0 < result.evaluation.validation_loss < 20
        assert 0 < result.evaluation.neutral_loss < 20
        assert result.evaluation.new_tokens > 0
        assert (result.training.peak_memory_bytes if job.kind == "trial" else result.training.bits) > 0
        assert result.evaluation.provenance.versions["torch"] == torch.__version__
    training = outcome(jobs[1], runs).training
    assert training.trainable_params == 4 * 2 * (64 + 64) + 4 * 2 * (64 + 32)  # q 64 x 64, v 64 x 32, 2 layers
    assert training.total_params == outcome(jobs[0], runs).training.total_params
    assert training.steps == 3 == len(outcome(jobs[1], runs).losses)
    assert training.tokens_per_second == pytest.approx(training.tokens_seen / training.train_seconds)
    adapter = files.trial_folder(runs, jobs[1].trial_id).adapter
    assert training.adapter_bytes == sum(file.stat().st_size for file in adapter.iterdir())


def test_checksums_are_those_of_the_files(pack: Any) -> None:
    jobs, _, runs = pack
    folder = files.trial_folder(runs, jobs[1].trial_id)
    stated = outcome(jobs[1], runs).training.files
    assert {"config.json", "losses.jsonl", "adapter/adapter_model.safetensors"} <= set(stated)
    assert stated == files.hash_files(folder.path, stated)


def test_prompts_are_the_held_out_rows_and_the_fixed_ones(tmp_path: Path) -> None:
    from lora_sweep.config.schema import FixedPrompt

    settings = Eval(
        prompts=2, validation_rows=4, max_new_tokens=4, fixed_prompts=[FixedPrompt("Smooth Mouse", "Mouse")]
    )
    jobs, _ = run([config(eval=settings)], tmp_path)
    generations = outcome(jobs[1], tmp_path).generations
    held_out = load_splits(config().data).validation[:2]
    assert [row["prompt_id"] for row in generations] == ["validation-0", "validation-1", "fixed-0"]
    assert [row["reference"] for row in generations] == [*(row.description for row in held_out), None]
    assert generations[2]["response_nll"] is None
    assert "Smooth Mouse, belonging to category: Mouse" in generations[2]["prompt"]
    assert not {row.prompt_fields for row in held_out} & {row.prompt_fields for row in load_splits(config().data).train}


OWN = """
def score(text, reference, product, category):
    if reference is None:
        return None
    return {"quality": len(product) / 100, "length": len(text)}
"""


def test_a_function_of_one_s_own_scores_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(requests: list[Any], strict: bool) -> list[Any]:
        """In this process, which has torch already."""
        return [{"facts": inspect_trial(config_from_json(each["config"]), strict).to_json()} for each in requests]

    monkeypatch.setattr(plan_facts, "ask_inspect", answers)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_scorer.py").write_text(OWN)
    settings = Eval(prompts=2, validation_rows=2, max_new_tokens=4, scorer="own_scorer:score", split="test")
    jobs, _ = run([config(eval=settings, train=Train(max_steps=1))], tmp_path)
    held_out = load_splits(config().data).test[:2]
    for job in jobs:
        result = outcome(job, tmp_path)
        assert [row["reference"] for row in result.generations] == [row.description for row in held_out]
        assert list(result.scores.prompts) == ["test-0", "test-1"]
        assert [metrics["quality"] for metrics in result.scores.prompts.values()] == [
            len(row.product) for row in held_out
        ]
        assert result.metric_mean("quality") == result.evaluation.metrics["quality"]
        assert result.metric_mean("score_length") == sum(len(row["text"]) for row in result.generations) / 2
        assert result.evaluation.eval["split"] == "test"
    (tmp_path / "own_scorer.py").write_text(OWN + "# another thought\n")
    shutil.rmtree(files.trial_folder(tmp_path, jobs[0].trial_id).evaluation(jobs[0].eval_id).path)
    runner = pack_module.PackRunner(tmp_path, "test")
    assert run_pack(jobs[:1], tmp_path, runner, Reporter(lambda event: None)) == ["failed"]
    said = "RuntimeError: the scorer own_scorer:score changed after planning: run the command again"
    assert outcome(jobs[0], tmp_path).reason == said


@pytest.mark.parametrize("bits", [None, 4])
def test_the_saved_adapter_writes_the_same_tokens_elsewhere(bits: int | None, tmp_path: Path) -> None:
    jobs, _ = run([config(quant=Quant(bits), lora=Lora(r=8, targets="all_linear_and_head"))], tmp_path)
    job = jobs[1]
    tokenizer = load_tokenizer(job.config.model)
    base = load_base(job.config.model, job.config.quant, pick_device())
    model = PeftModel.from_pretrained(base, str(files.trial_folder(tmp_path, job.trial_id).adapter)).eval()
    saved = load_file(files.trial_folder(tmp_path, job.trial_id).adapter / "adapter_model.safetensors")
    assert all("lora_" in name for name in saved), "the adapter holds weights of the base"
    assert sum(weight.numel() for weight in saved.values()) == outcome(job, tmp_path).training.trainable_params
    generations = outcome(job, tmp_path).generations
    prompts = [tokenize_prompt("alpaca", row["product"], row["category"], tokenizer) for row in generations]
    written = generate_texts(model, tokenizer, prompts, job.config.eval, "\n### End", pick_device())
    assert [text.text for text in written] == [row["text"] for row in generations]
    untuned = generate_texts(model.unload(), tokenizer, prompts, job.config.eval, "\n### End", pick_device())
    assert [text.text for text in untuned] != [row["text"] for row in generations], "the adapter does nothing"


def test_one_base_is_loaded_once_for_a_pack(pack: Any) -> None:
    _, said, _ = pack
    assert sum(line.startswith("loaded tiny") for line in said) == 1


def test_rows_are_tokenized_once_for_all_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    tokenize = resident.make_examples
    monkeypatch.setattr(resident, "make_examples", lambda rows, *rest: asked.append(len(rows)) or tokenize(rows, *rest))
    run([config(), config(lora=Lora(r=2)), config(lora=Lora(r=1))], tmp_path)
    split = load_splits(config().data)
    assert sorted(asked) == sorted([len(split.train), len(split.validation)])


def test_generating_at_other_bits_loads_each_base_once(tmp_path: Path) -> None:
    eight = dataclasses.replace(config().eval, quant="8bit")
    configs = [config(eval=eight, quant=Quant(4), lora=Lora(r=r)) for r in (2, 4)]
    jobs, said = run(configs, tmp_path)
    loads = [" ".join(line.split()[:5]) for line in said if line.startswith("loaded")]
    assert loads == ["loaded tiny at 4 bits", "loaded tiny at 8 bits"]
    trial = outcome(jobs[1], tmp_path)
    assert (trial.training.bits, trial.evaluation.bits) == (4, 8)
    assert outcome(jobs[0], tmp_path).training.bits == 8, "the baseline is the base as it generates"


def test_a_diverged_trial_does_not_stop_the_next(tmp_path: Path) -> None:
    wild = config(train=Train(max_steps=3, learning_rate=1e30), lora=Lora(r=4, targets="mlp"))
    jobs, _ = run([wild, config()], tmp_path)
    first, second = outcome(jobs[1], tmp_path), outcome(jobs[2], tmp_path)
    assert first.status == "diverged"
    assert "at step" in (first.reason or "")
    assert second.status == "complete"


def test_a_fault_of_the_evaluation_keeps_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "generate_pack", lambda *args, **kwargs: 1 / 0)
        jobs, _ = run([config()], tmp_path)
    broken = outcome(jobs[1], tmp_path)
    assert (broken.status, broken.reason) == ("failed", "ZeroDivisionError: division by zero")
    trained = files.trial_folder(tmp_path, jobs[1].trial_id).result.stat().st_mtime_ns
    jobs, _ = run([config()], tmp_path)
    assert outcome(jobs[1], tmp_path).status == "complete"
    assert files.trial_folder(tmp_path, jobs[1].trial_id).result.stat().st_mtime_ns == trained, "it trained again"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_out_of_memory_is_an_outcome_and_ends_the_process(error: Exception, tmp_path: Path, monkeypatch: Any) -> None:
    def train_pack(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(pack_module, "train_pack", train_pack)
    jobs, _ = run([config(), config(lora=Lora(r=2))], tmp_path)
    assert [outcome(job, tmp_path).status for job in jobs] == ["complete", "oom", None]


@pytest.mark.slow
def test_a_bias_that_is_trained_makes_the_base_new_for_the_next_trial(tmp_path: Path) -> None:
    shape = Model(name="tiny", tiny="gpt_neox")
    biased = config(model=shape, lora=Lora(r=2, bias="all"))
    plain = config(model=shape, lora=Lora(r=2))
    jobs, said = run([biased, plain], tmp_path)
    alone, _ = run([plain], tmp_path / "alone")
    assert {outcome(job, tmp_path).status for job in jobs} == {"complete"}
    assert sum(line.startswith("loaded tiny") for line in said) == 3  # training and loading the biases each change it
    together = outcome(jobs[-1], tmp_path).training.files["adapter/adapter_model.safetensors"]
    assert together == outcome(alone[-1], tmp_path / "alone").training.files["adapter/adapter_model.safetensors"]


@pytest.mark.parametrize("written_at", ["same", "8bit"])
def test_each_stage_and_each_base_has_a_peak_of_its_own(written_at: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Else an evaluation shows its training's memory, and two bases are held while the second is loaded."""
    said: list[str] = []
    for module, name in (
        (pack_module, "reset_peak_memory"),
        (resident, "reset_peak_memory"),
        (resident, "load_base"),
        (pack_module, "train_pack"),
        (pack_module, "generate_pack"),
    ):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, real=real, **k: said.append(name) or real(*a, **k))
    run([config(eval=dataclasses.replace(config().eval, quant=written_at))], tmp_path)
    assert "train_pack" in said
    for place, what in enumerate(said):
        if what in ("load_base", "generate_pack"):
            since = said[:place][::-1].index("reset_peak_memory")
            assert "train_pack" not in said[place - since : place], said


# --- packs -----------------------------------------------------------------------------------------------------------


def run_together(configs: list[Config], runs: Path) -> tuple[list[Job], list[str], list[str]]:
    """All of a plan in one pack: the jobs, their statuses, and what they said."""
    plan = make_plan(configs, strict=True)
    jobs = [Job.from_json(job_json(each)) for each in plan.trials]
    said: list[str] = []
    reporter = Reporter(lambda event: said.append(event.get("text", "")))
    return jobs, run_pack(jobs, runs, pack_module.PackRunner(runs, "test"), reporter), said


@pytest.mark.slow
def test_a_pack_has_the_results_of_its_trials_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_pack = pack_module.train_pack
    monkeypatch.setattr(pack_module, "train_pack", lambda *args: (time.sleep(1.1), train_pack(*args))[1])
    wide = dataclasses.replace(pick_device(), compute_dtype=torch.float32)  # bf16 rounds otherwise in a pack, and a
    monkeypatch.setattr(pack_module, "pick_device", lambda: wide)  # random model's texts turn with a rounding
    configs = [
        config(),
        config(lora=Lora(r=2, targets="all_linear", dropout=0.3), seed=5),
        config(lora=Lora(r=4, use_dora=True)),
        config(train=Train(max_steps=5, optim="adafactor")),
    ]
    jobs, statuses, said = run_together(configs, tmp_path / "pack")
    assert set(statuses) == {"complete"}
    assert sum(text.startswith("loaded tiny") for text in said) == 1, "what takes TRL's way needs no other base"
    assert any("trains with TRL: lora.use_dora" in text for text in said)
    assert any("train.optim=adafactor" in text for text in said)
    alone, _ = run(configs, tmp_path / "alone")
    assert any("generates with PEFT: its adapter has more than LoRA's matrices" in text for text in said)
    assert not any("optim=adafactor" in text and "writes" in text for text in said)
    trained = [outcome(job, tmp_path / "pack").training for job in jobs if job.kind == "trial"]
    for training in trained[:2]:  # the common work is in a member's time, as the page's timeline shows it
        made = training.provenance
        spent = datetime.fromisoformat(str(made.finished)) - datetime.fromisoformat(str(made.started))
        assert spent.total_seconds() >= 1
    assert [training.pack for training in trained] == [2, 2, 1, 1]
    assert [training.why_trl for training in trained] == [None, None, "lora.use_dora", "train.optim=adafactor"]
    for job, other in zip(jobs, alone, strict=True):
        mine, theirs = outcome(job, tmp_path / "pack"), outcome(other, tmp_path / "alone")
        assert [row["text"] for row in mine.generations] == [row["text"] for row in theirs.generations]
        assert mine.evaluation.validation_loss == pytest.approx(theirs.evaluation.validation_loss, rel=1e-5)
        assert [step["loss"] for step in mine.losses] == pytest.approx([s["loss"] for s in theirs.losses], rel=1e-5)


@pytest.mark.parametrize("what", ["train_pack", "generate_pack"])
def test_common_work_that_fails_costs_no_trial_its_result(what: str, tmp_path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pack_module, what, lambda *args, **kwargs: 1 / 0)
        jobs, statuses, _ = run_together([config(), config(lora=Lora(r=2))], tmp_path)
    assert set(statuses[1:]) == {"apart"}
    assert [outcome(job, tmp_path).status for job in jobs[1:]] == [None, None]
    run([config(), config(lora=Lora(r=2))], tmp_path)
    assert {outcome(job, tmp_path).status for job in jobs} == {"complete"}


def test_a_fault_of_one_member_is_its_own(tmp_path: Path, monkeypatch: Any) -> None:
    plan_training = pack_module.plan_training

    def plan(task: TrialTask, base: Any) -> Any:
        if task.job.config.lora.r == 2:
            raise ValueError("as the test says")
        return plan_training(task, base)

    monkeypatch.setattr(pack_module, "plan_training", plan)
    wild = config(train=Train(max_steps=3, learning_rate=1e30), lora=Lora(r=4, targets="mlp"))
    jobs, statuses, _ = run_together([config(), config(lora=Lora(r=2)), wild], tmp_path)
    assert statuses == ["complete", "complete", "failed", "diverged"]
    assert outcome(jobs[2], tmp_path).reason == "ValueError: as the test says"


def test_a_base_that_looks_back_a_few_tokens_is_trained_by_trl_and_writes_as_peft_does(
    tmp_path: Path, monkeypatch: Any
) -> None:
    own = resident.load_base

    def short_sighted(*arguments: Any) -> Any:
        base = own(*arguments)
        base.config.sliding_window = 20
        return base

    monkeypatch.setattr(resident, "load_base", short_sighted)
    _, statuses, said = run_together([config()], tmp_path)
    assert statuses == ["complete", "complete"]
    reason = "a base that looks back 20 tokens"
    assert len({text for text in said if text.endswith(f": trains with TRL: {reason}")}) == 1
    assert len({text for text in said if text.endswith(f": generates with PEFT: {reason}")}) == 2

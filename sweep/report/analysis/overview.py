"""Facts about a whole sweep, its provenance, and differences between rows that should be equal.

A fact is (label, text). If rows have different values, the text lists all of them.
"""

from collections.abc import Iterable, Mapping

from lora_sweep.runs.records import TrialRecord, TrialResult
from sweep.report.analysis.configurations import look_up
from sweep.report.analysis.differences import find_differences, list_packages
from sweep.report.analysis.load import Sweep
from sweep.report.analysis.ranking import count_trials
from sweep.text import escape_controls, format_count, format_millions, format_setting

Fact = tuple[str, str]
Config = Mapping[str, object]


def list_facts(sweep: Sweep) -> list[Fact]:
    """What all rows share, for the top of a report; unknown facts are left out."""
    facts = [
        ("Rows", count_trials(sweep)),
        ("Base model", describe_model(sweep)),
        ("Data", describe_data(sweep)),
        ("Splits", fill_counts(sweep, "{train_rows} train, {validation_rows} validation, {test_rows} test rows")),
        ("Dropped rows", describe_dropped_rows(sweep)),
        ("Cut rows", fill_counts(sweep, "{cut_rows} of {train_rows} training responses lose their end to max_length")),
        ("Prompt template", join_settings(list_configs(sweep), "data.template")),
        ("Training", describe_training(sweep)),
        ("Evaluation", describe_evaluation(sweep)),
        ("Seed", describe_seeds(sweep)),
        ("Device", join_values(trial.summary.device for trial in sweep.trials)),
        ("Dtype", describe_dtypes(sweep)),
        ("Setbacks", describe_failed_attempts(sweep)),
    ]
    return [(label, text) for label, text in facts if text]


def list_provenance(sweep: Sweep) -> list[Fact]:
    """Where the numbers come from; unknown facts are left out."""
    trainings = list_trainings(sweep)
    texts = [
        (escape_controls(name), join_values(training.provenance.versions.get(name) for training in trainings))
        for name in list_packages(sweep)
    ]
    versions = ", ".join(f"{name} {text}" for name, text in texts if text)
    facts = [
        ("Sweep started", escape_controls(sweep.started)),
        ("Varied", ", ".join(escape_controls(key) for key in sweep.varied)),
        ("Versions", versions),
        ("Git commit", join_values(describe_commit(training) for training in trainings)),
        ("Code", join_values(training.provenance.code for training in trainings)),
        ("Platform", join_values(training.provenance.platform for training in trainings)),
        ("Model fingerprint", join_values(shorten_hash(item.fingerprints.get("model")) for item in trainings)),
        ("Rows fingerprint", join_values(shorten_hash(item.data.rows_fingerprint) for item in trainings)),
    ]
    return [(label, text) for label, text in facts if text]


def list_differences(sweep: Sweep) -> list[tuple[str, list[Fact]]]:
    """Every property with several values that should have one: (name, [(value, the rows that have it)])."""
    differences = []
    for name, marks_by_value in find_differences(sweep, [trial.summary for trial in sweep.trials]).items():
        present = sweep.sources.get(name, [])
        values = [escape_controls(value) + " now" * (value in present) for value in marks_by_value]
        rows = [f"row{'s' * (len(marks) > 1)} {', '.join(marks)}" for marks in marks_by_value.values()]
        differences.append((escape_controls(name), list(zip(values, rows, strict=True))))
    return differences


def name_scorer(sweep: Sweep) -> str:
    """The scorer that computes the quality; ``text`` for an older sweep, which does not record it."""
    return join_settings(list_configs(sweep), "eval.scorer") or "text"


# --- one fact each -----------------------------------------------------------------------------------------------


def describe_model(sweep: Sweep) -> str:
    sizes = join_values(count_parameters(training) for training in list_trainings(sweep))
    sources = join_values(describe_source(group) for group in list_groups(sweep, "model"))
    return ", ".join(part for part in (sources, sizes) if part)


def describe_data(sweep: Sweep) -> str:
    sources = join_values(describe_source(group) for group in list_groups(sweep, "data"))
    return ", ".join(part for part in (sources, fill_counts(sweep, "{rows_read} rows read")) if part)


def describe_source(group: Config) -> str | None:
    """``catalogue (bioregistry==0.15.6)``. A path is shown as its last part, because a report names no folders."""
    if group.get("path"):
        source = str(group["path"]).replace("\\", "/").rstrip("/").rpartition("/")[2]
    elif group.get("hub_id"):
        source = f"{group['hub_id']}@{group['revision']}" if group.get("revision") else str(group["hub_id"])
    elif look_up(group, "wheel.requirement"):
        source = str(look_up(group, "wheel.requirement"))
    else:
        source = "made on the spot" if group.get("tiny") else ""
    name = str(group.get("name") or "")
    details = [detail for detail in (source if source != name else "", group.get("licence")) if name and detail]
    return f"{name} ({'; '.join(map(str, details))})" if details else name or source or None


def count_parameters(training: TrialResult) -> str | None:
    """The number of parameters of the base; only a baseline tells it, because its total includes no adapter."""
    total = training.total_params if training.kind == "baseline" else None
    return None if total is None else f"{format_count(total)} parameters ({format_millions(total)})"


def fill_counts(sweep: Sweep, words: str) -> str:
    """``words`` with its placeholders replaced by the counts of each trial that has recorded all of them."""
    texts = []
    for training in list_trainings(sweep):
        counts = {key: format_count(value) for key, value in vars(training.data).items() if isinstance(value, int)}
        try:
            texts.append(words.format_map(counts))
        except KeyError:
            continue
    return join_values(texts)


def describe_dropped_rows(sweep: Sweep) -> str:
    texts = []
    for training in list_trainings(sweep):
        reasons = training.data.dropped
        if reasons is not None:
            texts.append(", ".join(f"{format_count(rows)} {reason}" for reason, rows in reasons.items()) or "none")
    return join_values(texts)


def describe_training(sweep: Sweep) -> str:
    """The settings of training; a setting with several values lists them."""
    configs = list_configs(sweep, "trial")
    steps = join_values(format_count(item.summary.steps) for item in sweep.trials if item.summary.steps is not None)
    names = {
        "batch": "train.per_device_train_batch_size",
        "accumulation": "train.gradient_accumulation_steps",
        "learning rate": "train.learning_rate",
        "schedule": "train.lr_scheduler_type",
        "alpha": "lora.alpha",
        "dropout": "lora.dropout",
        "max_length": "train.max_length",
        "loss on": "train.loss_on",
    }
    parts = [f"{name} {text}" for name, path in names.items() if (text := join_settings(configs, path))]
    parts = [part for part in parts if part != "accumulation 1"]
    return ", ".join(([f"{steps} steps"] if steps else []) + parts)


def describe_evaluation(sweep: Sweep) -> str:
    configs = list_configs(sweep)
    prompts = join_settings(configs, "eval.prompts")
    if not prompts:
        return ""
    fixed_prompts = [look_up(config, "eval.fixed_prompts") for config in configs]
    fixed = join_values(str(len(prompts)) for prompts in fixed_prompts if isinstance(prompts, list)) or "no"
    decoding = join_values("sampled" if look_up(config, "eval.do_sample") else "greedy" for config in configs)
    bits = join_settings(configs, "eval.quant")
    base_bits = "the same bits as in training" if bits == "same" else bits
    scorer = name_scorer(sweep)
    scored_by = "" if scorer == "text" else f", scored by {scorer}"
    return (
        f"{prompts} held-out and {fixed} fixed prompts, {decoding}, at most "
        f"{join_settings(configs, 'eval.max_new_tokens')} new tokens, base in {base_bits}{scored_by}"
    )


def describe_seeds(sweep: Sweep) -> str:
    seeds = join_settings(list_configs(sweep, "trial"), "seed")
    return seeds + ("" if " / " in seeds or not seeds else " (one seed: the noise of seeds is not measured)")


def describe_dtypes(sweep: Sweep) -> str:
    trainings = list_trainings(sweep)
    base = join_values(training.provenance.dtype for training in trainings)
    adapter = join_values(training.provenance.adapter_dtype for training in trainings)
    return f"{base} (adapter {adapter})" if base and adapter else base


def describe_commit(training: TrialResult) -> str | None:
    commit = training.provenance.git_commit
    if commit is None:
        return None
    return f"{commit[:12]} with uncommitted changes" if training.provenance.git_dirty else commit[:12]


def describe_failed_attempts(sweep: Sweep) -> str:
    """``row 3: its worker died twice; row 5: batch halved once (out of memory)``"""
    texts = [(trial.summary.mark, describe_attempts(trial.record)) for trial in sweep.trials]
    return "; ".join(f"row {mark}: {text}" for mark, text in texts if text)


def describe_attempts(record: TrialRecord) -> str:
    """What went wrong before the trial ended; "" if nothing did."""
    step = record.training.resumed_from
    parts = [
        ("its worker died {}", count_times(record.training.setbacks)),
        ("batch halved {} (out of memory)", count_times(record.training.halved)),
        ("batch of its evaluation halved {} (out of memory)", count_times(record.evaluation.halved)),
        ("resumed from step {}", format_count(step) if step else ""),
    ]
    return ", ".join(text.format(times) for text, times in parts if times)


def count_times(amount: int | None) -> str:
    """``once``, ``twice``, ``3 times``; "" for none."""
    if not amount or amount < 1:
        return ""
    return {1: "once", 2: "twice"}.get(amount, f"{format_count(amount)} times")


def shorten_hash(fingerprint: str | None) -> str | None:
    return None if fingerprint is None else fingerprint[:12]


# --- over all trials ---------------------------------------------------------------------------------------------


def list_trainings(sweep: Sweep) -> list[TrialResult]:
    return [trial.record.training for trial in sweep.trials]


def list_configs(sweep: Sweep, kind: str | None = None) -> list[Config]:
    return [trial.record.config for trial in sweep.trials if kind in (None, trial.summary.kind)]


def list_groups(sweep: Sweep, group: str) -> list[Config]:
    return [part for config in list_configs(sweep) if isinstance(part := look_up(config, group), dict)]


def join_settings(configs: Iterable[Config], path: str) -> str:
    """The different values of a config key: ``a / b``."""
    return join_values(format_setting(value) for config in configs if (value := look_up(config, path)) is not None)


def join_values(texts: Iterable[str | None]) -> str:
    """The different texts, in the order of their first appearance: ``a / b``."""
    return " / ".join(dict.fromkeys(escape_controls(text) for text in texts if text))

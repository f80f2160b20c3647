"""What is true of a whole sweep: its facts, its provenance, and where its rows differ though they should not.

Owns the sentences; ``show`` owns how a number looks. A fact is (label, text), and a text that differs between rows
lists what there is.
"""

from collections.abc import Iterable
from typing import Any

from lora_sweep.runs.records import TrialResult
from sweep.report.analysis.differences import differing, packages
from sweep.report.analysis.load import Sweep, dig
from sweep.report.analysis.ranking import tally
from sweep.text import escape_controls, format_count, format_millions, format_setting

Fact = tuple[str, str]


def facts(sweep: Sweep) -> list[Fact]:
    """What all rows share, for the top of a report; unknown ones are left out."""
    found = [
        ("Rows", tally(sweep)),
        ("Base model", _model(sweep)),
        ("Data", _data(sweep)),
        ("Splits", _data_counts(sweep, "{train_rows} train, {validation_rows} validation, {test_rows} test rows")),
        ("Dropped rows", _dropped(sweep)),
        ("Cut rows", _data_counts(sweep, "{cut_rows} of {train_rows} training responses lose their end to max_length")),
        ("Prompt template", _spread(_configs(sweep), "data.template")),
        ("Training", _training(sweep)),
        ("Evaluation", _evaluation(sweep)),
        ("Seed", _seeds(sweep)),
        ("Device", _several(row["device"] for row in sweep.rows)),
        ("Dtype", _dtypes(sweep)),
        ("Setbacks", _setbacks(sweep)),
    ]
    return [(label, text) for label, text in found if text]


def provenance(sweep: Sweep) -> list[Fact]:
    """Where the numbers come from; unknown ones are left out."""
    trainings = [result.training for result in sweep.results]
    texts = [
        (escape_controls(name), _several(training.provenance.versions.get(name) for training in trainings))
        for name in packages(sweep)
    ]
    versions = ", ".join(f"{name} {text}" for name, text in texts if text)
    found = [
        ("Sweep started", escape_controls(sweep.started)),
        ("Varied", ", ".join(escape_controls(key) for key in sweep.varied)),
        ("Versions", versions),
        ("Git commit", _several(_commit(training) for training in trainings)),
        ("Code", _several(training.provenance.code for training in trainings)),
        ("Platform", _several(training.provenance.platform for training in trainings)),
        ("Model fingerprint", _several(_short(training.fingerprints.get("model")) for training in trainings)),
        ("Rows fingerprint", _several(_short(training.data.rows_fingerprint) for training in trainings)),
    ]
    return [(label, text) for label, text in found if text]


def differences(sweep: Sweep) -> list[tuple[str, list[Fact]]]:
    """What should be one value and is not: (name, [(value, the rows that have it)]), unknown values aside."""
    found = []
    for name, marks in differing(sweep, sweep.rows).items():
        now = sweep.sources.get(name, [])
        values = [escape_controls(value) + " now" * (value in now) for value in marks]
        rows = [f"row{'s' * (len(each) > 1)} {', '.join(each)}" for each in marks.values()]
        found.append((escape_controls(name), list(zip(values, rows, strict=True))))
    return found


def _model(sweep: Sweep) -> str:
    sizes = _several(_parameters(result.training) for result in sweep.results)
    return ", ".join(part for part in (_several(map(_source, _groups(sweep, "model"))), sizes) if part)


def _data(sweep: Sweep) -> str:
    read = _data_counts(sweep, "{rows_read} rows read")
    return ", ".join(part for part in (_several(map(_source, _groups(sweep, "data"))), read) if part)


def _source(group: dict[str, Any]) -> str | None:
    """``catalogue (bioregistry==0.15.6)``; a folder or file by its last name, for a report has no machine's paths."""
    if group.get("path"):
        source = str(group["path"]).replace("\\", "/").rstrip("/").rpartition("/")[2]
    elif group.get("hub_id"):
        source = f"{group['hub_id']}@{group['revision']}" if group.get("revision") else str(group["hub_id"])
    elif dig(group, "wheel.requirement"):
        source = str(dig(group, "wheel.requirement"))
    else:
        source = "made on the spot" if group.get("tiny") else ""
    name = str(group.get("name") or "")
    details = [detail for detail in (source if source != name else "", group.get("licence")) if name and detail]
    return f"{name} ({'; '.join(map(str, details))})" if details else name or source or None


def _parameters(training: TrialResult) -> str | None:
    """Of a baseline, for its total holds no adapter."""
    total = training.total_params if training.kind == "baseline" else None
    return None if total is None else f"{format_count(total)} parameters ({format_millions(total)})"


def _data_counts(sweep: Sweep, words: str) -> str:
    """``words`` filled from the data part of each result that has all of its numbers."""
    texts = []
    for result in sweep.results:
        counts = {key: value for key, value in vars(result.training.data).items() if isinstance(value, int)}
        try:
            texts.append(words.format_map({key: format_count(value) for key, value in counts.items()}))
        except KeyError:
            continue
    return _several(texts)


def _dropped(sweep: Sweep) -> str:
    texts = []
    for result in sweep.results:
        reasons = result.training.data.dropped
        if reasons is not None:
            parts = [f"{format_count(rows)} {reason}" for reason, rows in reasons.items()]
            texts.append(", ".join(parts) or "none")
    return _several(texts)


def _training(sweep: Sweep) -> str:
    """The settings of training that no column shows, or that all rows share."""
    configs = _configs(sweep, "trial")
    steps = _several(format_count(row["steps"]) for row in sweep.rows if row.get("steps") is not None)
    words = {
        "batch": "train.per_device_train_batch_size",
        "accumulation": "train.gradient_accumulation_steps",
        "learning rate": "train.learning_rate",
        "schedule": "train.lr_scheduler_type",
        "alpha": "lora.alpha",
        "dropout": "lora.dropout",
        "max_length": "train.max_length",
        "loss on": "train.loss_on",
    }
    parts = [f"{name} {text}" for name, path in words.items() if (text := _spread(configs, path))]
    parts = [part for part in parts if part != "accumulation 1"]
    return ", ".join(([f"{steps} steps"] if steps else []) + parts)


def _evaluation(sweep: Sweep) -> str:
    configs = _configs(sweep)
    prompts = _spread(configs, "eval.prompts")
    if not prompts:
        return ""
    fixed_prompts = [dig(config, "eval.fixed_prompts") for config in configs]
    fixed = _several(str(len(prompts)) for prompts in fixed_prompts if isinstance(prompts, list)) or "no"
    decoding = _several("sampled" if dig(config, "eval.do_sample") else "greedy" for config in configs)
    bits = _spread(configs, "eval.quant")
    by = "" if scorer(sweep) == "text" else f", scored by {scorer(sweep)}"
    return (
        f"{prompts} held-out and {fixed} fixed prompts, {decoding}, at most "
        f"{_spread(configs, 'eval.max_new_tokens')} new tokens, base in "
        f"{'the same bits as in training' if bits == 'same' else bits}{by}"
    )


def scorer(sweep: Sweep) -> str:
    """What says what quality is; of an older sweep, the text's own."""
    return _spread(_configs(sweep), "eval.scorer") or "text"


def _seeds(sweep: Sweep) -> str:
    seeds = _spread(_configs(sweep, "trial"), "seed")
    return seeds + ("" if " / " in seeds or not seeds else " (one seed: its noise is not measured)")


def _dtypes(sweep: Sweep) -> str:
    trainings = [result.training for result in sweep.results]
    base = _several(training.provenance.dtype for training in trainings)
    adapter = _several(training.provenance.adapter_dtype for training in trainings)
    return f"{base} (adapter {adapter})" if base and adapter else base


def _commit(training: TrialResult) -> str | None:
    commit = training.provenance.git_commit
    if commit is None:
        return None
    return f"{commit[:12]} with uncommitted changes" if training.provenance.git_dirty else commit[:12]


def _setbacks(sweep: Sweep) -> str:
    """``row 3: its worker died twice; row 5: batch halved once (out of memory)``"""
    found = []
    for row, result in zip(sweep.rows, sweep.results, strict=True):
        training, evaluation = result.training, result.evaluation
        step = training.resumed_from
        words = [
            ("its worker died {}", _times(training.setbacks)),
            ("batch halved {} (out of memory)", _times(training.halved)),
            ("batch of its evaluation halved {} (out of memory)", _times(evaluation.halved)),
            ("resumed from step {}", format_count(step) if step else ""),
        ]
        said = ", ".join(text.format(value) for text, value in words if value)
        found += [f"row {row['mark']}: {said}"] if said else []
    return "; ".join(found)


def _times(value: int | None) -> str:
    amount = value or 0
    return "" if amount < 1 else {1: "once", 2: "twice"}.get(amount, f"{format_count(amount)} times")


def _short(fingerprint: Any) -> str | None:
    return None if fingerprint is None else str(fingerprint)[:12]


def _configs(sweep: Sweep, kind: str | None = None) -> list[dict[str, Any]]:
    pairs = zip(sweep.rows, sweep.results, strict=True)
    return [result.config for row, result in pairs if kind in (None, row["kind"])]


def _groups(sweep: Sweep, group: str) -> list[dict[str, Any]]:
    return [part for config in _configs(sweep) if isinstance(part := dig(config, group), dict)]


def _spread(trees: Iterable[dict[str, Any]], path: str) -> str:
    return _several(format_setting(value) for tree in trees if (value := dig(tree, path)) is not None)


def _several(texts: Iterable[str | None]) -> str:
    """The different texts, in order of first appearance: ``a / b``."""
    return " / ".join(dict.fromkeys(escape_controls(str(text)) for text in texts if text))

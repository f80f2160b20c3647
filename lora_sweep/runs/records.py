"""Typed records of the JSON files of a trial. Reading is tolerant: a value that is absent or odd is unknown (None).

A field is named as the key of its file. A file of another version, a torn one and one that was edited by hand make a
record too: nothing here raises.
"""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar

from lora_sweep.runs.files import JsonObject

MAX_NUMBER = 1e18  # no number of a trial comes near it; JSON can hold integers that no float can hold

Record = TypeVar("Record")


class Generation(TypedDict, total=False):
    """A row of generations.jsonl, as a worker writes it: one prompt and the text that was written for it."""

    prompt_id: str  # validation-0, test-0 or fixed-0
    product: str
    category: str | None
    prompt: str  # the whole prompt, in its template
    text: str
    finished: bool  # whether the text ended by itself
    new_tokens: int
    reference: str | None
    response_nll: float | None  # reference loss, in nats a token


class LossRow(TypedDict, total=False):
    """A row of losses.jsonl, as a worker writes it: one optimizer step."""

    step: int  # from 1
    loss: float  # nats a token
    learning_rate: float
    grad_norm: float
    epoch: float


@dataclass(frozen=True)
class Provenance:
    """Where and with what a result was made. Times are ISO 8601 with a time zone."""

    versions: dict[str, str] = field(default_factory=dict)  # package: version
    code: str | None = None  # hash of our own statements that make numbers
    git_commit: str | None = None
    git_dirty: bool | None = None
    device: str | None = None
    dtype: str | None = None
    adapter_dtype: str | None = None
    platform: str | None = None
    started: str | None = None
    finished: str | None = None

    @classmethod
    def from_json(cls, content: object) -> "Provenance":
        return read_record(cls, content)

    @property
    def is_recorded(self) -> bool:
        return self != Provenance()


@dataclass(frozen=True)
class DataCounts:
    """The rows that a trial was given."""

    fingerprint: str | None = None
    rows_fingerprint: str | None = None
    rows_read: int | None = None
    dropped: dict[str, float | None] | None = None  # reason: how many rows
    train_rows: int | None = None
    validation_rows: int | None = None
    test_rows: int | None = None
    cut_rows: int | None = None  # training rows that lose their end to max_length
    train_tokens: int | None = None
    longest_row: int | None = None  # tokens
    longest_prompt: int | None = None  # tokens
    cut_validation_rows: int | None = None


@dataclass(frozen=True)
class TrialResult:
    """The content of a trial's result.json: how its training ended. Every field is unknown before the file exists.

    The result of a failure holds ids, status, reason and what planning knew. A baseline trains nothing: its result
    holds no number of a training.
    """

    trial_id: str | None = None
    eval_id: str | None = None  # only in the result of a failure
    kind: str | None = None  # trial or baseline
    status: str | None = None  # one of results.STATUSES
    reason: str | None = None  # why it ended so, in words
    bits: int | None = None  # of the base while training (a baseline: while generating): 4, 8, 16 or 32
    identity: dict[str, Any] = field(default_factory=dict)  # what the hash that names the folder was made of
    fingerprints: dict[str, str] = field(default_factory=dict)  # of the model and the data
    targets: str | list[str] | None = None  # lora.targets, as it was configured
    target_modules: list[str] | None = None
    trainable_params: int | None = None
    total_params: int | None = None
    data: DataCounts = field(default_factory=DataCounts)
    template: str | None = None  # only in the result of a baseline
    steps: int | None = None  # optimizer steps
    resumed_from: int | None = None  # the step at which the last attempt began
    train_loss: float | None = None  # nats a token, mean of the last tenth of the steps
    train_seconds: float | None = None
    tokens_seen: int | None = None  # without padding
    tokens_per_second: float | None = None
    gpu_utilization_percent: float | None = None
    per_device_train_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None
    adapter_bytes: int | None = None
    pack: int | None = None  # how many trials trained together
    why_trl: str | None = None  # why TRL's trainer trained it and not a pack
    setbacks: int | None = None  # failed attempts: how often its worker died
    halved: int | None = None  # how often its batch was halved because memory ran out
    provenance: Provenance = field(default_factory=Provenance)
    files: dict[str, str] = field(default_factory=dict)  # path below the trial's folder: sha256
    seal: str | None = None  # sha256 of the content without the seal

    @classmethod
    def from_json(cls, content: object) -> "TrialResult":
        return read_record(cls, content)


@dataclass(frozen=True)
class EvaluationResult:
    """The content of an evaluation's result.json. Every field is unknown before the file exists."""

    trial_id: str | None = None  # only in the result of a failure, as kind
    eval_id: str | None = None
    kind: str | None = None
    status: str | None = None  # one of results.STATUSES
    reason: str | None = None  # why it ended so, in words
    bits: int | None = None  # of the base while generating: 4, 8, 16 or 32
    eval: JsonObject = field(default_factory=dict)  # the settings of the evaluation, as in the configuration
    adapter: str | None = None  # results.hash_adapter of the adapter that wrote the texts; None of a baseline
    validation_loss: float | None = None  # nats a token
    validation_rows: int | None = None
    neutral_loss: float | None = None  # nats a token, on a text that no data set holds
    generate_seconds: float | None = None
    new_tokens: int | None = None
    generate_tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)  # means over the prompts
    halved: int | None = None  # how often its batch was halved because memory ran out
    provenance: Provenance = field(default_factory=Provenance)
    files: dict[str, str] = field(default_factory=dict)  # path below the evaluation's folder: sha256
    seal: str | None = None  # sha256 of the content without the seal

    @classmethod
    def from_json(cls, content: object) -> "EvaluationResult":
        return read_record(cls, content)


@dataclass(frozen=True)
class EvaluationScores:
    """The content of scores.json. A metric is None where it has no number."""

    prompts: dict[str, dict[str, float | None]] = field(default_factory=dict)  # prompt_id: its metrics
    means: dict[str, float | None] = field(default_factory=dict)  # over the prompts that have a number
    references: dict[str, float | None] = field(default_factory=dict)  # means of the references scored as texts

    @classmethod
    def from_json(cls, content: object) -> "EvaluationScores":
        rest = read_record(cls, {**content, "prompts": None} if isinstance(content, dict) else None)
        rows = content.get("prompts") if isinstance(content, dict) else None
        prompts: dict[str, dict[str, float | None]] = {}
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict):
                numbers = {name: read_number(value) for name, value in row.items() if name != "prompt_id"}
                prompts.setdefault(str(row.get("prompt_id")), numbers)
        return dataclasses.replace(rest, prompts=prompts)


@dataclass(frozen=True)
class TrialRecord:
    """A trial with one evaluation, as its files tell: a row of a sweep.

    Attributes:
        kind: ``trial`` or ``baseline``.
        status: one of results.STATUSES, or None while there is no outcome; ``reason`` explains it in words.
        config: the configuration as JSON, with the evaluation's own ``eval``; {} where it cannot be read.
    """

    trial_id: str
    eval_id: str
    kind: str = "trial"
    label: str = ""
    status: str | None = None
    reason: str | None = None
    config: JsonObject = field(default_factory=dict)
    training: TrialResult = field(default_factory=TrialResult)
    evaluation: EvaluationResult = field(default_factory=EvaluationResult)
    scores: EvaluationScores = field(default_factory=EvaluationScores)
    generations: list[Generation] = field(default_factory=list)
    losses: list[LossRow] = field(default_factory=list)

    @property
    def metric_means(self) -> dict[str, float | None]:
        """The mean of each metric over the prompts that have a number."""
        return self.scores.means or self.evaluation.metrics

    def metric_mean(self, name: str) -> float | None:
        """The mean of one metric; None where no prompt has a number."""
        value = self.metric_means.get(name)
        return None if value is None else float(value)


# --- reading -----------------------------------------------------------------------------------------------------


def read_record(kind: type[Record], content: object) -> Record:
    """Make a record from JSON. A field whose value is absent, or not of the field's type, keeps its default."""
    if not isinstance(content, dict):
        return kind()
    fields = dataclasses.fields(kind)  # type: ignore[arg-type] # every record is a dataclass
    values = {field.name: convert_value(content.get(field.name), field.type) for field in fields}
    return kind(**{name: value for name, value in values.items() if value is not None})


def convert_value(value: object, hint: Any) -> Any:
    """``value`` where it fits the type ``hint``, else None."""
    if hint == float | None:
        return read_number(value)
    if hint == int | None:
        return read_integer(value)
    if hint == dict[str, str]:
        return {str(key): str(item) for key, item in value.items() if item is not None} if is_dict(value) else None
    if hint in (dict[str, float | None], dict[str, float | None] | None):
        return {str(key): read_number(item) for key, item in value.items()} if is_dict(value) else None
    if dataclasses.is_dataclass(hint):
        return read_record(hint, value) if isinstance(hint, type) else None
    kinds = tuple(typing.get_origin(part) or part for part in typing.get_args(hint) or (hint,))
    if hint in (JsonObject, dict[str, Any]):
        kinds = (dict,)
    return value if isinstance(value, kinds) else None


def is_dict(value: object) -> typing.TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def read_number(value: object) -> float | int | None:
    """``value`` when it is a finite number of a plausible size, True as 1, else None."""
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, int | float) and abs(value) < MAX_NUMBER else None


def read_integer(value: object) -> int | None:
    """``value`` when it is a whole number of a plausible size, else None."""
    number = read_number(value)
    return int(number) if number is not None and number == int(number) else None

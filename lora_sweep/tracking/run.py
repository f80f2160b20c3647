"""A mirror of the results for people who look at a tracker: a run a trial, a run a baseline, a run a sweep.

Chooses the backend, and owns what all of them share: what a run is called, how values are cleaned, and that nothing
raises. Whatever goes wrong in a tracker becomes one printed line; the run is then not mirrored further, and the trial
goes on. Nothing is ever read from a mirror. Knows no torch and no metric; each backend imports its library when used.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from lora_sweep.config.schema import Tracking
from lora_sweep.runs.files import report_folder
from lora_sweep.runs.records import EvaluationResult, TrialResult
from lora_sweep.scoring.intervals import mean_interval
from lora_sweep.scoring.metrics import SHARE_SCORERS
from lora_sweep.tracking import mlflow_mirror, trackio_mirror, wandb_mirror
from lora_sweep.tracking.tables import Chart, charts_of, tables_of

NAMES = {"wandb": "W&B", "mlflow": "MLflow", "trackio": "Trackio"}
REPORT_FILES = ("report.html", "report.md", "report.csv", "report.json")

# Columns of tables that people read first.
FIRST = ("label", "prompt_id", "product", "prompt", "text", "reference", "finished", "quality", "repetition_4gram")
SECRET = r"(?:token|secret|password|api_?key)"
NUMBER = re.compile(r"(?P<before>\w+=)?(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d{1,3})?)(?P<after>bit)?")
WIDEST = 12  # digits; a number with more stays as it is


class Mirror(Protocol):
    """A run of a backend. Values arrive clean; any method may raise."""

    def log(self, point: dict[str, float], step: int) -> None: ...

    def summarize(self, values: dict[str, Any]) -> None: ...

    def table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None: ...

    def chart(self, kind: str, key: str, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """``scatter`` or ``bar`` of the first two columns."""

    def files(self, name: str, paths: list[Path]) -> None: ...

    def end(self, failed: str | None) -> None:
        """``failed``: how and why, of a run that did."""


class Run:
    """One run of a tracker, or, made with None, nothing at all. No method raises."""

    def __init__(self, mirror: Mirror | None, backend: str = "none") -> None:
        self._mirror, self._backend = mirror, backend
        self._warned = False

    def log_step(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add a point to each curve, as ``train/<name>``; None is none. ``step`` counts optimizer steps, from 1."""
        if not self._warned:
            point = {f"train/{key}": value for key, value in values.items() if value is not None}
            self._attempt(lambda mirror: mirror.log(point, step))

    def log_table(self, key: str, rows: list[dict[str, Any]]) -> None:
        """``rows`` as a table with the columns of all of them, those of FIRST in front."""
        present = list(dict.fromkeys(column for row in rows for column in row))
        columns = [column for column in FIRST if column in present]
        columns += [column for column in present if column not in columns]
        data = [[cell(row.get(column)) for column in columns] for row in rows]
        self._attempt(lambda mirror: mirror.table(key, [valid(column) for column in columns], data))

    def log_chart(self, chart: Chart) -> None:
        data = [[cell(value) for value in row] for row in chart.rows]
        columns = [valid(column) for column in chart.columns]
        self._attempt(lambda mirror: mirror.chart(chart.kind, chart.key, valid(chart.title), columns, data))

    def log_files(self, name: str, paths: list[Path]) -> None:
        self._attempt(lambda mirror: mirror.files(name, paths))

    def finish(self, summary: dict[str, Any], generations: list[dict[str, Any]] | None = None) -> None:
        """End the run as finished, with numbers as its summary and, when given, a table of what it wrote."""
        # Each is tried whatever became of the others: a run left open would be reported as running.
        self._summarize({"status": "complete", "reason": None, **summary})
        if generations:
            self.log_table("generations", generations)
        self._end(None)

    def fail(self, status: str, reason: str) -> None:
        """End the run as failed; its summary says how and why."""
        self._summarize({"status": status, "reason": reason})
        self._end(valid(f"{status}: {reason}"))

    def _summarize(self, summary: dict[str, Any]) -> None:
        self._attempt(lambda mirror: mirror.summarize(plain(summary)))

    def _end(self, failed: str | None) -> None:
        self._attempt(lambda mirror: mirror.end(failed))
        self._mirror = None

    def _attempt(self, action: Callable[[Mirror], None]) -> None:
        if self._mirror is None:
            return
        try:
            action(self._mirror)
        except Exception as error:  # noqa: BLE001 - a mirror's fault is no fault of the trial
            if not self._warned:
                warn(self._backend, "a run is not mirrored completely", error)
            self._warned = True


def open_run(
    tracking: Tracking,
    runs_dir: Path,
    *,
    group: str,
    name: str,
    run_id: str,
    job_type: str,
    config: dict[str, Any],
    tags: list[str],
) -> Run:
    """A run of the tracker, or one that does nothing. Several may be open at once; one ``run_id`` is one run."""
    module = module_of(tracking)
    if module is None:
        return Run(None)
    try:
        mirror = module.open_run(
            tracking,
            runs_dir,
            group=group,
            name=valid(name),
            run_id=run_id,
            job_type=job_type,
            config=plain(config),
            tags=[valid(tag) for tag in tags],
            warn=partial(warn, tracking.backend),
        )
    except Exception as error:  # noqa: BLE001 - a mirror's fault is no fault of the trial
        warn(tracking.backend, f"the run {name!r} is not mirrored", error)
        return Run(None)
    return Run(mirror, tracking.backend)


def log_sweep(
    tracking: Tracking,
    runs_dir: Path,
    *,
    name: str,
    command: str,
    rows: list[dict[str, Any]],
    charts: dict[str, Any] | None = None,
) -> None:
    """The sweep's own run: tables, charts, the report's files, and what is best as its summary.

    Args:
        rows: those of report.csv; ``kind``, ``status``, ``quality``, ``label`` and ``drift`` are looked at.
        charts: what the report's page holds (``page_data``); what is missing in it is left out.
    """
    run = open_run(
        tracking,
        runs_dir,
        group=name,
        name=f"sweep {name}",
        run_id=f"sweep-{name}",
        job_type="sweep",
        config={"sweep": name, "command": re.sub(rf"(?i)({SECRET}=)\S+", r"\1***", command)},
        tags=["sweep"],
    )
    if rows:
        run.log_table("trials", rows)
    for key, table in tables_of(charts or {}).items():
        run.log_table(key, table)
    for chart in charts_of(charts or {}):
        run.log_chart(chart)
    written = [path for file in REPORT_FILES if (path := report_folder(runs_dir, name) / file).is_file()]
    if written:
        run.log_files(f"report-{name}", written)
    run.finish({**best_of(rows), **recommended_of(charts or {})})


def recommended_of(charts: dict[str, Any]) -> dict[str, Any]:
    """The row that the report recommends, with its interval; {} where there is none."""
    chosen = next((row for row in charts.get("rows", []) if row.get("recommended")), None)
    names = {"label": "label", "quality": "quality", "quality_ci_low": "low", "quality_ci_high": "high"}
    return {f"recommended_{key}": chosen.get(name) for key, name in names.items()} if chosen else {}


def best_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many rows there are, and the highest quality of a trial and of a baseline."""
    complete = [row for row in rows if row.get("status") == "complete"]
    ranked = [row for row in complete if isinstance(row.get("quality"), int | float)]
    ranked = [row for row in ranked if not {"model", "data"} & set(row.get("drift") or ())]  # made from something else
    summary: dict[str, Any] = {"trials": len(rows), "complete": len(complete)}
    for kind, key in (("trial", "best"), ("baseline", "baseline")):
        best = max((row for row in ranked if row.get("kind") == kind), key=lambda row: row["quality"], default=None)
        if best is not None:
            summary |= {f"{key}_quality": best["quality"], f"{key}_label": best.get("label")}
    return summary


def closing_line(tracking: Tracking, runs_dir: Path) -> str | None:
    """The command that uploads or shows what was written; None when there is nothing to say."""
    module = module_of(tracking)
    try:
        line = module.closing_line(tracking, runs_dir) if module else None
    except Exception as error:  # noqa: BLE001 - a mirror's fault is no fault of the sweep
        line = f"cannot be asked: {brief(error)}"
    return f"{NAMES[tracking.backend]}: {line}" if line else None


def is_logged_in(tracking: Tracking) -> bool:
    """Whether runs go to W&B's server. Asks no server and no person."""
    return tracking.backend == "wandb" and wandb_mirror.effective_mode(tracking) == "online"


def module_of(tracking: Tracking) -> ModuleType | None:
    """The backend's module; None where there is no mirror."""
    modules = {"wandb": wandb_mirror, "mlflow": mlflow_mirror, "trackio": trackio_mirror}
    return modules.get(tracking.backend)


# --- names and values ------------------------------------------------------------------------------------------


def run_name(label: str, labels: list[str]) -> str:
    """``label`` with its numbers padded to the widest of ``labels``, so that names sort as text: ``r=08 attn 04bit``.

    Numbers are compared within their key; 1e-05 becomes 0.00001. Trackers sort names letter by letter.
    """
    widths: dict[tuple[str, str], int] = {}
    for word in " ".join([label, *labels]).split():
        part = parts(word)
        if part:
            before, number, after = part
            widths[before, after] = max(widths.get((before, after), 0), len(number.partition(".")[0]))
    return " ".join(padded(word, widths) for word in label.split(" "))


def padded(word: str, widths: dict[tuple[str, str], int]) -> str:
    part = parts(word)
    if part is None:
        return word
    before, number, after = part
    missing = widths[before, after] - len(number.partition(".")[0])
    return f"{before}{'0' * missing}{number}{after}"


def parts(word: str) -> tuple[str, str, str] | None:
    """``lr=``, ``0.00001`` and nothing of ``lr=1e-05``; None of a word that is no number, or a very long one."""
    match = NUMBER.fullmatch(word)
    if match is None or not (match["before"] or match["after"]):
        return None
    number, value = match["number"], Decimal(match["number"])
    if not -WIDEST <= value.adjusted() < WIDEST:
        return None
    return match["before"] or "", f"{value:f}" if "e" in number else number, match["after"] or ""


def numbers_of(
    kind: str, training: TrialResult, evaluation: EvaluationResult, prompts: list[dict[str, Any]]
) -> dict[str, Any]:
    """The numbers of a trial's two results, and the interval of its quality over the prompts.

    Of those that both have, as memory and bits, a trial's are the training's and a baseline's the evaluation's, as in
    the report.
    """
    of_training, of_evaluation = result_numbers(training), result_numbers(evaluation)
    numbers = {**of_evaluation, **of_training} if kind == "trial" else {**of_training, **of_evaluation}
    quality = [prompt["quality"] for prompt in prompts if prompt.get("quality") is not None]
    scorer = evaluation.eval.get("scorer")
    interval = mean_interval(quality, scale=100, is_share=scorer in SHARE_SCORERS)
    low, high = interval or (None, None)
    return {**numbers, "eval_bits": evaluation.bits, "quality_ci_low": low, "quality_ci_high": high}


def result_numbers(result: TrialResult | EvaluationResult) -> dict[str, float]:
    """The fields of a result that are numbers."""
    return {name: value for name, value in vars(result).items() if isinstance(value, int | float)}


def plain(value: Any, key: str = "") -> Any:
    """``value`` as trackers take it: valid Unicode, keys that are text, and no secret under a key named like one."""
    if isinstance(value, dict):
        return {str(name): plain(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, key) for item in value]
    if isinstance(value, str):
        return "***" if re.search(rf"(?i){SECRET}$", key) else valid(value)
    return value if value is None or isinstance(value, bool | int | float) else valid(str(value))


def cell(value: Any) -> Any:
    """``value`` as a table's cell: a list becomes words with commas, and a number that is not finite is unknown."""
    if isinstance(value, list | tuple):
        return valid(", ".join(str(item) for item in value))
    if isinstance(value, dict):
        return valid(json.dumps(value, ensure_ascii=False, default=str))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return plain(value)


def valid(text: str) -> str:
    """``text`` with lone surrogates, which no UTF-8 file can hold, replaced by question marks."""
    return text.encode("utf-8", "replace").decode()


def brief(error: BaseException) -> str:
    """The first line of an error, with its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def warn(backend: str, text: str, error: BaseException | None = None) -> None:
    """One line for the person at the terminal."""
    print(f"{NAMES[backend]}: {text}" + (f": {brief(error)}" if error else ""), flush=True)

"""The tables and charts of a sweep's run, made from the data of the report's page.

Knows the names in that data (``page_data``), but no tracker. Parts that are missing in the data are left out: a
tracker may show less than the report, but nothing that differs from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

PageData: TypeAlias = Mapping[str, Any]  # parsed JSON of the report's page
TableRows: TypeAlias = list[dict[str, object]]

COSTS = {
    "trainable_params": "trainable parameters",
    "train_seconds": "seconds of training",
    "peak_memory_bytes": "peak memory in bytes",
}


@dataclass(frozen=True)
class Chart:
    """A chart of the first two columns. The other columns appear in its table only.

    Attributes:
        kind: ``scatter`` or ``bar``.
    """

    kind: str
    key: str
    title: str
    columns: list[str]
    rows: Sequence[Sequence[object]]


def make_tables(page: PageData) -> dict[str, TableRows]:
    """``ranking``, with a row for each configuration, and ``side_by_side``, with a row for each prompt."""
    tables = {"ranking": list_ranking(page), "side_by_side": list_texts_side_by_side(page)}
    return {key: rows for key, rows in tables.items() if rows}


def make_charts(page: PageData) -> list[Chart]:
    """Quality against each cost, and the main effect of each factor."""
    charts = [*(draw_pareto(page, cost) for cost in COSTS), *draw_main_effects(page)]
    return [chart for chart in charts if chart.rows]


def list_ranking(page: PageData) -> TableRows:
    """The configurations with their intervals and verdicts."""
    keys = ("mark", "label", "status", "quality", "low", "high", "tied", "verdict", "recommended", *COSTS)
    return [{key: row.get(key) for key in keys} for row in page.get("rows", [])]


def list_texts_side_by_side(page: PageData) -> TableRows:
    """The texts that are inside the page: a row for each prompt, a column for each configuration."""
    headings = {str(row.get("mark")): write_heading(row) for row in page.get("rows", [])}
    texts = page.get("texts", {})
    rows: TableRows = []
    for index, prompt in enumerate(page.get("prompts", [])):
        by_mark = texts.get(str(index))
        if by_mark:
            row = {"prompt_id": prompt.get("id"), "prompt": prompt.get("prompt"), "reference": prompt.get("reference")}
            rows.append({**row, **{heading: by_mark.get(mark, {}).get("text") for mark, heading in headings.items()}})
    return rows


def write_heading(row: Mapping[str, object]) -> str:
    """``3: r=8 attn 4bit``, since two rows may have the same label."""
    return f"{row.get('mark')}: {row.get('label')}"


def draw_pareto(page: PageData, cost: str) -> Chart:
    """Quality against ``cost``, for the configurations that have both."""
    rows = [row for row in page.get("rows", []) if row.get("quality") is not None and row.get(cost) is not None]
    keys = [cost, "quality", "low", "high", "kind"]
    values = [[*(row.get(key) for key in keys), write_heading(row)] for row in rows]
    return Chart("scatter", f"pareto_{cost}", f"Quality against {COSTS[cost]}", [*keys, "entry"], values)


def draw_main_effects(page: PageData) -> list[Chart]:
    """For each factor, the mean quality at each of its levels, over the other factors, with its interval."""
    names = {factor.get("key"): factor.get("name") for factor in page.get("factors", [])}
    charts = []
    for effect in page.get("effects", []):
        key = effect.get("factor")
        name = str(names.get(key) or key)
        levels = [[level.get(part) for part in ("level", "mean", "low", "high")] for level in effect.get("levels", [])]
        columns = [name, "mean quality", "low", "high"]
        charts.append(Chart("bar", f"effect_{name}", f"Mean quality by {name}", columns, levels))
    return charts

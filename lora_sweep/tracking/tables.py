"""What the sweep's own run shows beside its rows: tables and charts from the data of the report's page. Pure.

Knows the page's data (``page_data``) and no tracker. What is missing in the data is left out: a mirror may show less
than the report, never something else.
"""

from dataclasses import dataclass
from typing import Any

COSTS = {
    "trainable_params": "trainable parameters",
    "train_seconds": "seconds of training",
    "peak_memory_bytes": "peak memory in bytes",
}


@dataclass(frozen=True)
class Chart:
    """A chart of the first two columns; the others stand in its table.

    Attributes:
        kind: ``scatter`` or ``bar``.
    """

    kind: str
    key: str
    title: str
    columns: list[str]
    rows: list[list[Any]]


def tables_of(data: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """``ranking``, an entry a row, and ``side_by_side``, a prompt a row and an entry a column."""
    tables = {"ranking": ranking(data), "side_by_side": side_by_side(data)}
    return {key: rows for key, rows in tables.items() if rows}


def charts_of(data: dict[str, Any]) -> list[Chart]:
    """Quality against each cost, and the main effect of each factor."""
    charts = [*(pareto(data, cost) for cost in COSTS), *main_effects(data)]
    return [chart for chart in charts if chart.rows]


def ranking(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries with their intervals and verdicts."""
    keys = ("mark", "label", "status", "quality", "low", "high", "tied", "verdict", "recommended", *COSTS)
    return [{key: row.get(key) for key in keys} for row in data.get("rows", [])]


def side_by_side(data: dict[str, Any]) -> list[dict[str, Any]]:
    """What each entry wrote to each prompt whose texts stand in the page."""
    entries = {str(row.get("mark")): heading(row) for row in data.get("rows", [])}
    texts = data.get("texts", {})
    rows = []
    for place, prompt in enumerate(data.get("prompts", [])):
        written = texts.get(str(place))
        if written:
            row = {"prompt_id": prompt.get("id"), "prompt": prompt.get("prompt"), "reference": prompt.get("reference")}
            rows.append({**row, **{heading: written.get(mark, {}).get("text") for mark, heading in entries.items()}})
    return rows


def heading(row: dict[str, Any]) -> str:
    """``3: r=8 attn 4bit``: labels alone need not differ."""
    return f"{row.get('mark')}: {row.get('label')}"


def pareto(data: dict[str, Any], cost: str) -> Chart:
    """Quality against ``cost``, for the entries that have both."""
    rows = [row for row in data.get("rows", []) if row.get("quality") is not None and row.get(cost) is not None]
    keys = [cost, "quality", "low", "high", "kind"]
    values = [[*(row.get(key) for key in keys), heading(row)] for row in rows]
    return Chart("scatter", f"pareto_{cost}", f"Quality against {COSTS[cost]}", [*keys, "entry"], values)


def main_effects(data: dict[str, Any]) -> list[Chart]:
    """The mean quality at each level of each factor, over the other factors, with its interval."""
    names = {factor.get("key"): factor.get("name") for factor in data.get("factors", [])}
    charts = []
    for effect in data.get("effects", []):
        key = effect.get("factor")
        name = str(names.get(key) or key)
        levels = [[each.get(part) for part in ("level", "mean", "low", "high")] for each in effect.get("levels", [])]
        columns = [name, "mean quality", "low", "high"]
        charts.append(Chart("bar", f"effect_{name}", f"Mean quality by {name}", columns, levels))
    return charts

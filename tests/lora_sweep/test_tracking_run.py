"""What all trackers share: names that sort, clean values, and that no fault of a tracker reaches a trial."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_sweep.config.checks import check_tracking
from lora_sweep.config.schema import Tracking
from lora_sweep.errors import Refused
from lora_sweep.runs.records import EvaluationResult, TrialResult
from lora_sweep.tracking import mlflow, run
from lora_sweep.tracking.names import name_run
from lora_sweep.tracking.sweep_run import log_sweep
from lora_sweep.tracking.tables import make_charts, make_tables
from lora_sweep.tracking.values import collect_numbers

MLFLOW = Tracking(backend="mlflow")


class Recorder:
    """A ``mirror.Mirror`` that remembers what it was told; ``broken`` names methods that raise."""

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.broken = broken

    def tell(self, *what: Any) -> None:
        if what[0] in self.broken:
            raise ConnectionError(f"no {what[0]}\nand a second line")
        self.told.append(what)

    def log_point(self, point: dict[str, float], step: int) -> None:
        self.tell("log", point, step)

    def log_summary(self, values: dict[str, Any]) -> None:
        self.tell("summarize", values)

    def log_table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        self.tell("table", key, columns, rows)

    def log_chart(self, kind: str, key: str, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        self.tell("chart", kind, key, columns, rows)

    def log_files(self, name: str, paths: list[Path]) -> None:
        self.tell("files", name, [path.name for path in paths])

    def end_run(self, failure: str | None) -> None:
        self.tell("end", failure)


# --- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["r=8 attn 4bit", "r=16 attn 8bit"], ["r=08 attn 4bit", "r=16 attn 8bit"]),
        (["r=8 attn 4bit", "r=128 attn 16bit"], ["r=008 attn 04bit", "r=128 attn 16bit"]),
        (
            ["r=8 learning_rate=1e-05", "r=8 learning_rate=0.001"],
            ["r=8 learning_rate=0.00001", "r=8 learning_rate=0.001"],
        ),
        (["r=8 seed=10", "r=8 seed=9.5"], ["r=8 seed=10", "r=8 seed=09.5"]),
        (["baseline 16bit qa", "r=8 attn 4bit"], ["baseline 16bit qa", "r=8 attn 04bit"]),
        (["r=8 data=tiny-2 7", "r=8 data=tiny-10 70"], ["r=8 data=tiny-2 7", "r=8 data=tiny-10 70"]),
        (["r=1e99 x=0e999", "r=8 x=1"], ["r=1e99 x=0e999", "r=8 x=1"]),
    ],
)
def test_a_runs_name_pads_numbers_to_the_widest_of_their_kind(labels: list[str], names: list[str]) -> None:
    assert [name_run(label, labels) for label in labels] == names


@given(st.lists(st.integers(min_value=0, max_value=10**11) | st.sampled_from([0.5, 1e-5, 3e-4, 12.25]), min_size=1))
def test_names_sort_as_their_numbers_do(values: list[float]) -> None:
    labels = [f"r={value} attn" for value in values]
    names = [name_run(label, labels) for label in labels]
    in_order = [value for _, value in sorted(zip(names, values, strict=True))]
    assert in_order == sorted(values)


WORD = st.text(max_size=5) | st.from_regex(r"r=[0-9]{1,15}(\.[0-9]{1,3})?(e-?[0-9]{1,4})?", fullmatch=True)


@given(st.lists(WORD, max_size=5).map(" ".join), st.lists(WORD, max_size=3))
def test_a_name_is_made_of_any_label_and_is_its_own_name(label: str, others: list[str]) -> None:
    name = name_run(label, others)
    assert name_run(name, others) == name
    assert [word.partition("=")[0] for word in name.split()] == [word.partition("=")[0] for word in label.split()]


# --- values ----------------------------------------------------------------------------------------------------


def test_a_trials_numbers_are_its_trainings_and_a_baselines_its_evaluations() -> None:
    training = TrialResult(trainable_params=896, bits=4, peak_memory_bytes=10, template="alpaca")
    evaluation = EvaluationResult(bits=8, peak_memory_bytes=20, validation_loss=3.5)
    qualities = [0.0, 100.0, None]
    trial = collect_numbers("trial", training, evaluation, qualities)
    baseline = collect_numbers("baseline", training, evaluation, qualities)
    assert (trial["bits"], trial["eval_bits"], trial["peak_memory_bytes"]) == (4, 8, 10)
    assert (baseline["bits"], baseline["eval_bits"], baseline["peak_memory_bytes"]) == (8, 8, 20)
    assert (trial["trainable_params"], trial["validation_loss"], "template" in trial) == (896, 3.5, False)
    assert trial["quality_ci_low"] == pytest.approx(9.45, abs=0.01)  # Wilson: 1 of 2
    assert trial["quality_ci_high"] == pytest.approx(90.55, abs=0.01)
    alone = collect_numbers("trial", training, evaluation, qualities[:1])
    assert (alone["quality_ci_low"], alone["quality_ci_high"]) == (None, None)


@pytest.mark.parametrize(("scorer", "high"), [("text", 0.0), ("label", 27.75), ("exact_match", 27.75), ("json", 0.0)])
def test_no_right_answer_of_ten_is_a_share_only_where_an_answer_is_right_or_wrong(scorer: str, high: float) -> None:
    numbers = collect_numbers("trial", TrialResult(), EvaluationResult(eval={"scorer": scorer}), [0.0] * 10)
    assert (numbers["quality_ci_low"], numbers["quality_ci_high"]) == (0.0, pytest.approx(high, abs=0.01))


def test_values_arrive_clean() -> None:
    mirror = Recorder()
    opened = run.Run(mirror, "mlflow")
    opened.log_step(1, {"loss": 3.0, "grad_norm": None})
    opened.finish(
        {"quality": 1.0, "note": "\ud83d"}, [{"text": ["a", "b"], "quality": float("nan")}, {"more": {"k": 1}}]
    )
    opened.fail("failed", "too late")
    assert mirror.told == [
        ("log", {"train/loss": 3.0}, 1),
        ("summarize", {"status": "complete", "reason": None, "quality": 1.0, "note": "?"}),
        ("table", "generations", ["text", "quality", "more"], [["a, b", None, None], [None, None, '{"k": 1}']]),
        ("end", None),
    ]


# --- a tracker's fault is no fault of the trial ----------------------------------------------------------------


@pytest.mark.parametrize("broken", ["log", "summarize", "table", "end"])
def test_whatever_raises_is_one_line_and_the_rest_is_still_told(broken: str, capfd: Any) -> None:
    mirror = Recorder((broken,))
    opened = run.Run(mirror, "trackio")
    opened.log_step(1, {"loss": 3.0})
    opened.log_step(2, {"loss": 2.0})
    opened.finish({"quality": 1.0}, [{"text": "x"}])
    captured = capfd.readouterr()
    assert captured.out == f"Trackio: a run is not mirrored completely: ConnectionError: no {broken}\n"
    assert captured.err == ""
    assert [told[0] for told in mirror.told if told[0] != "log"] == [
        each for each in ("summarize", "table", "end") if each != broken
    ]


def test_a_tracker_that_does_not_open_is_one_line(monkeypatch: Any, tmp_path: Path, capfd: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no disk")

    monkeypatch.setattr(mlflow, "open_run", broken)
    monkeypatch.setattr(mlflow, "closing_line", broken)
    log_sweep(MLFLOW, tmp_path, name="first", command="c", rows=[{"label": "a"}])
    assert capfd.readouterr().out == "MLflow: the run 'sweep first' is not mirrored: OSError: no disk\n"
    assert run.closing_line(MLFLOW, tmp_path) == "MLflow: cannot tell where its runs are: OSError: no disk"


def test_no_tracking_writes_nothing_and_loads_nothing(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    script = (
        "import sys; from pathlib import Path; from lora_sweep.config import schema as config\n"
        "from lora_sweep.tracking import run as tracking, sweep_run\n"
        "off, runs = config.Tracking(backend='none'), Path(sys.argv[1])\n"
        "run = tracking.open_run(off, runs, group='g', name='n', run_id='i', job_type='trial', config={}, tags=[])\n"
        "run.log_step(1, {'loss': 1.0}); run.finish({}, [{'text': 'x'}]); run.fail('failed', 'why')\n"
        "sweep_run.log_sweep(off, runs, name='n', command='c', rows=[])\n"
        "assert tracking.closing_line(off, runs) is None and not tracking.is_logged_in(off)\n"
        "assert not {'torch', 'wandb', 'mlflow', 'trackio', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(runs)], check=True)
    assert not runs.exists()


@pytest.mark.parametrize(
    ("backend", "missing", "sentence"),
    [
        ("mlflow", "alembic", "tracking.backend = mlflow: needs: pip install mlflow-skinny sqlalchemy alembic"),
        ("trackio", "trackio", "tracking.backend = trackio: needs: pip install trackio"),
        ("trackio", "mlflow", None),
        ("wandb", "mlflow", None),
    ],
)
def test_a_tracker_that_is_not_installed_is_refused_with_its_command(
    backend: str, missing: str, sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_spec(name: str) -> Any:
        return None if name == missing else SimpleNamespace()

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    if sentence is None:
        check_tracking(Tracking(backend=backend))
        return
    with pytest.raises(Refused) as caught:
        check_tracking(Tracking(backend=backend))
    assert str(caught.value) == sentence


# --- the sweep's own run ---------------------------------------------------------------------------------------

PAGE: dict[str, Any] = {
    "rows": [
        {"mark": "B1", "label": "baseline", "kind": "baseline", "quality": 9.0, "peak_memory_bytes": 5},
        {"mark": "1", "label": "r=8", "kind": "trial", "quality": 20.0, "trainable_params": 8, "peak_memory_bytes": 6},
        {"mark": "2", "label": "r=8", "kind": "trial", "quality": None, "trainable_params": 16},
    ],
    "factors": [{"key": "lora.r", "name": "r"}],
    "effects": [
        {"factor": "lora.r", "levels": [{"level": "8", "mean": 1.0, "low": 0.5, "high": 2.0}]},
        {"factor": "seed", "levels": []},
    ],
    "prompts": [{"id": "validation-0", "prompt": "Write:", "reference": None}, {"id": "in a shard"}],
    "texts": {"0": {"1": {"text": "one"}, "B1": {"text": "zero"}}},
}


def test_the_charts_hold_what_the_page_holds() -> None:
    found = {chart.key: (chart.kind, chart.rows) for chart in make_charts(PAGE)}
    assert found == {
        "pareto_trainable_params": ("scatter", [[8, 20.0, None, None, "trial", "1: r=8"]]),
        "pareto_peak_memory_bytes": (
            "scatter",
            [[5, 9.0, None, None, "baseline", "B1: baseline"], [6, 20.0, None, None, "trial", "1: r=8"]],
        ),
        "effect_r": ("bar", [["8", 1.0, 0.5, 2.0]]),
    }


def test_texts_stand_side_by_side_a_prompt_a_row() -> None:
    assert make_tables(PAGE)["side_by_side"] == [
        {
            "prompt_id": "validation-0",
            "prompt": "Write:",
            "reference": None,
            "B1: baseline": "zero",
            "1: r=8": "one",
            "2: r=8": None,
        }
    ]


def test_what_is_missing_is_left_out() -> None:
    assert make_charts({}) == []
    assert make_tables({}) == {}
    assert list(make_tables({"rows": PAGE["rows"]})) == ["ranking"]

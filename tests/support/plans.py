"""Plans of a small model and data set whose facts are known, so that no process is asked."""

import copy
from pathlib import Path
from typing import Any

import pytest

from lora_sweep.config.schema import Config, Data, Model
from lora_sweep.facts.facts import DataFacts, Facts, Linear, ModelFacts
from lora_sweep.runs import files, results
from sweep.plan import facts as plan_facts
from sweep.plan.make import make_plan
from sweep.trials import Plan, PlannedTrial

LINEARS = [
    Linear("layers.0.attn.q_proj", 64, 64),
    Linear("layers.0.attn.v_proj", 64, 32),
    Linear("layers.0.mlp.up_proj", 64, 128),
    Linear("head", 64, 512),
]


FACTS = Facts(
    ModelFacts(
        fingerprint="model-1",
        model_type="small",
        linears=LINEARS,
        attn=["layers.0.attn.q_proj", "layers.0.attn.v_proj"],
        mlp=["layers.0.mlp.up_proj"],
        head="head",
        tied_head=False,
        total_params=80_000,
        bias_params=0,
        hidden_size=64,
        layers=1,
        vocab_size=512,
    ),
    DataFacts("data-1", "rows-1", 50, {"repeated": 2}, 40, 5, 3, 1, 1234, 60),
    compute_bytes=4,
)


BASE = Config(model=Model(name="small", tiny="llama"), data=Data(name="few", tiny=50), runs_dir="runs")


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[dict[str, Any]]]:
    """Each batch of questions to ``model.inspect``, which is answered by the facts above without a process."""
    batches: list[list[dict[str, Any]]] = []

    def answer(requests: list[dict[str, Any]], strict: bool) -> list[dict[str, Any]]:
        batches.append(requests)
        return [{"facts": FACTS.to_json()} for _ in requests]

    monkeypatch.setattr(plan_facts, "ask_inspect", answer)
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LORA_SWEEP_DEVICE", "cpu")  # whatever the machine has: no process looks for it
    return batches


def changed(**values: Any) -> Config:
    """The base config with values at dotted keys, a dot written as two underscores."""
    config = copy.deepcopy(BASE)
    for key, value in values.items():
        *parents, last = key.split("__")
        node: Any = config
        for parent in parents:
            node = getattr(node, parent)
        assert hasattr(node, last)
        setattr(node, last, value)
    return config


def planned(*configs: Config) -> Plan:
    return make_plan(list(configs), strict=True)


def trials(plan: Plan, kind: str = "trial") -> list[PlannedTrial]:
    return [trial for trial in plan.trials if trial.kind == kind]


def labels(plan: Plan, kind: str = "trial") -> list[str]:
    return [trial.label for trial in trials(plan, kind)]


def finish(runs: Path, trial: PlannedTrial, status: str = "complete", evaluated: bool = True) -> None:
    folder = files.trial_folder(runs, trial.trial_id)
    files.write_json(folder.config, {"kind": trial.kind, "config": {}})
    results.write_result(folder.result, {"status": status, "reason": None if status == "complete" else "why"})
    if evaluated and status == "complete":
        results.write_result(folder.evaluation(trial.eval_id).result, {"status": "complete"})

"""Sweeps whose trials are scripts instead of trainings, for the tests that need a thousand of them or many deaths.

Everything but the trial is real: the orchestrator, its workers, their locks, files and signals. WORKER is the command
of a worker (``scripted_worker.py``). Each trial runs alone unless ``pack`` is set.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from support.scripted_worker import STEPS

from lora_sweep.config.identity import short_hash
from lora_sweep.config.schema import Config, Data, Launch, Model, Tracking, Train
from lora_sweep.facts.facts import DataFacts, Facts, Linear, ModelFacts
from lora_sweep.facts.memory import MemoryForecast
from lora_sweep.messages import STAGES
from sweep.engines.job import make_job
from sweep.engines.pending import PendingTrial
from sweep.trials import Plan, PlannedTrial

WORKER = (sys.executable, str(Path(__file__).with_name("scripted_worker.py")), "worker")


def plan_of(runs: Path, name: str, count: int, **settings: Any) -> Plan:
    """``count`` trials t0, t1, ... that a script can run; the same count gives the same ids."""
    model = ModelFacts(
        "model-1", "llama", [Linear("q_proj", 8, 8, False)], ["q_proj"], [], None, False, 64, 0, 8, 1, 16
    )
    data = DataFacts("data-1", "rows-1", rows_read=8, train_rows=4, validation_rows=2, test_rows=2, train_tokens=64)
    facts = Facts(model, data, 4)
    trials = []
    for number in range(count):
        config = Config(
            model=Model(name="scripted", tiny="llama"),
            data=Data(name="scripted", tiny=8),
            train=Train(max_steps=STEPS),
            tracking=Tracking(backend="none"),
            launch=Launch(**{"pack": 1, **settings}),
            seed=number,
            runs_dir=str(runs),
            sweep_name=name,
        )
        identity = {"kind": "trial", "model": "model-1", "quant": {}, "data": {}, "seed": number}
        forecast = MemoryForecast(0, 0, 0, 0)
        trials.append(
            PlannedTrial(
                short_hash(identity), "e0", "trial", f"t{number}", config, facts, ["q_proj"], 32, forecast, identity
            )
        )
    return Plan(trials, [trial.key for trial in trials], ["seed"])


def job_json(trial: PlannedTrial, **changes: Any) -> dict[str, Any]:
    """The JSON of a job for all stages of a trial, as a worker reads it."""
    job = make_job(PendingTrial(trial), [])
    values = dataclasses.asdict(dataclasses.replace(job, **{"stages": list(STAGES), **changes}))
    parsed: dict[str, Any] = json.loads(json.dumps(values))
    return parsed

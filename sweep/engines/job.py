"""The job that a worker gets for a planned trial."""

import dataclasses
from collections.abc import Sequence

from lora_sweep.messages import STAGES, Job, PlannedFacts
from sweep.engines.pending import PendingTrial
from sweep.store.failed_attempts import FailedAttempt, count_deaths, count_halvings
from sweep.trials import PlannedTrial


def make_job(pending: PendingTrial, failed_before: Sequence[FailedAttempt]) -> Job:
    """The job of a trial's next stages.

    Args:
        failed_before: the failed attempts at the trial. They tell how often its batch has to be halved.
    """
    trial = pending.trial
    halvings = {stage: count_halvings(failed_before, stage) for stage in STAGES}
    if trial.config.launch.on_oom != "halve_batch":
        halvings = {}
    return Job(
        trial_id=trial.trial_id,
        eval_id=trial.eval_id,
        kind=trial.kind,
        label=trial.label,
        config=trial.config,
        target_modules=trial.target_modules,
        facts=list_facts(trial),
        stages=pending.stages,
        halvings={stage: count for stage, count in halvings.items() if count},
        failed_attempts=count_deaths(failed_before),
    )


def list_facts(trial: PlannedTrial) -> PlannedFacts:
    """What planning knows about a trial. The trial's result.json repeats it."""
    facts = trial.facts
    return {
        "identity": trial.identity,
        "fingerprints": {"model": facts.model.fingerprint, "data": facts.data.fingerprint},
        "targets": trial.config.lora.targets if trial.kind == "trial" else None,
        "target_modules": trial.target_modules,
        "trainable_params": trial.trainable_params,
        "total_params": facts.model.total_params,
        "data": dataclasses.asdict(facts.data),
    }

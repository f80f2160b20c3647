"""Make a trial and its baselines from a configuration and its facts: adapted matrices, ids, parameters, memory."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from lora_sweep.config.identity import baseline_identity, eval_identity, short_hash, trial_identity
from lora_sweep.config.schema import Config
from lora_sweep.facts.facts import Facts, Linear
from lora_sweep.facts.memory import count_trainable_params, forecast_memory
from lora_sweep.facts.targets import check_rank, name_target_modules, resolve_targets
from sweep.labels import label_baseline, label_trial
from sweep.plan.checks import check_positions
from sweep.trials import PlannedTrial


@dataclass(frozen=True)
class Draft:
    """The trial of a point, and the baselines on its base. The baseline that the trial is compared with comes first."""

    trial: PlannedTrial
    baselines: list[PlannedTrial]


class TrialDrafter:
    """Drafts trials and baselines. What many points of a grid share is computed once.

    Args:
        varied: the configuration keys that differ between the points.
    """

    def __init__(self, varied: Sequence[str]) -> None:
        self.varied = varied
        self._matrices: dict[tuple[int, str], tuple[list[Linear], list[str]]] = {}
        self._baselines: dict[str, list[PlannedTrial]] = {}

    def draft_point(self, config: Config, facts: Facts) -> Draft:
        """The draft of one point.

        Raises:
            Refused: the point does not fit its model or its data.
        """
        linears, modules = self.resolve_matrices(config.lora.targets, facts)
        check_rank(config.lora, linears)
        check_positions(config, facts)
        baselines = self.draft_baselines(config, facts)
        identity = trial_identity(config, facts.model.fingerprint, facts.data.fingerprint, modules)
        trainable = count_trainable_params(config.lora, linears, facts.model)
        trial = PlannedTrial(
            trial_id=short_hash(identity),
            eval_id=short_hash(eval_identity(config)),
            kind="trial",
            label=label_trial(config, facts.compute_bytes, self.varied),
            config=config,
            facts=facts,
            target_modules=modules,
            trainable_params=trainable,
            forecast=forecast_memory(config, facts.model, trainable, facts.data.longest_row, facts.compute_bytes),
            identity=identity,
            baseline=baselines[0].key,
        )
        return Draft(trial, baselines)

    def resolve_matrices(self, targets: str | list[str], facts: Facts) -> tuple[list[Linear], list[str]]:
        """The matrices that ``lora.targets`` selects, and the module names for PEFT."""
        key = (id(facts), repr(targets))
        if key not in self._matrices:
            linears = resolve_targets(targets, facts.model)
            self._matrices[key] = linears, name_target_modules(linears, facts.model)
        return self._matrices[key]

    def draft_baselines(self, config: Config, facts: Facts) -> list[PlannedTrial]:
        """A baseline with the prompt template of the data, then one with each of ``eval.baseline_templates``."""
        key = repr((config.model, config.data, config.quant, config.eval, config.train.max_length, config.seed))
        if key not in self._baselines:
            templates = dict.fromkeys([config.data.template, *config.eval.baseline_templates])
            self._baselines[key] = [draft_baseline(config, facts, template, self.varied) for template in templates]
        return self._baselines[key]


def draft_baseline(config: Config, facts: Facts, template: str, varied: Sequence[str]) -> PlannedTrial:
    """The baseline of ``config``: its untuned base, quantized as for generation, with another prompt template."""
    identity = baseline_identity(config, facts.model.fingerprint, facts.data.fingerprint, template)
    config = copy.deepcopy(config)
    config.quant.bits, config.eval.quant, config.data.template = config.eval_bits(), "same", template
    return PlannedTrial(
        trial_id=short_hash(identity),
        eval_id=short_hash(eval_identity(config)),
        kind="baseline",
        label=label_baseline(config, facts.compute_bytes, varied),
        config=config,
        facts=facts,
        target_modules=[],
        trainable_params=0,
        forecast=forecast_memory(config, facts.model, 0, facts.data.longest_row, facts.compute_bytes),
        identity=identity,
    )

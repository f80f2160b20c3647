"""Make a plan from the configurations of a command: check each point, compute its ids and sizes, list it once.

``python -m sweep.plan [-m] [KEY=VALUE ...]`` takes the arguments of ``lora_sweep.train`` and prints the plan without
training anything. Nothing here imports torch: a child process inspects the model and the data once.
"""

from dataclasses import dataclass, field

from lora_sweep.config.checks import check_config
from lora_sweep.config.schema import Config, apply_typed_paths
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import Facts
from lora_sweep.scoring.scorers import check_scorer
from sweep.labels import list_varied_keys
from sweep.plan.checks import Refusals, check_shared_settings
from sweep.plan.draft import Draft, TrialDrafter
from sweep.plan.facts import gather_facts
from sweep.trials import InvalidTrial, Key, Plan, PlannedTrial, make_invalid_trial


def make_plan(configs: list[Config], strict: bool) -> Plan:
    """Check the points, compute the ids and sizes of their trials, and add a baseline for each base.

    A point that cannot work becomes an invalid row of the plan, if other points can work and ``launch.strict`` is off.

    Args:
        configs: one for each point of the command.
        strict: whether everything that training needs must be on this machine or be downloaded now. If not, facts that
            only a model hub could tell stay unknown.

    Raises:
        Refused: a setting of the whole sweep differs between points; or no point can work; or a point cannot work and
            ``launch.strict`` is on. The message is that of the first refused point.
    """
    check_shared_settings(configs)
    configs = [apply_typed_paths(config) for config in configs]
    refusals = Refusals(configs)
    for number, config in enumerate(configs):
        with refusals.collect_refusal(number):
            check_config(config)
            check_scorer(config.eval)
    refusals.raise_if_final()
    numbers = refusals.list_accepted()
    facts_by_number = dict(zip(numbers, gather_facts([configs[n] for n in numbers], strict), strict=True))
    for number, facts in facts_by_number.items():
        if isinstance(facts, Refused):
            refusals.by_number[number] = facts
    refusals.raise_if_final()
    drafts = draft_trials(configs, facts_by_number, refusals)
    refusals.raise_if_final()
    return assemble_plan(configs, drafts, refusals)


def draft_trials(
    configs: list[Config], facts_by_number: dict[int, Facts | Refused], refusals: Refusals
) -> dict[int, Draft]:
    """A draft of each point that has facts. A point that does not fit its model or its data is refused."""
    drafter = TrialDrafter(list_varied_keys(configs))
    drafts: dict[int, Draft] = {}
    for number, facts in facts_by_number.items():
        if isinstance(facts, Facts):
            with refusals.collect_refusal(number):
                drafts[number] = drafter.draft_point(configs[number], facts)
    return drafts


@dataclass
class PlanRows:
    """The rows of a plan by their key. A row that several points share is in the plan once."""

    baselines: dict[Key, PlannedTrial] = field(default_factory=dict)
    trials: dict[Key, PlannedTrial] = field(default_factory=dict)
    invalid: dict[Key, InvalidTrial] = field(default_factory=dict)


def assemble_plan(configs: list[Config], drafts: dict[int, Draft], refusals: Refusals) -> Plan:
    """The plan of all points, each of which is either drafted or refused."""
    compute_bytes = next(iter(drafts.values())).trial.facts.compute_bytes  # the same for all points
    varied = list_varied_keys(configs)
    rows, points = PlanRows(), []
    for number, config in enumerate(configs):
        refusal = refusals.by_number.get(number)
        if refusal is not None:
            point = make_invalid_trial(config, compute_bytes, varied, str(refusal))
            rows.invalid.setdefault(point.key, point)
            points.append(point.key)
            continue
        draft = drafts[number]
        for baseline in draft.baselines:
            rows.baselines.setdefault(baseline.key, baseline)
        rows.trials.setdefault(draft.trial.key, draft.trial)
        points.append(draft.trial.key)
    return Plan([*rows.baselines.values(), *rows.trials.values()], points, varied, list(rows.invalid.values()))

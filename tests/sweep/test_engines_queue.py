"""Which trial runs next: pure rules."""

import dataclasses
from pathlib import Path

from support.scripted import plan_of

from lora_sweep.config.schema import Eval, Quant
from lora_sweep.facts.memory import MemoryForecast
from sweep.engines.pending import PendingTrial
from sweep.engines.queue import TrialQueue
from sweep.trials import PlannedTrial


def labels(pack: list[PendingTrial]) -> list[str]:
    return [pending.trial.label for pending in pack]


def trial(number: int, bits: int | None = 4, written_at: str = "same", trial_id: str = "") -> PlannedTrial:
    planned = plan_of(Path("runs"), "a", number + 1).trials[number]
    config = dataclasses.replace(planned.config, quant=Quant(bits), eval=Eval(quant=written_at))
    return dataclasses.replace(planned, config=config, trial_id=trial_id or planned.trial_id)


def order(queue: TrialQueue, now: float = 0.0) -> list[str]:
    """What a single worker would run, in order."""
    labels = []
    loaded = None
    while True:
        taken = queue.take_pack(loaded, [], now)
        if not taken:
            return labels
        (item,) = taken
        loaded = item.base
        labels.append(f"{item.trial.label} {'+'.join(item.stages)}")
        if item.stages == ["train"]:
            queue.put_first(PendingTrial(item.trial, is_trained=True))


def test_a_base_is_used_up_before_the_next_is_loaded() -> None:
    queue = TrialQueue([PendingTrial(trial(number, bits)) for number, bits in enumerate([4, 8, 4, 8])])
    assert [label.split()[0] for label in order(queue)] == ["t0", "t2", "t1", "t3"]


def test_where_texts_are_written_at_other_bits_all_train_first() -> None:
    queue = TrialQueue([PendingTrial(trial(number, 4, "8bit")) for number in range(2)])
    assert order(queue) == ["t0 train", "t1 train", "t1 evaluate", "t0 evaluate"]


def test_a_baseline_waits_for_the_base_that_others_will_write_with() -> None:
    queue = TrialQueue([PendingTrial(trial(0, 8)), PendingTrial(trial(1, 4, "8bit"))])
    assert order(queue) == ["t1 train", "t1 evaluate", "t0 train+evaluate"]


def test_a_second_worker_takes_another_base_if_there_is_one() -> None:
    items = [PendingTrial(trial(number, bits)) for number, bits in enumerate([4, 4, 8])]
    queue = TrialQueue(list(items))
    (first,) = queue.take_pack(None, [], 0)
    assert first is items[0]
    (second,) = queue.take_pack(None, [first], 0)
    assert second is items[2]
    assert queue.take_pack(None, [first, second], 0) == [items[1]], "better the same base twice than an idle device"


def test_two_evaluations_of_one_trial_never_run_at_once() -> None:
    one, other = (PendingTrial(trial(number, trial_id="same")) for number in range(2))
    queue = TrialQueue([one, other])
    assert queue.take_pack(None, [], 0) == [one]
    assert queue.take_pack(None, [one], 0) == []
    assert queue.take_pack(None, [], 0) == [other]


def test_what_is_put_off_waits_for_its_time() -> None:
    item = PendingTrial(trial(0), not_before=5)
    queue = TrialQueue([item])
    assert queue.take_pack(None, [], 4) == []
    assert queue.take_pack(None, [], 5) == [item]
    assert queue.waiting == []


def test_what_goes_on_goes_first() -> None:
    items = [PendingTrial(trial(number)) for number in range(2)]
    queue = TrialQueue(list(items))
    again = PendingTrial(trial(2))
    queue.put_first(again)
    assert queue.take_pack(None, [], 0) == [again]


# --- packs -------------------------------------------------------------------------------------------------------


def test_a_pack_is_of_one_base_and_in_the_plans_order() -> None:
    queue = TrialQueue([PendingTrial(trial(number, bits)) for number, bits in enumerate([4, 8, 4, 4, 8])])
    assert labels(queue.take_pack(None, [], 0, max_members=8)) == ["t0", "t2", "t3"]
    assert labels(queue.waiting) == ["t1", "t4"]


def test_a_pack_has_no_more_members_than_asked_for() -> None:
    queue = TrialQueue([PendingTrial(trial(number)) for number in range(5)])
    assert [labels(queue.take_pack(None, [], 0, max_members=2)) for _ in range(3)] == [
        ["t0", "t1"],
        ["t2", "t3"],
        ["t4"],
    ]


def test_members_need_the_same_stages() -> None:
    """A base that one trains on and another writes with."""
    items = [PendingTrial(trial(0, 8)), PendingTrial(trial(1, 4, "8bit"), is_trained=True), PendingTrial(trial(2, 8))]
    assert items[0].base == items[1].base
    queue = TrialQueue(items)
    assert labels(queue.take_pack(None, [], 0, max_members=8)) == ["t0", "t2"]
    assert labels(queue.take_pack(None, [], 0, max_members=8)) == ["t1"]


def test_who_is_to_run_alone_does() -> None:
    queue = TrialQueue(
        [
            PendingTrial(trial(0)),
            PendingTrial(trial(1), runs_alone=True),
            PendingTrial(trial(2)),
            PendingTrial(trial(3), runs_alone=True),
        ]
    )
    packs = [labels(queue.take_pack(None, [], 0, max_members=8)) for _ in range(3)]
    assert packs == [["t0", "t2"], ["t1"], ["t3"]]


def test_two_evaluations_of_one_trial_are_no_pack() -> None:
    queue = TrialQueue(
        [PendingTrial(trial(0, trial_id="same")), PendingTrial(trial(1, trial_id="same")), PendingTrial(trial(2))]
    )
    first = queue.take_pack(None, [], 0, max_members=8)
    assert labels(first) == ["t0", "t2"]
    assert queue.take_pack(None, first, 0, max_members=8) == []


def test_what_is_put_off_joins_no_pack() -> None:
    queue = TrialQueue([PendingTrial(trial(0)), PendingTrial(trial(1), not_before=5), PendingTrial(trial(2))])
    assert labels(queue.take_pack(None, [], 4, max_members=8)) == ["t0", "t2"]


def test_who_does_not_fit_beside_others_waits() -> None:
    large = MemoryForecast(0, 600, 0, 0)
    queue = TrialQueue([PendingTrial(dataclasses.replace(trial(number), forecast=large)) for number in range(3)])
    assert labels(queue.take_pack(None, [], 0, max_members=8, memory=1500)) == ["t0", "t1"]
    assert labels(queue.take_pack(None, [], 0, max_members=8, memory=100)) == ["t2"], "alone it is tried"

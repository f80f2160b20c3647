"""Which trial runs next: pure rules."""

import dataclasses
from pathlib import Path

import pytest
from support.scripted import plan_of

from lora_sweep.config.schema import Eval, Quant, Train
from lora_sweep.facts.memory import MemoryForecast
from sweep.engines.queue import Queue, Waiting, can_halve
from sweep.trials import PlannedTrial


def labels(pack: list[Waiting]) -> list[str]:
    return [each.trial.label for each in pack]


def trial(number: int, bits: int | None = 4, written_at: str = "same", trial_id: str = "") -> PlannedTrial:
    planned = plan_of(Path("runs"), "a", number + 1).trials[number]
    config = dataclasses.replace(planned.config, quant=Quant(bits), eval=Eval(quant=written_at))
    return dataclasses.replace(planned, config=config, trial_id=trial_id or planned.trial_id)


def order(queue: Queue, now: float = 0.0) -> list[str]:
    """What a single worker would run, in order."""
    labels = []
    loaded = None
    while True:
        taken = queue.take(loaded, [], now)
        if not taken:
            return labels
        (item,) = taken
        loaded = item.base
        labels.append(f"{item.trial.label} {'+'.join(item.stages)}")
        if item.stages == ["train"]:
            queue.put_back(Waiting(item.trial, trained=True))


def test_a_base_is_used_up_before_the_next_is_loaded() -> None:
    queue = Queue([Waiting(trial(number, bits)) for number, bits in enumerate([4, 8, 4, 8])])
    assert [label.split()[0] for label in order(queue)] == ["t0", "t2", "t1", "t3"]


def test_where_texts_are_written_at_other_bits_all_train_first() -> None:
    queue = Queue([Waiting(trial(number, 4, "8bit")) for number in range(2)])
    assert order(queue) == ["t0 train", "t1 train", "t1 evaluate", "t0 evaluate"]


def test_a_baseline_waits_for_the_base_that_others_will_write_with() -> None:
    queue = Queue([Waiting(trial(0, 8)), Waiting(trial(1, 4, "8bit"))])
    assert order(queue) == ["t1 train", "t1 evaluate", "t0 train+evaluate"]


def test_a_second_worker_takes_another_base_if_there_is_one() -> None:
    items = [Waiting(trial(number, bits)) for number, bits in enumerate([4, 4, 8])]
    queue = Queue(list(items))
    (first,) = queue.take(None, [], 0)
    assert first is items[0]
    (second,) = queue.take(None, [first], 0)
    assert second is items[2]
    assert queue.take(None, [first, second], 0) == [items[1]], "better the same base twice than an idle device"


def test_two_evaluations_of_one_trial_never_run_at_once() -> None:
    one, other = (Waiting(trial(number, trial_id="same")) for number in range(2))
    queue = Queue([one, other])
    assert queue.take(None, [], 0) == [one]
    assert queue.take(None, [one], 0) == []
    assert queue.take(None, [], 0) == [other]


def test_what_is_put_off_waits_for_its_time() -> None:
    item = Waiting(trial(0), not_before=5)
    queue = Queue([item])
    assert queue.take(None, [], 4) == []
    assert queue.take(None, [], 5) == [item]
    assert queue.waiting == []


def test_what_goes_on_goes_first() -> None:
    items = [Waiting(trial(number)) for number in range(2)]
    queue = Queue(list(items))
    again = Waiting(trial(2))
    queue.put_back(again)
    assert queue.take(None, [], 0) == [again]


# --- packs -------------------------------------------------------------------------------------------------------


def test_a_pack_is_of_one_base_and_in_the_plans_order() -> None:
    queue = Queue([Waiting(trial(number, bits)) for number, bits in enumerate([4, 8, 4, 4, 8])])
    assert labels(queue.take(None, [], 0, most=8)) == ["t0", "t2", "t3"]
    assert labels(queue.waiting) == ["t1", "t4"]


def test_a_pack_has_no_more_members_than_asked_for() -> None:
    queue = Queue([Waiting(trial(number)) for number in range(5)])
    assert [labels(queue.take(None, [], 0, most=2)) for _ in range(3)] == [["t0", "t1"], ["t2", "t3"], ["t4"]]


def test_members_need_the_same_stages() -> None:
    """A base that one trains on and another writes with."""
    items = [Waiting(trial(0, 8)), Waiting(trial(1, 4, "8bit"), trained=True), Waiting(trial(2, 8))]
    assert items[0].base == items[1].base
    queue = Queue(items)
    assert labels(queue.take(None, [], 0, most=8)) == ["t0", "t2"]
    assert labels(queue.take(None, [], 0, most=8)) == ["t1"]


def test_who_is_to_run_alone_does() -> None:
    queue = Queue([Waiting(trial(0)), Waiting(trial(1), alone=True), Waiting(trial(2)), Waiting(trial(3), alone=True)])
    packs = [labels(queue.take(None, [], 0, most=8)) for _ in range(3)]
    assert packs == [["t0", "t2"], ["t1"], ["t3"]]


def test_two_evaluations_of_one_trial_are_no_pack() -> None:
    queue = Queue([Waiting(trial(0, trial_id="same")), Waiting(trial(1, trial_id="same")), Waiting(trial(2))])
    first = queue.take(None, [], 0, most=8)
    assert labels(first) == ["t0", "t2"]
    assert queue.take(None, first, 0, most=8) == []


def test_what_is_put_off_joins_no_pack() -> None:
    queue = Queue([Waiting(trial(0)), Waiting(trial(1), not_before=5), Waiting(trial(2))])
    assert labels(queue.take(None, [], 4, most=8)) == ["t0", "t2"]


def test_who_does_not_fit_beside_others_waits() -> None:
    large = MemoryForecast(0, 600, 0, 0)
    queue = Queue([Waiting(dataclasses.replace(trial(number), forecast=large)) for number in range(3)])
    assert labels(queue.take(None, [], 0, most=8, room=1500)) == ["t0", "t1"]
    assert labels(queue.take(None, [], 0, most=8, room=100)) == ["t2"], "alone it is tried"


# --- memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "halvings", "can"), [(8, 0, True), (8, 2, True), (8, 3, False), (6, 0, True), (6, 1, False), (1, 0, False)]
)
def test_a_batch_is_halved_while_it_is_even(size: int, halvings: int, can: bool) -> None:
    planned = trial(0)
    planned.config.train = Train(per_device_train_batch_size=size)
    assert can_halve(planned, "train", halvings) == can


def test_the_batch_of_sampled_texts_is_left_alone() -> None:
    planned = trial(0)
    assert can_halve(planned, "evaluate", 0)
    planned.config.eval.do_sample = True
    assert not can_halve(planned, "evaluate", 0)

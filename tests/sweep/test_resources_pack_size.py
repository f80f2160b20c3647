"""How many trials share a worker, and which: nothing that does not fit, and no worker without."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_sweep.facts.memory import MemoryForecast
from sweep.resources.machine import Slot
from sweep.resources.pack_size import (
    MAX_PACK_MEMBERS,
    MEMBER_THREADS,
    choose_pack_members,
    count_member_threads,
    find_largest_pack,
    forecast_pack_memory,
    limit_pack_members,
    limit_pack_memory,
    share_waiting_trials,
)

SMALL = MemoryForecast(weights=100, adapter=10, activations=20, logits=5)
sizes = st.integers(0, 1000)
forecasts = st.lists(st.builds(MemoryForecast, st.just(100), sizes, sizes, sizes), min_size=1, max_size=30)


def test_a_pack_needs_one_base_all_adapters_and_the_largest_steps() -> None:
    wide = MemoryForecast(weights=100, adapter=7, activations=50, logits=1)
    assert forecast_pack_memory([SMALL], 2) == forecast_pack_memory([SMALL], 1) == SMALL.total
    assert forecast_pack_memory([SMALL, wide, SMALL], 1) == 100 + (10 + 7 + 10) + 50 + 5
    assert forecast_pack_memory([SMALL, wide, SMALL], 2) == 100 + (10 + 7 + 10) + (50 + 20) + (5 + 5)


def test_copies_of_the_base_count_where_they_are_made_in_any_case() -> None:
    assert forecast_pack_memory([MemoryForecast(100, 10, 20, 5, materialized=400)] * 2, 1) == 145
    assert forecast_pack_memory([MemoryForecast(100, 10, 20, 5, materialized=400, always=True)] * 2, 1) == 545


@pytest.mark.parametrize(("room", "members"), [(0, 1), (134, 1), (135, 1), (144, 1), (145, 2), (164, 3), (1000, 9)])
def test_as_many_as_fit_run_together_and_one_in_any_case(room: int, members: int) -> None:
    assert choose_pack_members([SMALL] * 9, 9, room, 1) == list(range(members))


def test_who_does_not_fit_makes_room_for_who_does() -> None:
    assert choose_pack_members([SMALL, MemoryForecast(100, 500, 20, 5), SMALL], 8, 145, 1) == [0, 2]


def test_on_a_cpu_two_members_have_activations_at_once() -> None:
    assert count_member_threads(Slot("cpu", None, "cpu", 1000)) == MEMBER_THREADS == 2
    assert count_member_threads(Slot("cuda", 0, "big", 1000)) == 1
    assert choose_pack_members([SMALL] * 9, 9, 169, MEMBER_THREADS) == [0]
    assert choose_pack_members([SMALL] * 9, 9, 189, MEMBER_THREADS) == [0, 1, 2]


def test_where_nobody_tells_the_memory_a_number_is_obeyed_and_auto_packs_none() -> None:
    assert limit_pack_members("auto", None, share=50) == 1
    assert limit_pack_members(4, None, share=1) == 4
    assert choose_pack_members([SMALL] * 9, 4, None, 2) == [0, 1, 2, 3]


def test_auto_takes_its_share_up_to_a_limit_and_a_number_is_one() -> None:
    assert [limit_pack_members("auto", 1, share) for share in (0, 1, 3, 100)] == [1, 1, 3, MAX_PACK_MEMBERS]
    assert limit_pack_members(3, 1, share=1) == 3


@pytest.mark.parametrize(
    ("waiting", "running", "workers", "idle", "share"),
    [(8, 0, 1, 1, 8), (9, 0, 2, 2, 5), (4, 5, 2, 1, 4), (5, 0, 4, 4, 2), (3, 2, 4, 3, 1), (7, 1, 2, 1, 4)],
)
def test_a_share_is_even(waiting: int, running: int, workers: int, idle: int, share: int) -> None:
    assert share_waiting_trials(waiting, running, workers, idle) == share


@pytest.mark.parametrize(("asked", "most"), [("auto", MAX_PACK_MEMBERS), (1, 1), (3, 3)])
def test_the_disk_is_asked_for_the_largest_pack(asked: int | str, most: int) -> None:
    assert find_largest_pack(asked) == most


def test_a_cpu_counts_half_of_its_memory_and_workers_share_a_slot() -> None:
    assert limit_pack_memory(Slot("cpu", None, "cpu", 1000), 1) == 500
    assert limit_pack_memory(Slot("cpu", None, "cpu", 1000), 2) == 250
    assert limit_pack_memory(Slot("cuda", 0, "big", 1000), 1) == 850
    assert limit_pack_memory(Slot("cpu", None, "cpu", None), 1) is None


@given(forecasts, st.integers(1, 12), st.integers(0, 5000), st.integers(1, 2))
def test_a_pack_fits_and_nobody_who_fits_is_left_out(
    these: list[MemoryForecast], most: int, room: int, lanes: int
) -> None:
    chosen = choose_pack_members(these, most, room, lanes)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= most
    members = [these[place] for place in chosen]
    assert len(chosen) == 1 or forecast_pack_memory(members, lanes) <= room
    if len(chosen) < most:
        others = [each for place, each in enumerate(these) if place not in chosen]
        assert all(forecast_pack_memory([*members, each], lanes) > room for each in others)


@given(st.integers(0, 60), st.integers(1, 6))
def test_no_worker_is_without_while_another_has_several(trials: int, workers: int) -> None:
    packs: list[int] = []
    for started in range(workers):
        waiting = trials - sum(packs)
        share = share_waiting_trials(waiting, sum(packs), workers, workers - started)
        packs.append(min(waiting, limit_pack_members("auto", 1, share)))
    assert sum(packs) == min(trials, MAX_PACK_MEMBERS * workers)
    assert max(packs) - min(packs) <= 1

"""The queue of pending trials, and the rules for which of them run next. It uses no process and no file."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from sweep.engines.pending import PendingTrial
from sweep.resources.pack_size import choose_pack_members


@dataclass
class TrialQueue:
    """The pending trials that wait for a worker, in the order of the plan."""

    waiting: list[PendingTrial] = field(default_factory=list)

    def take_pack(
        self,
        loaded_base: str | None,
        running: Iterable[PendingTrial],
        now: float,
        max_members: int = 1,
        memory: int | None = None,
        member_threads: int = 1,
    ) -> list[PendingTrial]:
        """Remove the next pack for a worker from the queue, and return it. It is empty if no trial may start now.

        The first member is, in this order of preference: a trial on the base that the worker has loaded; a trial on a
        base that no waiting evaluation will need; a trial on a base that no other worker uses. All other members need
        the same stages on the same base. Two evaluations of one trial never run at the same time.

        Args:
            loaded_base: the name of the base in the worker's memory.
            running: the trials that all workers run.
            now: seconds of time.monotonic().
            max_members: of the pack.
            memory: bytes that the pack's memory forecast may reach; None: no limit.
            member_threads: how many members of a pack compute at the same time.
        """
        running = list(running)
        running_ids = {pending.trial.trial_id for pending in running}
        ready = [p for p in self.waiting if p.trial.trial_id not in running_ids and p.not_before <= now]
        used_bases = {pending.base for pending in running}
        later_bases = {p.bases[1] for p in [*self.waiting, *running] if p.stages == ["train"]}
        first = min(
            ready, key=lambda p: (p.base != loaded_base, p.base in later_bases, p.base in used_bases), default=None
        )
        if first is None:
            return []
        candidates = list_companions(first, ready) if max_members > 1 else [first]
        forecasts = [pending.trial.forecast for pending in candidates]
        pack = [candidates[index] for index in choose_pack_members(forecasts, max_members, memory, member_threads)]
        for pending in pack:
            self.waiting.remove(pending)
        return pack

    def put_first(self, pending: PendingTrial) -> None:
        """Add a trial before all others."""
        self.waiting.insert(0, pending)

    def put_last(self, pending: PendingTrial) -> None:
        """Add a trial after all others."""
        self.waiting.append(pending)


def list_companions(first: PendingTrial, ready: Iterable[PendingTrial]) -> list[PendingTrial]:
    """``first``, and every ready trial that can be in a pack with it."""
    companions = {first.trial.trial_id: first}
    if first.runs_alone:
        return [first]
    for pending in ready:
        if (pending.base, pending.stages) == (first.base, first.stages) and not pending.runs_alone:
            companions.setdefault(pending.trial.trial_id, pending)
    return list(companions.values())

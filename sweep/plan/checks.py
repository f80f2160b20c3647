"""Checks that refuse a point of the command, or the whole command."""

import contextlib
from collections.abc import Iterator

from lora_sweep.config.schema import Config
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import Facts
from sweep.labels import list_varied_keys
from sweep.trials import SWEEP_WIDE_KEYS


class Refusals:
    """The refusals of a command's points.

    Attributes:
        by_number: the refusals by the number of the point, in the order in which they were raised.
    """

    def __init__(self, configs: list[Config]) -> None:
        self.configs = configs
        self.by_number: dict[int, Refused] = {}

    @contextlib.contextmanager
    def collect_refusal(self, number: int) -> Iterator[None]:
        """Catch a refusal that the block raises, and keep it for point ``number``."""
        try:
            yield
        except Refused as refusal:
            self.by_number[number] = refusal

    def list_accepted(self) -> list[int]:
        """The numbers of the points that are not refused."""
        return [number for number in range(len(self.configs)) if number not in self.by_number]

    def raise_if_final(self) -> None:
        """Raise the first refusal, if every point is refused or ``launch.strict`` allows no refused point."""
        if self.by_number and (self.configs[0].launch.strict or not self.list_accepted()):
            raise next(iter(self.by_number.values()))


def check_shared_settings(configs: list[Config]) -> None:
    """Refuse points that differ in a setting of the whole sweep."""
    if len({repr([getattr(config, name) for name in SWEEP_WIDE_KEYS]) for config in configs}) > 1:
        keys = [key for key in list_varied_keys(configs) if key.partition(".")[0] in SWEEP_WIDE_KEYS]
        raise Refused(keys[0], "differs between points; it is one setting of the whole sweep")


def check_positions(config: Config, facts: Facts) -> None:
    """Refuse rows and texts that have more tokens than the model has positions."""
    positions, longest_prompt = facts.model.max_positions, facts.data.longest_prompt
    if not positions:
        return
    max_length, new_tokens = config.train.max_length, config.eval.max_new_tokens
    if max_length > positions:
        raise Refused(f"train.max_length = {max_length}", f"is more than this model's {positions} positions")
    if longest_prompt and longest_prompt + new_tokens > positions:
        reason = f"and the longest prompt's {longest_prompt} tokens are more than this model's {positions} positions"
        raise Refused(f"eval.max_new_tokens = {new_tokens}", reason)

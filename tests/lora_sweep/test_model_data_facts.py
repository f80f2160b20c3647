"""The facts of a data set."""

from collections.abc import Callable

import pytest
from support.inspected import tiny_config

from lora_sweep.config.schema import Config, FixedPrompt
from lora_sweep.data.prompts import make_examples
from lora_sweep.data.rows import Row
from lora_sweep.data.splits import load_splits
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import DataFacts
from lora_sweep.model.data_facts import inspect_data


def test_data_facts_count_what_training_will_see() -> None:
    from lora_sweep.model.load import load_tokenizer

    config = tiny_config(train_rows=20)
    split = load_splits(config.data)
    tokenizer = load_tokenizer(config.model)
    lengths = [len(e.input_ids) for e in make_examples(split.train, config.data, tokenizer, 10_000)]
    config.train.max_length = sorted(lengths)[10]
    held_out = make_examples(split.validation, config.data, tokenizer, config.train.max_length)
    found = inspect_data(config, split, strict=True)
    cut = [min(length, config.train.max_length) for length in lengths]
    assert found == DataFacts(
        fingerprint="tiny:40",
        rows_fingerprint=split.compute_fingerprint(),
        rows_read=40,
        dropped=split.dropped,
        train_rows=20,
        validation_rows=len(split.validation),
        test_rows=len(split.test),
        cut_rows=sum(length > config.train.max_length for length in lengths),
        train_tokens=sum(cut),
        longest_row=max(lengths),
        longest_prompt=max(example.prompt_length for example in held_out),
        cut_validation_rows=sum(example.is_cut for example in held_out),
    )
    assert 0 < found.cut_rows <= 10


@pytest.mark.parametrize("name", ["train", "validation"])
def test_a_prompt_that_is_too_long_is_found_in_both_splits(name: str) -> None:
    config = tiny_config()
    config.train.max_length = 200
    split = load_splits(config.data)
    getattr(split, name)[0] = Row("lamp " * 200, None, "Light.")
    with pytest.raises(Refused, match=r"^train\.max_length = 200: 1 of \d+ prompts leave no room for a response; the"):
        inspect_data(config, split, strict=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: setattr(config.data, "template", "chat"),
        lambda config: setattr(config.eval, "baseline_templates", ["chat"]),
    ],
)
def test_a_chat_template_that_is_not_there_is_found_before_training(change: Callable[[Config], None]) -> None:
    config = tiny_config()
    config.eval.fixed_prompts = [FixedPrompt("lamp")]
    change(config)
    with pytest.raises(Refused, match=r"^data\.template = chat: this tokenizer has no chat template; allowed: alpaca"):
        inspect_data(config, load_splits(config.data), strict=True)

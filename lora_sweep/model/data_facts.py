"""Finds the facts about a data set under a template and a tokenizer, and the prompts of an evaluation."""

import dataclasses
from typing import Any

from lora_sweep.config.schema import Config
from lora_sweep.data.prompts import count_tokens, make_examples, tokenize_prompt
from lora_sweep.data.rows import Row
from lora_sweep.data.sources import fingerprint_source
from lora_sweep.data.splits import Splits, load_splits
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import DataFacts, is_cacheable
from lora_sweep.runs.records import Generation

NO_LIMIT = 1 << 30  # tokens: no row is as long


def load_splits_or_none(config: Config, strict: bool) -> Splits | None:
    """The splits. Without ``strict``, None for a data set on the hub that cannot be loaded."""
    try:
        return load_splits(config.data)
    except Refused:
        if strict or not config.data.hub_id or config.data.path:
            raise
        return None


def load_tokenizer_or_none(config: Config, strict: bool) -> Any:
    """The tokenizer. Without ``strict``, None for a model on the hub that cannot be loaded."""
    from lora_sweep.model.load import load_tokenizer

    try:
        return load_tokenizer(config.model)
    except Refused:
        if strict or not config.model.hub_id or config.model.path:
            raise
        return None


def select_held_out_rows(config: Config, splits: Splits) -> list[Row]:
    """The rows of the split ``eval.split``, from which the prompts are taken.

    Raises:
        Refused: the split has no row.
    """
    name, data = config.eval.split, config.data
    rows: list[Row] = getattr(splits, name)
    if not rows:
        fraction = "" if data.columns.split else f" (data.{name}_fraction={getattr(data, f'{name}_fraction')})"
        raise Refused(f"eval.split = {name}", f"no row of {data.path or data.name} is in the {name} split{fraction}")
    return rows


def list_prompts(config: Config, splits: Splits | None) -> list[Generation]:
    """The prompts of an evaluation, as rows of generations.jsonl without texts. Without ``splits``, the fixed ones."""
    rows = select_held_out_rows(config, splits)[: config.eval.prompts] if splits else []
    held_out = [(row.product, row.category, row.description) for row in rows]
    fixed = [(prompt.product, prompt.category, None) for prompt in config.eval.fixed_prompts]
    return [
        {"prompt_id": repr(product), "product": product, "category": category, "reference": reference}
        for product, category, reference in [*held_out, *fixed]
    ]


def inspect_data(config: Config, splits: Splits | None, strict: bool) -> DataFacts:
    """Counts and lengths of the data.

    Args:
        splits: None if the hub has them and they cannot be loaded. Then all facts but the fingerprint stay unknown.
        strict: whether a tokenizer that cannot be loaded is refused. If not, the lengths in tokens stay unknown.
    """
    fingerprint = fingerprint_source(config.data)
    tokenizer = load_tokenizer_or_none(config, strict)
    if splits is None:
        return DataFacts(fingerprint)
    rows_fingerprint = splits.compute_fingerprint()
    if not is_cacheable(config) and config.data.hub_id and not config.data.path:
        fingerprint = f"{config.data.hub_id}@rows:{rows_fingerprint}"
    facts = DataFacts(
        fingerprint,
        rows_fingerprint=rows_fingerprint,
        rows_read=splits.rows_read,
        dropped=splits.dropped,
        train_rows=len(splits.train),
        validation_rows=len(splits.validation),
        test_rows=len(splits.test),
    )
    return facts if tokenizer is None else measure_lengths(config, splits, tokenizer, facts)


def measure_lengths(config: Config, splits: Splits, tokenizer: Any, facts: DataFacts) -> DataFacts:
    """``facts`` with the lengths in tokens."""
    max_length = config.train.max_length
    train = make_examples(splits.train, config.data, tokenizer, max_length)
    whole = make_examples(splits.train, config.data, tokenizer, NO_LIMIT)
    held_out = select_held_out_rows(config, splits)
    longest_prompt = find_longest_prompt(config, held_out, tokenizer)
    validation = make_examples(held_out[: config.eval.validation_rows], config.data, tokenizer, max_length)
    return dataclasses.replace(
        facts,
        cut_rows=sum(example.is_cut for example in train),
        cut_validation_rows=sum(example.is_cut for example in validation),
        longest_prompt=longest_prompt,
        train_tokens=count_tokens(train),
        longest_row=max(len(example.input_ids) for example in whole),
    )


def find_longest_prompt(config: Config, held_out: list[Row], tokenizer: Any) -> int:
    """Tokens of the longest prompt under the trials' template and the baselines' templates."""
    rows = held_out[: max(config.eval.validation_rows, config.eval.prompts)]
    lengths: list[int] = []
    for template in (config.data.template, *config.eval.baseline_templates):
        data = dataclasses.replace(config.data, template=template)
        examples = make_examples(rows, data, tokenizer, config.train.max_length)
        lengths += [example.prompt_length for example in examples]
        for prompt in config.eval.fixed_prompts:
            lengths.append(len(tokenize_prompt(template, prompt.product, prompt.category, tokenizer)))
    return max(lengths)

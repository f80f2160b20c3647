"""Rows to prompts and token ids: the templates, the end of a response, and which tokens the loss counts.

The one place that tokenizes: training, generation and losses see the same ids. Imports no torch: a tokenizer is passed
in. What a data set says is text here: never a template, and never a control token.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lora_sweep.config.schema import Data
from lora_sweep.data.rows import Row
from lora_sweep.errors import Refused

ALPACA_TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
QA_TEMPLATE = "Q: {instruction}\nA:"
END_MARKERS = {"alpaca": "\n### End"}  # the blog's; the other forms end with the eos token alone
IGNORED_LABEL = -100  # a label that the loss leaves out, as in torch's cross entropy


def write_instruction(product: str, category: str | None) -> str:
    """The blog's sentence."""
    belonging = f", belonging to category: {category}" if category else ""
    return f"Create a detailed description for the following product: {product}{belonging}"


def choose_end_marker(data: Data, template: str) -> str:
    """The text that ends a response, before the eos token; empty when the eos token alone does."""
    return END_MARKERS.get(template, "") if data.end_marker is None else data.end_marker


def split_prompt(template: str, product: str, category: str | None, tokenizer: Any) -> tuple[str, str, str]:
    """A prompt as (before, what the data says, after): only the outer parts may hold control tokens.

    Raises:
        Refused: ``chat`` with a tokenizer that has no chat template.
    """
    if template == "alpaca":
        return "", ALPACA_TEMPLATE.replace("{instruction}", write_instruction(product, category)), ""
    if template == "qa":
        return "", QA_TEMPLATE.replace("{instruction}", write_instruction(product, category)), ""
    if template == "chat":
        if not tokenizer.chat_template:
            raise Refused("data.template = chat", "this tokenizer has no chat template", ("alpaca", "qa"))
        slot = "\ufdd0"  # a noncharacter: no template holds it
        messages = [{"role": "user", "content": slot}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        before, found, after = text.partition(slot)
        if not found:
            raise Refused(
                "data.template = chat", "its chat template does not show a message as it is", ("alpaca", "qa")
            )
        return before, write_instruction(product, category), after
    values = {"product": product, "category": category or ""}
    return "", re.sub(r"{(product|category)}", lambda found: values[found[1]], template), ""


def write_prompt(template: str, product: str, category: str | None, tokenizer: Any) -> str:
    """The prompt as a person reads it."""
    return "".join(split_prompt(template, product, category, tokenizer))


def tokenize_prompt(template: str, product: str, category: str | None, tokenizer: Any) -> list[int]:
    """The prompt's token ids; special tokens inside ``product`` and ``category`` are plain text."""
    before, said, after = split_prompt(template, product, category, tokenizer)
    if not before and not after:
        return tokenize_text(said, tokenizer)
    outer = [list(tokenizer(part, add_special_tokens=False)["input_ids"]) if part else [] for part in (before, after)]
    return outer[0] + _tokenize_plain(said, tokenizer, add_special_tokens=False) + outer[1]


def tokenize_text(text: str, tokenizer: Any) -> list[int]:
    """The token ids of a text that goes on: a bos token where the tokenizer wants one, and no eos token."""
    ids = _tokenize_plain(text, tokenizer, add_special_tokens=True)
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def tokenize_response(row: Row, marker: str, tokenizer: Any) -> list[int]:
    """The response's token ids, its end marker and the eos token included."""
    return [*_tokenize_plain(row.description + marker, tokenizer, add_special_tokens=False), tokenizer.eos_token_id]


def _tokenize_plain(text: str, tokenizer: Any, add_special_tokens: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=add_special_tokens, split_special_tokens=True)["input_ids"])


@dataclass(frozen=True)
class Example:
    """One row as the model sees it: token ids, how many of them are the prompt, and whether the end was cut."""

    input_ids: list[int]
    prompt_length: int
    cut: bool

    def labels(self, loss_on: str) -> list[int]:
        """The ids that the loss counts; the others are IGNORED. The prompt counts under ``loss_on=all``."""
        if loss_on == "all":
            return list(self.input_ids)
        return [IGNORED_LABEL] * self.prompt_length + self.input_ids[self.prompt_length :]


def make_examples(rows: Sequence[Row], data: Data, tokenizer: Any, max_length: int) -> list[Example]:
    """Token ids of ``rows`` under the data's template, cut to ``max_length``.

    Raises:
        Refused: prompts that leave no room for a response, all counted; or no eos token.
    """
    if tokenizer.eos_token_id is None:
        raise Refused("model", "its tokenizer has no eos token: a tuned model could never learn to stop")
    marker = choose_end_marker(data, data.template)
    made, too_long = [], []
    for row in rows:
        prompt = tokenize_prompt(data.template, row.product, row.category, tokenizer)
        ids = prompt + tokenize_response(row, marker, tokenizer)
        if len(prompt) >= max_length:
            too_long.append((len(prompt), row.product))
        made.append(Example(ids[:max_length], len(prompt), len(ids) > max_length))
    if too_long:
        longest, product = max(too_long)
        raise Refused(
            f"train.max_length = {max_length}",
            f"{len(too_long)} of {len(rows)} prompts leave no room for a response; the longest has {longest} tokens "
            f"({product[:60]!r}): raise train.max_length or shorten those rows",
        )
    return made


def count_tokens(made: Iterable[Example]) -> int:
    """Tokens of the rows themselves, without padding."""
    return sum(len(example.input_ids) for example in made)

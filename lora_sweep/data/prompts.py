"""Prompts and their token ids: the templates, the end of a response, and the tokens that the loss counts.

All tokenizing happens here, so that training, generation and losses see the same ids. A tokenizer is an argument, and
torch is not imported. The texts of a data set are data: they cannot bring in a template or a control token.
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
END_MARKERS = {"alpaca": "\n### End"}  # the blog's; responses under the other templates end with the eos token alone
IGNORED_LABEL = -100  # a label that the loss leaves out, as in torch's cross entropy
PLACEHOLDER = "\ufdd0"  # stands for the message in a chat template; a noncharacter, which no template contains


def write_instruction(product: str, category: str | None) -> str:
    """The instruction of the blog "Efficient Fine-Tuning with LoRA"."""
    category_part = f", belonging to category: {category}" if category else ""
    return f"Create a detailed description for the following product: {product}{category_part}"


def choose_end_marker(data: Data, template: str) -> str:
    """The text between a response and the eos token; ``""`` where there is none."""
    return END_MARKERS.get(template, "") if data.end_marker is None else data.end_marker


def split_prompt(template: str, product: str, category: str | None, tokenizer: Any) -> tuple[str, str, str]:
    """A prompt in three parts: before the data's text, that text, and after it.

    Only the first and the last part may hold control tokens.

    Raises:
        Refused: ``template`` is ``chat`` and the tokenizer has no chat template, or one that changes messages.
    """
    if template == "alpaca":
        return "", ALPACA_TEMPLATE.replace("{instruction}", write_instruction(product, category)), ""
    if template == "qa":
        return "", QA_TEMPLATE.replace("{instruction}", write_instruction(product, category)), ""
    if template == "chat":
        if not tokenizer.chat_template:
            raise Refused("data.template = chat", "this tokenizer has no chat template", ("alpaca", "qa"))
        messages = [{"role": "user", "content": PLACEHOLDER}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        before, placeholder, after = text.partition(PLACEHOLDER)
        if not placeholder:
            fault = "its chat template does not show a message as it is"
            raise Refused("data.template = chat", fault, ("alpaca", "qa"))
        return before, write_instruction(product, category), after
    # One pass: a product named "{category}" stays as it is.
    values = {"product": product, "category": category or ""}
    return "", re.sub(r"{(product|category)}", lambda match: values[match[1]], template), ""


def write_prompt(template: str, product: str, category: str | None, tokenizer: Any) -> str:
    """The prompt as text."""
    return "".join(split_prompt(template, product, category, tokenizer))


def tokenize_prompt(template: str, product: str, category: str | None, tokenizer: Any) -> list[int]:
    """The prompt's token ids. Names of special tokens inside ``product`` and ``category`` are read as plain text."""
    before, text, after = split_prompt(template, product, category, tokenizer)
    if not before and not after:
        return tokenize_text(text, tokenizer)
    ids_before, ids_after = (
        list(tokenizer(part, add_special_tokens=False)["input_ids"]) if part else [] for part in (before, after)
    )
    return ids_before + _tokenize_plain(text, tokenizer, add_special_tokens=False) + ids_after


def tokenize_text(text: str, tokenizer: Any) -> list[int]:
    """The token ids of a text that the model continues: with a bos token if the tokenizer adds one, without eos."""
    ids = _tokenize_plain(text, tokenizer, add_special_tokens=True)
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def tokenize_response(row: Row, marker: str, tokenizer: Any) -> list[int]:
    """The token ids of the row's response, of the end marker after it, and the eos token."""
    return [*_tokenize_plain(row.description + marker, tokenizer, add_special_tokens=False), tokenizer.eos_token_id]


def _tokenize_plain(text: str, tokenizer: Any, add_special_tokens: bool) -> list[int]:
    """The token ids of ``text``. Names of special tokens inside it, such as ``<|im_end|>``, are read as plain text."""
    return list(tokenizer(text, add_special_tokens=add_special_tokens, split_special_tokens=True)["input_ids"])


@dataclass(frozen=True)
class Example:
    """One row as the model sees it.

    Attributes:
        input_ids: the token ids of the prompt, then those of the response.
        prompt_length: the number of tokens of the prompt.
        is_cut: whether the end of the response was cut off because it did not fit.
    """

    input_ids: list[int]
    prompt_length: int
    is_cut: bool

    def mask_labels(self, loss_on: str) -> list[int]:
        """The labels of ``input_ids``: the id itself where the loss counts it, else IGNORED_LABEL.

        Args:
            loss_on: ``response`` leaves the prompt out, ``all`` counts it.
        """
        if loss_on == "all":
            return list(self.input_ids)
        return [IGNORED_LABEL] * self.prompt_length + self.input_ids[self.prompt_length :]


def make_examples(rows: Sequence[Row], data: Data, tokenizer: Any, max_length: int) -> list[Example]:
    """The token ids of ``rows`` under ``data.template``, cut to ``max_length`` tokens.

    Raises:
        Refused: the tokenizer has no eos token, or some prompts leave no room for a response.
    """
    if tokenizer.eos_token_id is None:
        raise Refused("model", "its tokenizer has no eos token: a tuned model could never learn to stop")
    marker = choose_end_marker(data, data.template)
    examples = []
    too_long: list[tuple[int, str]] = []  # (tokens, product)
    for row in rows:
        prompt = tokenize_prompt(data.template, row.product, row.category, tokenizer)
        ids = prompt + tokenize_response(row, marker, tokenizer)
        if len(prompt) >= max_length:
            too_long.append((len(prompt), row.product))
        examples.append(Example(ids[:max_length], len(prompt), len(ids) > max_length))
    if too_long:
        longest, product = max(too_long)
        raise Refused(
            f"train.max_length = {max_length}",
            f"{len(too_long)} of {len(rows)} prompts leave no room for a response; the longest has {longest} tokens "
            f"({product[:60]!r}): raise train.max_length or shorten those rows",
        )
    return examples


def count_tokens(examples: Iterable[Example]) -> int:
    """The number of tokens in the examples, without padding."""
    return sum(len(example.input_ids) for example in examples)

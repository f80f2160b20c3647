"""Prompts in every template, and their token ids."""

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.data_files import made_tokenizer as made_tokenizer
from support.data_files import tokenizer as tokenizer
from tokenizers.processors import TemplateProcessing

from lora_sweep.config.schema import Data
from lora_sweep.data.prompts import (
    IGNORED_LABEL,
    Example,
    choose_end_marker,
    count_tokens,
    make_examples,
    tokenize_prompt,
    tokenize_response,
    write_prompt,
)
from lora_sweep.data.rows import Row
from lora_sweep.data.sources import make_tiny_records
from lora_sweep.errors import Refused

# --- prompts ---------------------------------------------------------------------------------------------------------


CHAT = (
    "{% for message in messages %}<|bos|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant\n{% endif %}"
)


BLOG_PROMPT = """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Create a detailed description for the following product: Corelogic Smooth Mouse, belonging to category: Optical Mouse

### Response:
"""


def test_alpaca_is_the_blog_s_text_with_its_end_marker(tokenizer: Any) -> None:
    assert write_prompt("alpaca", "Corelogic Smooth Mouse", "Optical Mouse", None) == BLOG_PROMPT
    assert choose_end_marker(Data(), "alpaca") == "\n### End"
    row = Row("Corelogic Smooth Mouse", "Optical Mouse", "It is light.")
    made = make_examples([row], Data(), tokenizer, 512)[0]
    assert tokenizer.decode(made.input_ids) == BLOG_PROMPT + "It is light.\n### End<|end|>"


def test_qa_is_the_blog_s_other_form_and_ends_with_the_eos_token_alone(tokenizer: Any) -> None:
    sentence = (
        "Create a detailed description for the following product: Hoover Lightspeed, belonging to category: Vacuum"
    )
    said = f"Q: {sentence}\nA:"
    assert write_prompt("qa", "Hoover Lightspeed", "Vacuum", None) == said
    assert choose_end_marker(Data(), "qa") == choose_end_marker(Data(), "chat") == ""
    made = make_examples([Row("Hoover Lightspeed", "Vacuum", " Fast.")], Data(template="qa"), tokenizer, 512)[0]
    assert tokenizer.decode(made.input_ids) == said + " Fast.<|end|>"


def test_without_a_category_the_sentence_ends_earlier() -> None:
    assert (
        write_prompt("qa", "Lamp", None, None) == "Q: Create a detailed description for the following product: Lamp\nA:"
    )


def test_the_end_marker_can_be_chosen() -> None:
    assert (
        choose_end_marker(Data(end_marker=" STOP"), "alpaca")
        == choose_end_marker(Data(end_marker=" STOP"), "qa")
        == " STOP"
    )
    assert choose_end_marker(Data(end_marker=""), "alpaca") == ""


def test_chat_is_the_tokenizer_s_own_form(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT
    sentence = "Create a detailed description for the following product: Lamp, belonging to category: light"
    text = f"<|bos|>user\n{sentence}<|end|>\n<|bos|>assistant\n"
    assert write_prompt("chat", "Lamp", "light", tokenizer) == text
    ids = tokenize_prompt("chat", "Lamp", "light", tokenizer)
    assert tokenizer.decode(ids) == text
    assert [ids.count(token) for token in (tokenizer.bos_token_id, tokenizer.eos_token_id)] == [2, 1]


def test_chat_without_a_chat_template_is_refused(tokenizer: Any) -> None:
    said = r"^data\.template = chat: this tokenizer has no chat template; allowed: alpaca, qa$"
    with pytest.raises(Refused, match=said):
        write_prompt("chat", "Lamp", "light", tokenizer)


def test_a_chat_template_that_changes_what_is_said_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] | length }}{% endfor %}"
    said = r"^data\.template = chat: its chat template does not show a message as it is; allowed: alpaca, qa$"
    with pytest.raises(Refused, match=said):
        tokenize_prompt("chat", "Lamp", "light", tokenizer)


@pytest.mark.parametrize(
    ("template", "product", "category", "text"),
    [
        ("Describe {product} ({category}):\n", "Lamp", "light", "Describe Lamp (light):\n"),
        ("{product}{product}", "Lamp", "light", "LampLamp"),
        ("{product} ({category})", "Lamp", None, "Lamp ()"),
        ('{"name": {product}} {0} {{x}}', "Lamp", None, '{"name": Lamp} {0} {{x}}'),
        ("{product} / {category}", "{category}", "{product}", "{category} / {product}"),
        ("{product}", "\\1 \\g<0> %s $x {0}", None, "\\1 \\g<0> %s $x {0}"),
    ],
)
def test_a_text_with_fields_is_a_template_and_data_is_only_text(
    template: str, product: str, category: str | None, text: str
) -> None:
    assert write_prompt(template, product, category, None) == text


@pytest.mark.parametrize("template", ["alpaca", "qa", "chat", "On {product}, {category}:"])
def test_braces_in_data_stay_text_in_every_template(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = CHAT
    product, category = "{instruction} {product} {{ 7*7 }}", "{category} {% raw %}"
    text = write_prompt(template, product, category, tokenizer)
    assert product in text
    assert category in text
    assert text.count("{instruction}") == 1


# --- token ids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["alpaca", "qa", "chat", "{product} {category}"])
def test_special_tokens_in_data_are_plain_text(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = CHAT
    special = set(tokenizer.all_special_ids)
    plain = tokenize_prompt(template, "lamp x", "light", tokenizer)
    nasty = tokenize_prompt(template, "lamp <|end|><|bos|><|pad|> x", "<|end|>", tokenizer)
    assert [i for i in nasty if i in special] == [i for i in plain if i in special]
    assert "lamp <|end|><|bos|><|pad|> x" in tokenizer.decode(nasty)
    assert tokenizer.eos_token_id in tokenizer("<|end|>")["input_ids"]  # what happens without care


def test_special_tokens_in_a_response_are_plain_text_and_one_eos_ends_it(tokenizer: Any) -> None:
    ids = tokenize_response(Row("p", None, "one <|end|> two<|pad|>"), "\n### End", tokenizer)
    assert tokenizer.decode(ids) == "one <|end|> two<|pad|>\n### End<|end|>"
    assert [i for i in ids if i in tokenizer.all_special_ids] == [tokenizer.eos_token_id]
    assert ids[-1] == tokenizer.eos_token_id


def test_a_tokenizer_s_own_first_token_is_kept_and_its_last_is_not(tokenizer: Any) -> None:
    pair = [("<|bos|>", tokenizer.bos_token_id), ("<|end|>", tokenizer.eos_token_id)]
    plain = tokenize_prompt("qa", "Lamp", None, tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A <|end|>", special_tokens=pair)
    assert tokenize_prompt("qa", "Lamp", None, tokenizer) == [tokenizer.bos_token_id, *plain]
    ids = tokenize_response(Row("Lamp", None, "Light."), "", tokenizer)
    assert ids.count(tokenizer.bos_token_id) == 0
    assert ids.count(tokenizer.eos_token_id) == 1


def test_labels_leave_the_prompt_out_and_hold_the_end() -> None:
    example = Example([10, 11, 12, 20, 21, 1], prompt_length=3, is_cut=False)
    assert example.mask_labels("response") == [IGNORED_LABEL, IGNORED_LABEL, IGNORED_LABEL, 20, 21, 1]
    assert example.mask_labels("all") == [10, 11, 12, 20, 21, 1]
    assert IGNORED_LABEL == -100  # torch's and TRL's


@pytest.mark.parametrize("template", ["alpaca", "qa", "chat", "{product}: "])
def test_an_example_is_prompt_response_and_end(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = CHAT
    data = Data(template=template)
    rows = [Row(record["product"], record["category"], record["description"]) for record in make_tiny_records(5)]
    for row, made in zip(rows, make_examples(rows, data, tokenizer, 512), strict=True):
        prompt = tokenize_prompt(template, row.product, row.category, tokenizer)
        counted = [label for label in made.mask_labels("response") if label != IGNORED_LABEL]
        assert made.input_ids[: made.prompt_length] == prompt
        assert made.mask_labels("response")[: made.prompt_length] == [IGNORED_LABEL] * len(prompt)
        assert tokenizer.decode(counted) == row.description + choose_end_marker(data, template) + "<|end|>"
        assert counted[-1] == tokenizer.eos_token_id
        assert not made.is_cut


def test_rows_beyond_max_length_are_cut_and_say_so(tokenizer: Any) -> None:
    rows = [Row("Lamp", None, "It is light. " * n) for n in (1, 2, 40)]
    whole = make_examples(rows, Data(), tokenizer, 10_000)
    length = len(whole[1].input_ids)
    made = make_examples(rows, Data(), tokenizer, length)
    assert [example.is_cut for example in made] == [False, False, True]
    assert made[:2] == whole[:2]
    assert made[2].input_ids == whole[2].input_ids[:length]
    assert len(made[2].mask_labels("response")) == length
    assert made[2].mask_labels("response")[-1] != tokenizer.eos_token_id
    assert count_tokens(made) == len(whole[0].input_ids) + 2 * length


def test_prompts_without_room_for_a_response_are_refused_and_counted(tokenizer: Any) -> None:
    rows = [Row("Lamp", None, "Light."), Row("Lamp " * 30, None, "Light."), Row("Lamp " * 40, None, "Light.")]
    lengths = [len(tokenize_prompt("qa", row.product, None, tokenizer)) for row in rows]
    data = Data(template="qa")
    with pytest.raises(Refused) as caught:
        make_examples(rows, data, tokenizer, lengths[1])
    shown = ("Lamp " * 40)[:60]
    assert str(caught.value) == (
        f"train.max_length = {lengths[1]}: 2 of 3 prompts leave no room for a response; the longest has {lengths[2]} "
        f"tokens ({shown!r}): raise train.max_length or shorten those rows"
    )
    made = make_examples(rows, data, tokenizer, lengths[2] + 1)
    assert [len(example.input_ids) - example.prompt_length for example in made][2] == 1


def test_a_tokenizer_without_an_eos_token_is_refused(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(Refused, match=r"^model: its tokenizer has no eos token: a tuned model could never learn to st"):
        make_examples([Row("Lamp", None, "Light.")], Data(), tokenizer, 512)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(product=st.text(max_size=20), description=st.text(max_size=40), length=st.integers(60, 140))
def test_no_text_upsets_the_ids(tokenizer: Any, product: str, description: str, length: int) -> None:
    data = Data(template="qa")
    assume(len(tokenize_prompt("qa", product, None, tokenizer)) < length)
    made = make_examples([Row(product, None, description)], data, tokenizer, length)[0]
    assert len(made.input_ids) <= length
    assert made.is_cut == (made.input_ids[-1] != tokenizer.eos_token_id)
    special = [i for i in made.input_ids if i in tokenizer.all_special_ids]
    assert special == ([] if made.is_cut else [tokenizer.eos_token_id])

"""Generation: the same tokens whatever the batch, an end that is noticed, and losses that are exact."""

import hashlib
import json
import shutil
from typing import Any

import pytest
import torch
from support.here import HERE

from lora_sweep.config.identity import SCORER_VERSION
from lora_sweep.config.schema import Data, Eval, Lora, Model, Quant
from lora_sweep.data.prompts import choose_end_marker, make_examples, tokenize_prompt, tokenize_text
from lora_sweep.data.splits import load_splits
from lora_sweep.errors import Preempted
from lora_sweep.generation.losses import NEUTRAL_FILE, compute_neutral_loss, compute_reference_losses
from lora_sweep.generation.single import decode_text, find_eos_ids, generate_texts, pad_left
from lora_sweep.model.load import find_model_source, load_base, load_tokenizer
from lora_sweep.multi_lora.peft_format import attach_adapter

TINY = Model(name="tiny", tiny="llama")
DATA = Data(name="tiny", tiny=60)
MARKER = choose_end_marker(DATA, "alpaca")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(TINY)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    rows = load_splits(DATA).train[:7]
    texts = [("x" * 40 * index + row.product, row.category) for index, row in enumerate(rows)]
    return [tokenize_prompt("alpaca", product, category, tokenizer) for product, category in texts]


def noisy(base: Any) -> Any:
    """A model whose tokens differ from prompt to prompt: an untrained adapter does nothing."""
    model = attach_adapter(base, Lora(r=8), ["q_proj", "v_proj", "up_proj", "lm_head"], 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 1.0)
    return model.eval()


@pytest.mark.parametrize("shape", ["llama", "gpt2", "gpt_neox", "phi3"])
@pytest.mark.parametrize("bits", [None, 4])
def test_the_same_tokens_whatever_the_batch_size(shape: str, bits: int | None, prompts: Any, tokenizer: Any) -> None:
    base = load_base(Model(name="tiny", tiny=shape), Quant(bits), HERE)
    texts = {
        size: [
            w.text
            for w in generate_texts(base, tokenizer, prompts, Eval(batch_size=size, max_new_tokens=16), MARKER, HERE)
        ]
        for size in (1, 3, 7)
    }
    assert texts[1] == texts[3] == texts[7]


def test_texts_come_back_in_the_order_of_the_prompts(prompts: Any, tokenizer: Any) -> None:
    model = noisy(load_base(TINY, Quant(), HERE))
    settings = Eval(batch_size=2, max_new_tokens=8)
    together = [w.text for w in generate_texts(model, tokenizer, prompts, settings, MARKER, HERE)]
    alone = [generate_texts(model, tokenizer, [prompt], settings, MARKER, HERE)[0].text for prompt in prompts]
    assert together == alone
    assert len(set(together)) > 1


@pytest.mark.parametrize("sampling", [False, True])
def test_the_models_own_decoding_settings_do_not_leak_in(
    sampling: bool, prompts: Any, tokenizer: Any, tmp_path: Any
) -> None:
    """transformers fills what a GenerationConfig leaves open from generation_config.json."""
    plain, _ = find_model_source(TINY)
    folder = tmp_path / "opinionated"
    shutil.copytree(plain, folder)
    own = {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "top_k": 2, "eos_token_id": [1, 7]}
    (folder / "generation_config.json").write_text(json.dumps(own))
    settings = Eval(max_new_tokens=8, do_sample=sampling, temperature=2.0)
    bases = [load_base(model, Quant(), HERE) for model in (TINY, Model(name="mine", path=str(folder)))]
    assert find_eos_ids(bases[1], tokenizer) == [1, 7], "its end tokens are the model's to say"
    bases[1].generation_config.eos_token_id = None
    first, second = (
        [text.text for text in generate_texts(base, tokenizer, prompts, settings, MARKER, HERE, seed=1)]
        for base in bases
    )
    assert first == second


def test_sampling_depends_on_the_seed_alone(prompts: Any, tokenizer: Any) -> None:
    base = load_base(TINY, Quant(), HERE)
    settings = Eval(do_sample=True, temperature=2.0, max_new_tokens=8)
    first, again, other = (
        [w.text for w in generate_texts(base, tokenizer, prompts, settings, MARKER, HERE, seed)] for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("text", "tail", "expected", "finished"),
    [
        ("A lamp.\n### End", "", "A lamp.", True),
        ("A lamp.\n### End of it all", "", "A lamp.", True),
        ("A lamp.", "<|end|>", "A lamp.", True),
        ("A lamp.", "<|end|><|pad|><|pad|>", "A lamp.", True),
        ("A lamp and", "", "A lamp and", False),
        ("", "<|end|>", "", True),
    ],
)
def test_where_a_text_ends(text: str, tail: str, expected: str, finished: bool, tokenizer: Any) -> None:
    ids = tokenizer(text + tail, add_special_tokens=False)["input_ids"]
    written = decode_text(ids, tokenizer, [tokenizer.eos_token_id], MARKER)
    assert (written.text, written.finished) == (expected, finished)


def test_padding_after_the_end_is_not_counted(tokenizer: Any) -> None:
    marked = tokenizer("A lamp.\n### End", add_special_tokens=False)["input_ids"]
    padding = [tokenizer.pad_token_id] * 5
    assert decode_text(marked + padding, tokenizer, [tokenizer.eos_token_id], MARKER).new_tokens == len(marked)


def test_generation_stops_at_the_marker(tokenizer: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(TINY, Quant(), HERE)
    wanted = tokenizer("ok\n### End", add_special_tokens=False)["input_ids"]
    steps = []

    def scripted(module: Any, inputs: Any, outputs: Any) -> Any:
        logits = torch.full_like(outputs.logits, -10.0)
        logits[:, :, wanted[len(steps) % len(wanted)]] = 10.0
        steps.append(1)
        outputs.logits = logits
        return outputs

    with base.register_forward_hook(scripted):
        written = generate_texts(base, tokenizer, prompts[:2], Eval(max_new_tokens=60), MARKER, HERE)
    assert [(w.text, w.finished) for w in written] == [("ok", True)] * 2
    assert len(steps) == len(wanted), "it went on after the marker"


@pytest.mark.parametrize(("asks", "written", "batches"), [(1, 0, []), (2, 1, []), (5, 4, []), (8, 6, [(4, 7)])])
def test_a_request_to_stop_is_obeyed_within_a_token(
    asks: int, written: int, batches: list[tuple[int, int]], prompts: Any, tokenizer: Any
) -> None:
    base = load_base(TINY, Quant(), HERE)
    asked, tokens, told = [], [], []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == asks

    settings = Eval(batch_size=4, max_new_tokens=5)
    with (
        base.register_forward_hook(lambda *call: tokens.append(1)),
        pytest.raises(Preempted, match="during generation; the adapter is saved"),
    ):
        generate_texts(base, tokenizer, prompts, settings, "", HERE, on_batch=lambda *at: told.append(at), stop=stop)
    assert (len(tokens), told) == (written, batches)


def test_each_batch_of_texts_is_told(prompts: Any, tokenizer: Any) -> None:
    told: list[tuple[int, int]] = []
    settings = Eval(batch_size=3, max_new_tokens=2)
    base = load_base(TINY, Quant(), HERE)
    generate_texts(base, tokenizer, prompts, settings, MARKER, HERE, on_batch=lambda *at: told.append(at))
    assert told == [(3, 7), (6, 7), (7, 7)]


def test_a_request_to_stop_is_obeyed_between_batches_of_losses(tokenizer: Any) -> None:
    base = load_base(TINY, Quant(), HERE)
    rows = make_examples(load_splits(DATA).train[:5], DATA, tokenizer, 256)
    batches: list[int] = []
    with (
        base.register_forward_hook(lambda *call: batches.append(1)),
        pytest.raises(Preempted, match="adapter is saved"),
    ):
        compute_reference_losses(base, rows, tokenizer.pad_token_id, 2, HERE, stop=lambda: len(batches) == 2)
    assert len(batches) == 2


def test_pad_left() -> None:
    ids, mask = pad_left([[1, 2, 3], [4]], pad_id=9)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_reference_losses_are_the_responses_own(batch_size: int, tokenizer: Any) -> None:
    base = load_base(TINY, Quant(), HERE)
    rows = make_examples(load_splits(DATA).train[:5], DATA, tokenizer, 256)
    losses = compute_reference_losses(base, rows, tokenizer.pad_token_id, batch_size, HERE)
    for row, (total, count) in zip(rows, losses, strict=True):
        assert count == len(row.input_ids) - row.prompt_length
        with torch.no_grad():
            loss = base(
                input_ids=torch.tensor([row.input_ids], device=HERE.type),
                labels=torch.tensor([row.mask_labels("response")], device=HERE.type),
            ).loss  # transformers' own mean
        assert total / count == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize(("shape", "positions"), [("llama", 1024), ("gpt2", 1024), ("llama", 100)])
def test_the_neutral_text_s_loss_is_that_of_its_first_tokens(shape: str, positions: int, tokenizer: Any) -> None:
    base = load_base(Model(name="tiny", tiny=shape), Quant(), HERE)
    base.config.max_position_embeddings = positions
    ids = torch.tensor([tokenize_text(NEUTRAL_FILE.read_text(), tokenizer)[: min(512, positions)]], device=HERE.type)
    assert ids.shape[1] in (512, 100)
    with torch.no_grad():
        loss = base(input_ids=ids, labels=ids).loss  # transformers' own mean, over all tokens but the first
    assert compute_neutral_loss(base, tokenizer, HERE) == pytest.approx(float(loss), rel=1e-4)


def test_the_neutral_text_s_loss_is_the_tuned_model_s_and_none_where_it_is_no_number(tokenizer: Any) -> None:
    base = load_base(TINY, Quant(), HERE)
    untuned = compute_neutral_loss(base, tokenizer, HERE)
    tuned = noisy(base)
    assert compute_neutral_loss(tuned, tokenizer, HERE) != pytest.approx(untuned, abs=0.01)
    with torch.no_grad():
        next(parameter for name, parameter in tuned.named_parameters() if "lora_B" in name).fill_(torch.nan)
    assert compute_neutral_loss(tuned, tokenizer, HERE) is None
    with pytest.raises(Preempted):
        compute_neutral_loss(base, tokenizer, HERE, stop=lambda: True)


def test_the_neutral_text_is_the_one_that_earlier_evaluations_used() -> None:
    """Another text makes other numbers under the same names: raise SCORER_VERSION with it."""
    text = NEUTRAL_FILE.read_text(encoding="utf-8")
    assert (SCORER_VERSION, hashlib.sha256(text.encode()).hexdigest()[:12]) == (3, "a87b75d0f583")
    assert 250 <= len(text.split()) <= 400
    assert text.isascii()

"""Packed generation: each adapter has the same texts and losses as alone, whatever else is in the batch."""

import json
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.here import HERE

from lora_sweep.config.schema import Data, Eval, Lora, Model, Quant
from lora_sweep.data.prompts import choose_end_marker, make_examples, tokenize_prompt
from lora_sweep.data.splits import load_splits
from lora_sweep.errors import Preempted
from lora_sweep.generation.losses import compute_member_losses, compute_reference_losses
from lora_sweep.generation.packed import GenerationRequest, generate_pack
from lora_sweep.generation.packed_base import infer_with_adapters
from lora_sweep.generation.single import generate_texts
from lora_sweep.model.load import base_signature, load_base, load_tokenizer
from lora_sweep.multi_lora.adapter import Adapter
from lora_sweep.multi_lora.peft_format import create_adapter, save_adapter

DATA = Data(name="tiny", tiny=60)
MARKER = choose_end_marker(DATA, "alpaca")
TARGETS = {
    "llama": ["q_proj", "v_proj", "up_proj", "lm_head"],
    "gpt2": ["c_attn", "c_fc"],
    "phi3": ["qkv_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense"],
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(Model(name="tiny", tiny="llama"))


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    rows = load_splits(DATA).train[:7]
    texts = [("x" * 40 * index + row.product, row.category) for index, row in enumerate(rows)]
    return [tokenize_prompt("alpaca", product, category, tokenizer) for product, category in texts]


def load(shape: str = "llama", bits: int | None = None) -> Any:
    return load_base(Model(name="tiny", tiny=shape), Quant(bits), HERE)


def noisy(base: Any, targets: list[str], seed: int, r: int = 4) -> tuple[Adapter, Any]:
    """An adapter that gives other texts with every seed; a new adapter would change nothing."""
    adapter, config = create_adapter(base, Lora(r=r, dropout=0.1), targets, seed)
    adapter.numbers.normal_(0, 0.6, generator=torch.Generator(HERE.type).manual_seed(seed))
    return adapter, config


@pytest.mark.parametrize("shape", list(TARGETS))
@pytest.mark.parametrize("bits", [None, 4])
def test_the_same_texts_and_losses_as_peft_and_transformers_alone(
    shape: str, bits: int | None, prompts: Any, tokenizer: Any, tmp_path: Any
) -> None:
    base = load(shape, bits)
    members = [noisy(base, TARGETS[shape], seed, r) for seed, r in ((1, 4), (2, 2), (3, 8))]
    members[1] = noisy(base, TARGETS[shape][:1], 2, 2)  # other modules than the others
    adapters = [None, *(adapter for adapter, _ in members)]
    settings = Eval(max_new_tokens=12, batch_size=3)
    before = base_signature(base)
    requests = [GenerationRequest(adapter, prompts, MARKER) for adapter in adapters]
    together, seconds = generate_pack(base, tokenizer, requests, settings, HERE)
    rows = make_examples(load_splits(DATA).train[:9], DATA, tokenizer, 128)
    with infer_with_adapters(base, adapters, HERE) as adapter_map:
        losses = [compute_member_losses(base, adapter_map, number, rows, 4, HERE) for number in range(4)]
    assert base_signature(base) == before
    assert all(share > 0 for share in seconds)
    for number, expected in enumerate([None, *members]):
        model = load(shape, bits)
        if expected is not None:
            save_adapter(*expected, tmp_path / str(number))
            model = PeftModel.from_pretrained(model, str(tmp_path / str(number))).eval()
        assert together[number] == generate_texts(model, tokenizer, prompts, settings, MARKER, HERE)
        exact = compute_reference_losses(model, rows, tokenizer.pad_token_id, 4, HERE)
        assert [count for _, count in losses[number]] == [count for _, count in exact]
        assert [loss for loss, _ in losses[number]] == pytest.approx([loss for loss, _ in exact], rel=1e-5)
    assert len({json.dumps([text.text for text in texts]) for texts in together}) == 4, "some adapters write alike"


def test_sampled_texts_depend_on_the_seed_and_not_on_other_requests(prompts: Any, tokenizer: Any) -> None:
    base = load()
    adapters = [noisy(base, TARGETS["llama"], seed)[0] for seed in (1, 2)]
    settings = Eval(max_new_tokens=12, do_sample=True, temperature=1.5, top_p=0.9)

    def texts(requests: list[GenerationRequest], batch_size: int) -> list[list[str]]:
        sampled = Eval(**{**vars(settings), "batch_size": batch_size})
        return [[text.text for text in one] for one in generate_pack(base, tokenizer, requests, sampled, HERE)[0]]

    first, second = (
        GenerationRequest(adapters[0], prompts, MARKER, 5),
        GenerationRequest(adapters[1], prompts, MARKER, 6),
    )
    together = texts([first, second], 16)
    assert together == [texts([first], 2)[0], texts([second], 7)[0]]
    assert together != texts([first, GenerationRequest(adapters[1], prompts, MARKER, 7)], 16)


def test_a_text_ends_at_the_marker_of_its_own_request(prompts: Any, tokenizer: Any) -> None:
    base = load()
    adapter = noisy(base, TARGETS["llama"], 1)[0]
    settings = Eval(max_new_tokens=12)
    ((plain,), _) = generate_pack(base, tokenizer, [GenerationRequest(adapter, prompts, "")], settings, HERE)
    sign = plain[0].text[3:5]
    (marked, unmarked), _ = generate_pack(
        base,
        tokenizer,
        [GenerationRequest(adapter, prompts, sign), GenerationRequest(adapter, prompts, "")],
        settings,
        HERE,
    )
    assert unmarked == plain
    assert marked[0].finished
    assert marked[0].text == plain[0].text[: plain[0].text.index(sign)].strip()
    assert marked[0].new_tokens < plain[0].new_tokens


def test_a_request_to_stop_is_obeyed_at_a_token_and_leaves_the_base_unchanged(prompts: Any, tokenizer: Any) -> None:
    base = load()
    adapter, asked = noisy(base, TARGETS["llama"], 1)[0], []
    before, attention = base_signature(base), base.config._attn_implementation

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 5

    with pytest.raises(Preempted):
        generate_pack(
            base, tokenizer, [GenerationRequest(adapter, prompts, MARKER)], Eval(max_new_tokens=12), HERE, stop=stop
        )
    assert (base_signature(base), base.config._attn_implementation) == (before, attention)


def test_no_prompts_give_no_texts(tokenizer: Any) -> None:
    assert generate_pack(load(), tokenizer, [GenerationRequest(None, [], MARKER)], Eval(), HERE) == ([[]], [0.0])

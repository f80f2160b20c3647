"""tiny: the same small model every time, made without touching anybody's random numbers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_sweep.config.schema import TINY_SHAPES
from lora_sweep.model.tiny import TINY_ARCHITECTURES, VOCAB_SIZE, make_tiny_model, make_tiny_tokenizer


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_shape_of_the_schema_can_be_made() -> None:
    assert tuple(TINY_ARCHITECTURES) == TINY_SHAPES


@pytest.mark.parametrize("shape", TINY_SHAPES)
def test_a_model_has_the_same_bytes_every_time_and_draws_from_no_one_s_generator(tmp_path: Path, shape: str) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    make_tiny_model(shape, tmp_path / "one")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    make_tiny_model(shape, tmp_path / "two")
    one = content(tmp_path / "one")
    assert one == content(tmp_path / "two")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(one)


@pytest.mark.parametrize("shape", TINY_SHAPES)
def test_a_model_is_small_and_writes_text(tmp_path: Path, shape: str) -> None:
    make_tiny_model(shape, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.model_type == shape
    assert 100_000 < model.num_parameters() < 300_000
    assert 256 < len(tokenizer) <= model.config.vocab_size == VOCAB_SIZE
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(model.config, name) == getattr(tokenizer, name)
    ids = tokenizer("The red lamp", return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert written.shape[1] == ids["input_ids"].shape[1] + 4


def test_fields_of_the_architecture_can_be_changed(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path, tie_word_embeddings=True, num_hidden_layers=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(model.model.layers) == 1


@pytest.mark.parametrize("text", ["The red lamp.", "Fußmatte 毛毯 🪔", "\ttabs\n\nand  spaces ", "\x00\x7f"])
def test_the_tokenizer_loses_no_byte(text: str) -> None:
    tokenizer = make_tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3

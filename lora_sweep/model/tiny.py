"""Makes random models of about 0.1M parameters, with real architectures, for tests and smoke sweeps."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lora_sweep.data.prompts import write_prompt
from lora_sweep.data.sources import make_tiny_records

VOCAB_SIZE = 512
TINY_ARCHITECTURES: dict[str, dict[str, int | bool]] = {  # fields of transformers' config
    "llama": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": False,
    },
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024},
    "phi3": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": False,
    },
    "gpt_neox": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 1024, "tie_word_embeddings": False,
    },
}  # fmt: skip


def make_tiny_model(shape: str, folder: Path, **changes: Any) -> None:
    """Save a random model of ``shape`` and its tokenizer: the same bytes every time.

    Args:
        shape: llama, gpt2, phi3 or gpt_neox.
        changes: further fields of the architecture's config, such as ``tie_word_embeddings=True``.
    """
    tokenizer = make_tiny_tokenizer()
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(shape, vocab_size=VOCAB_SIZE, **{**TINY_ARCHITECTURES[shape], **special, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of VOCAB_SIZE tokens, trained on the made-up rows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [record["description"] for record in make_tiny_records(64)]
    texts += [write_prompt("alpaca", record["product"], record["category"], None) for record in make_tiny_records(64)]
    special = ["<|bos|>", "<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[2]
    )

"""The facts of a model, counted without its weights."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.inspected import SMALL, WIDE, from_folder, tiny_config
from support.tiny_shapes import LAYER, hand_facts

from lora_sweep.config.schema import Lora, Model
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import ModelFacts
from lora_sweep.facts.memory import count_trainable_params
from lora_sweep.facts.targets import drop_repeats, name_target_modules, resolve_targets
from lora_sweep.model.inspect import check_model_path
from lora_sweep.model.model_facts import describe_model, inspect_model

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize("shape", sorted(LAYER))
def test_facts_of_a_tiny_model_are_those_of_the_table(shape: str) -> None:
    assert inspect_model(tiny_config(shape)) == hand_facts(shape)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", sorted(LAYER))
def test_a_tied_head_is_seen_in_every_shape(shape: str, tied: bool, tiny_folder: Callable[..., Path]) -> None:
    found = inspect_model(from_folder(tiny_folder(shape, tie_word_embeddings=tied)))
    assert dataclasses.replace(found, fingerprint=f"tiny:{shape}-1") == hand_facts(shape, tied)


@pytest.mark.parametrize("shape", sorted(LAYER))
def test_the_meta_model_is_the_saved_one(shape: str, tiny_folder: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_folder(shape)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    found = describe_model(loaded, loaded.config, "x")
    assert dataclasses.replace(found, fingerprint="") == dataclasses.replace(
        inspect_model(from_folder(folder)), fingerprint=""
    )
    assert found.total_params == loaded.num_parameters()


def test_a_folder_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(Refused, match=r"^model mine: is no causal language model that transformers knows \(Unrecogn"):
        inspect_model(from_folder(tmp_path))


def test_an_unknown_architecture_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    for path, what in ((tmp_path, "holds no config.json"), (tmp_path / "absent", "is no folder")):
        with pytest.raises(Refused, match=rf"^model\.path = {path}: {what}; it must be a folder in"):
            check_model_path(str(path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    with pytest.raises(Refused, match=r"^model mine: .*no_such_model"):
        inspect_model(from_folder(tmp_path))


def test_the_blog_s_numbers_come_from_the_architecture_in_the_yaml_alone() -> None:
    config = tiny_config()
    written = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "openllama_3b_v2.yaml"))
    config.model = Model(**written)  # type: ignore[arg-type]
    facts = inspect_model(config)
    assert (facts.layers, facts.hidden_size, facts.vocab_size, facts.tied_head) == (26, 3200, 32000, False)

    def trainable(r: int, group: str) -> int:
        return count_trainable_params(Lora(r=r), resolve_targets(group, facts), facts)

    assert trainable(8, "attn") == 2_662_400
    assert trainable(16, "attn") == 5_324_800
    assert trainable(8, "all_linear_and_head") == 12_994_560
    assert trainable(8, "all_linear") == 12_712_960
    assert facts.total_params == 3_426_473_600


@pytest.mark.parametrize("path", sorted(CONF.glob("model/*.yaml")), ids=lambda path: path.stem)
def test_every_architecture_in_a_yaml_builds(path: Path) -> None:
    written: Any = OmegaConf.to_container(OmegaConf.load(path))
    if "architecture" not in written:
        return
    config = tiny_config()
    written["architecture"] = {**written["architecture"], "num_hidden_layers": 1}
    config.model = Model(**written)
    facts = inspect_model(config)
    assert facts.tied_head == written["architecture"]["tie_word_embeddings"]
    assert facts.fingerprint == f"{written['hub_id']}@{written['revision']}"
    assert drop_repeats(name.rpartition(".")[2] for name in facts.attn) == ["q_proj", "v_proj"]


LATENT = {
    **WIDE,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 2,
}


QV = ["q_proj", "v_proj"]


GATED = ["gate_proj", "up_proj", "down_proj"]


ARCHITECTURES: dict[str, tuple[str, dict[str, Any], list[str], list[str]]] = {
    "bloom": ("bloom", SMALL, ["query_key_value"], ["dense_h_to_4h", "dense_4h_to_h"]),
    "codegen": (
        "codegen",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "vocab_size": 128},
        ["qkv_proj"],
        ["fc_in", "fc_out"],
    ),
    "cohere": ("cohere", {**WIDE, "pad_token_id": 0}, QV, GATED),
    "ctrl": (
        "ctrl",
        {"n_embd": 64, "dff": 128, "n_layer": 2, "n_head": 4, "vocab_size": 128},
        ["Wq", "Wv"],
        ["0", "2"],
    ),
    "deepseek_v3": ("deepseek_v3", {**LATENT, "q_lora_rank": 32}, ["q_b_proj", "kv_b_proj"], GATED),
    "deepseek_v3, full queries": ("deepseek_v3", {**LATENT, "q_lora_rank": None}, ["q_proj", "kv_b_proj"], GATED),
    "falcon, one head of keys": (
        "falcon",
        {**SMALL, "multi_query": True},
        ["query_key_value"],
        ["dense_h_to_4h", "dense_4h_to_h"],
    ),
    "falcon, grouped": (
        "falcon",
        {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2},
        ["query_key_value"],
        ["dense_h_to_4h", "dense_4h_to_h"],
    ),
    "falcon, as many": (
        "falcon",
        {**SMALL, "multi_query": False},
        ["query_key_value"],
        ["dense_h_to_4h", "dense_4h_to_h"],
    ),
    "gemma": ("gemma", {**WIDE, "head_dim": 16, "num_key_value_heads": 1, "pad_token_id": 0}, QV, GATED),
    "gemma3_text": ("gemma3_text", {**WIDE, "head_dim": 16, "num_key_value_heads": 2}, QV, GATED),
    "gpt_bigcode": (
        "gpt_bigcode",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128},
        ["c_attn"],
        ["c_fc", "c_proj"],
    ),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "vocab_size": 128,
        },
        QV,
        ["c_fc", "c_proj"],
    ),
    "gptj": (
        "gptj",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "vocab_size": 128},
        QV,
        ["fc_in", "fc_out"],
    ),
    "granite": ("granite", WIDE, QV, GATED),
    "mistral": ("mistral", {**WIDE, "num_key_value_heads": 2}, QV, GATED),
    "mpt": ("mpt", {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 128}, ["Wqkv"], ["up_proj", "down_proj"]),
    "olmo2": ("olmo2", {**WIDE, "pad_token_id": 0}, QV, GATED),
    "opt": (
        "opt",
        {**SMALL, "ffn_dim": 128, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
        QV,
        ["fc1", "fc2"],
    ),
    "phi": ("phi", WIDE, QV, ["fc1", "fc2"]),
    "qwen2": ("qwen2", {**WIDE, "num_key_value_heads": 2}, QV, GATED),
    "qwen3": ("qwen3", {**WIDE, "num_key_value_heads": 2, "head_dim": 16}, QV, GATED),
    "smollm3": ("smollm3", {**WIDE, "num_key_value_heads": 2, "pad_token_id": 0}, QV, GATED),
    "stablelm": ("stablelm", {**WIDE, "num_key_value_heads": 4}, QV, GATED),
    "starcoder2": ("starcoder2", {**WIDE, "num_key_value_heads": 2}, QV, ["c_fc", "c_proj"]),
}


def toy(model_type: str, fields: dict[str, Any]) -> tuple[Any, ModelFacts]:
    """A model of toy size on the meta device, and its facts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture = AutoConfig.for_model(model_type, **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture)
    return model, describe_model(model, architecture, "toy")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_groups_are_found_by_looking_at_the_model(name: str) -> None:
    import torch
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer

    from lora_sweep.model.load import make_lora_config

    model_type, fields, attn, mlp = ARCHITECTURES[name]
    model, facts = toy(model_type, fields)
    assert drop_repeats(path.rpartition(".")[2] for path in facts.attn) == attn
    assert drop_repeats(path.rpartition(".")[2] for path in facts.mlp) == mlp
    assert len(facts.attn) == 2 * len(attn)  # in each of both layers, once
    assert not set(facts.attn) & set(facts.mlp)
    assert facts.head is not None
    assert facts.head not in facts.mlp
    assert (facts.hidden_size, facts.layers, facts.vocab_size) == (64, 2, 128)

    lora = Lora(r=2, bias="all", use_dora=True)
    # PEFT takes mlp names of a mixture of experts for the experts' stacked parameters
    linears = resolve_targets("attn" if model_type == "deepseek_v3" else "all_linear", facts)
    with torch.device("meta"):
        adapted = get_peft_model(model, make_lora_config(lora, name_target_modules(linears, facts)))
    assert adapted.get_nb_trainable_parameters()[0] == count_trainable_params(lora, linears, facts)
    base = adapted.get_base_model()
    assert {path for path, part in base.named_modules() if isinstance(part, LoraLayer)} == {x.name for x in linears}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attn_is_what_peft_takes_by_default_where_it_knows_the_architecture(name: str) -> None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    model_type, _, attn, _ = ARCHITECTURES[name]
    default = [module for module in DEFAULTS.get(model_type, attn) if module not in ("fc1", "fc2")]  # Phi's MLP
    assert default == attn


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("mamba", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128}),
        ("rwkv", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128, "attention_hidden_size": 64}),
    ],
)
def test_a_model_without_queries_is_refused_under_attn_and_shows_its_names(
    model_type: str, fields: dict[str, Any]
) -> None:
    _, facts = toy(model_type, fields)
    said = rf"^lora\.targets = attn: matches no module of this {model_type}; name modules instead; allowed: \w+, "
    with pytest.raises(Refused, match=said):
        resolve_targets("attn", facts)

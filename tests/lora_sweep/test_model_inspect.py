"""inspect: facts of tiny models against a table made by hand, of toy models of other architectures, and of data."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.tiny_shapes import LAYER, hand_facts

from lora_sweep.config.schema import Config, FixedPrompt, Lora, Model, Train, WheelFile
from lora_sweep.data.prompts import make_examples
from lora_sweep.data.rows import Row
from lora_sweep.data.splits import load_splits
from lora_sweep.errors import Refused
from lora_sweep.facts import facts as facts_module
from lora_sweep.facts.facts import DataFacts, Facts, ModelFacts, facts_file, facts_key, read_cached_facts
from lora_sweep.facts.memory import count_trainable_params
from lora_sweep.facts.targets import drop_repeats, name_target_modules, resolve_targets
from lora_sweep.model.data_facts import inspect_data
from lora_sweep.model.inspect import check_model_path, check_settings, inspect_trial
from lora_sweep.model.model_facts import describe_model, inspect_model

CONF = Path(__file__).parents[2] / "conf"


def tiny_config(shape: str = "llama", **data: Any) -> Config:
    config = Config()
    config.model.name, config.model.tiny = "tiny", shape
    config.data = dataclasses.replace(config.data, **{"name": "tiny", "tiny": 40, "validation_fraction": 0.25, **data})
    return config


def from_folder(folder: Path) -> Config:
    config = tiny_config()
    config.model = Model(name="mine", path=str(folder))
    return config


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without facts; tiny models are made in it anew."""
    monkeypatch.setenv("LORA_SWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- models ------------------------------------------------------------------------------------------------------


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


# Toy sizes for architectures that transformers has, and what attn and mlp must be in them.
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
WIDE = {**SMALL, "intermediate_size": 128}
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


# --- data --------------------------------------------------------------------------------------------------------


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


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "lr_scheduler_type",
            "linera",
            "train.lr_scheduler_type = linera: is unknown; did you mean 'linear'?; allowed: ",
        ),
        ("optim", "adamw_torhc", "train.optim = adamw_torhc: is unknown; did you mean 'adamw_torch'?; allowed: "),
        (
            "train_sampling_strategy",
            "group_by_lenght",
            "train.train_sampling_strategy = group_by_lenght: is unknown; did you mean 'group_by_length'?; allowed: ",
        ),
        ("sft", {"neftune_noise_alpa": 5}, "train.sft.neftune_noise_alpa: is no key of TRL's SFTConfig; "),
    ],
)
def test_settings_that_the_trainer_does_not_know_are_refused(key: str, value: Any, said: str, own_cache: Path) -> None:
    config = tiny_config()
    facts = inspect_trial(config, strict=True)
    setattr(config.train, key, value)
    assert read_cached_facts(config, strict=True) == facts  # known facts do not let them through
    with pytest.raises(Refused) as caught:
        inspect_trial(config, strict=True)
    assert str(caught.value).startswith(said)


def test_settings_that_the_trainer_knows_are_taken() -> None:
    train = Train(lr_scheduler_type="cosine", optim="sgd", train_sampling_strategy="sequential")
    check_settings(train)
    check_settings(Train(sft={"neftune_noise_alpha": 5.0}))


# --- cache -------------------------------------------------------------------------------------------------------


def test_facts_are_remembered_and_read_back(own_cache: Path) -> None:
    config = tiny_config("phi3")
    assert read_cached_facts(config, strict=True) is None
    facts = inspect_trial(config, strict=True)
    assert read_cached_facts(config, strict=True) == facts
    assert Facts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert facts.model == hand_facts("phi3")
    assert facts.compute_bytes in (2, 4)
    assert facts_file(config, strict=True).is_relative_to(own_cache)
    assert read_cached_facts(config, strict=False) is None  # a plan asks for less


def test_known_facts_need_no_second_look(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    facts = inspect_trial(config, strict=True)
    monkeypatch.setattr("lora_sweep.model.inspect.inspect_model", lambda config: pytest.fail("looked again"))
    assert inspect_trial(config, strict=True) == facts


def test_known_facts_need_no_torch(own_cache: Path) -> None:
    config = tiny_config()
    inspect_trial(config, strict=True)
    program = (
        "import json, sys\n"
        "import lora_sweep.model.inspect\n"
        "from lora_sweep.config.schema import config_from_json\n"
        "from lora_sweep.facts.facts import read_cached_facts\n"
        "facts = read_cached_facts(config_from_json(json.loads(sys.argv[1])), strict=True)\n"
        "print(facts.model.model_type, sorted({'torch', 'transformers', 'pandas', 'peft'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", program, json.dumps(dataclasses.asdict(config))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "llama []\n"


def test_rows_are_refused_without_waiting_for_torch(tmp_path: Path, own_cache: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"product": "lamp"')
    config = tiny_config(path=str(tmp_path / "rows.jsonl"))
    program = (
        "import json, sys\n"
        "from lora_sweep.config.schema import config_from_json\n"
        "from lora_sweep.errors import Refused\n"
        "from lora_sweep.model.inspect import inspect_trial\n"
        "try:\n"
        "    inspect_trial(config_from_json(json.loads(sys.argv[1])), strict=True)\n"
        "except Refused as error:\n"
        "    print(error, 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, json.dumps(dataclasses.asdict(config))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    start = f"{tmp_path / 'rows.jsonl'}, line 1: is broken JSON ("
    assert done.stdout.startswith(start)
    assert done.stdout.endswith(") False\n")


def test_a_refusal_is_not_remembered(own_cache: Path) -> None:
    config = tiny_config()
    config.train.max_length = 16
    with pytest.raises(Refused, match="leave no room"):
        inspect_trial(config, strict=True)
    assert not facts_file(config, strict=True).exists()


def test_torn_facts_are_made_again(own_cache: Path) -> None:
    config = tiny_config()
    facts = inspect_trial(config, strict=True)
    path = facts_file(config, strict=True)
    path.write_text(path.read_text()[:100])
    assert read_cached_facts(config, strict=True) is None
    assert inspect_trial(config, strict=True) == facts


def changes() -> dict[str, Callable[[Config], None]]:
    return {
        "the model": lambda c: setattr(c.model, "tiny", "gpt2"),
        "a wheel": lambda c: setattr(c.data, "wheel", WheelFile("a==1", "00", "b")),
        "a column": lambda c: setattr(c.data.columns, "category", None),
        "the template": lambda c: setattr(c.data, "template", "qa"),
        "max_length": lambda c: setattr(c.train, "max_length", 512),
        "held-out prompts": lambda c: setattr(c.eval, "prompts", 13),
        "validation rows": lambda c: setattr(c.eval, "validation_rows", 65),
        "fixed prompts": lambda c: setattr(c.eval, "fixed_prompts", [FixedPrompt("lamp")]),
        "baseline templates": lambda c: setattr(c.eval, "baseline_templates", ["qa"]),
        "the split": lambda c: setattr(c.eval, "split", "test"),
        "the scorer": lambda c: setattr(c.eval, "scorer", "json"),
        "the labels": lambda c: setattr(c.eval, "labels", ["lamp"]),
        "the pattern": lambda c: setattr(c.eval, "pattern", "lamp"),
    }


@pytest.mark.parametrize("change", changes())
def test_facts_are_asked_for_again_when_what_they_depend_on_changes(change: str) -> None:
    config = tiny_config()
    changes()[change](config)
    assert facts_key(config, True) != facts_key(tiny_config(), True)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: setattr(c.lora, "r", 4),
        lambda c: setattr(c.quant, "bits", 4),
        lambda c: setattr(c.train, "learning_rate", 1.0),
        lambda c: setattr(c, "seed", 9),
        lambda c: setattr(c, "runs_dir", "elsewhere"),
    ],
)
def test_trials_of_one_sweep_share_their_facts(change: Callable[[Config], None]) -> None:
    config = tiny_config()
    change(config)
    assert facts_key(config, True) == facts_key(tiny_config(), True)


def test_a_changed_file_has_other_facts(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    (tmp_path / "model").mkdir()
    for file in tiny_folder("llama").iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"product": "a", "category": "b", "description": "c"}\n')
    config = from_folder(tmp_path / "model")
    config.data.path = str(rows)
    keys = {facts_key(config, True)}
    rows.write_text(rows.read_text() * 2)
    keys.add(facts_key(config, True))
    (tmp_path / "model" / "config.json").write_text("{}")
    keys.add(facts_key(config, True))
    assert len(keys) == 3


def test_facts_of_an_older_version_are_not_read(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    inspect_trial(config, strict=True)
    monkeypatch.setattr(facts_module, "FACTS_VERSION", facts_module.FACTS_VERSION + 1)
    assert read_cached_facts(config, strict=True) is None


# --- without the hub ---------------------------------------------------------------------------------------------


def on_the_hub() -> Config:
    config = tiny_config()
    architecture = {"model_type": "llama", **WIDE, "tie_word_embeddings": True}
    config.model = Model(name="far", hub_id="nobody/nothing", revision="c0ffee", architecture=architecture)
    config.data = dataclasses.replace(config.data, tiny=None, hub_id="nobody/rows", revision="f00d")
    return config


def test_a_plan_needs_neither_the_hub_s_model_nor_its_rows(own_cache: Path) -> None:
    facts = inspect_trial(on_the_hub(), strict=False)
    assert facts.data == DataFacts(fingerprint="nobody/rows@f00d")
    assert facts.model.fingerprint == "nobody/nothing@c0ffee"
    assert facts.model.tied_head
    assert len(facts.model.attn) == 4


def test_training_needs_them(own_cache: Path) -> None:
    config = on_the_hub()
    with pytest.raises(Refused, match=r"^data nobody/rows: could not be loaded from the hub"):
        inspect_trial(config, strict=True)
    config.data = tiny_config().data
    with pytest.raises(Refused, match=r"^model far: its tokenizer cannot be loaded: "):
        inspect_trial(config, strict=True)
    assert not (own_cache / "facts").exists()


# --- the process -------------------------------------------------------------------------------------------------


def test_requests_are_answered_in_order_with_facts_or_a_sentence(tmp_path: Path, own_cache: Path) -> None:
    good, bad = tiny_config("gpt_neox"), tiny_config("llama", path=str(tmp_path / "rows.csv"), tiny=None)
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    requests = [{"config": dataclasses.asdict(config), "strict": True} for config in (bad, good)]
    asked.write_text(json.dumps(requests))
    command = [sys.executable, "-m", "lora_sweep.model.inspect", str(asked), str(answered)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    refused, facts = json.loads(answered.read_text())
    assert refused == {"refused": f"data.path = {tmp_path / 'rows.csv'}: is no file"}
    assert Facts.from_json(facts["facts"]).model == hand_facts("gpt_neox")
    assert read_cached_facts(good, strict=True) == Facts.from_json(facts["facts"])
    assert done.stdout == ""

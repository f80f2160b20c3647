"""targets: groups and names become matrices of a model, and what cannot be one is refused."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_shapes import ATTN, LAYER, hand_facts

from lora_sweep.config.schema import Lora
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import Linear, ModelFacts
from lora_sweep.facts.targets import check_rank, drop_repeats, matches_target, name_target_modules, resolve_targets

GROUPS = ("attn", "mlp", "all_linear", "all_linear_and_head")


def refusal(targets: str | list[str], model: ModelFacts) -> str:
    with pytest.raises(Refused) as caught:
        resolve_targets(targets, model)
    return str(caught.value)


def leaves(linears: list[Linear]) -> list[str]:
    return drop_repeats(linear.leaf for linear in linears)


@pytest.mark.parametrize(
    ("shape", "attn", "mlp"),
    [
        ("llama", ["q_proj", "v_proj"], ["gate_proj", "up_proj", "down_proj"]),
        ("gpt2", ["c_attn"], ["c_fc", "c_proj"]),
        ("phi3", ["qkv_proj"], ["gate_up_proj", "down_proj"]),
        ("gpt_neox", ["query_key_value"], ["dense_h_to_4h", "dense_4h_to_h"]),
    ],
)
def test_groups_in_each_tiny_shape(shape: str, attn: list[str], mlp: list[str]) -> None:
    model = hand_facts(shape, tied=False)
    every = [path.rpartition(".")[2] for path in LAYER[shape][1]]
    assert leaves(resolve_targets("attn", model)) == attn
    assert leaves(resolve_targets("mlp", model)) == mlp
    assert leaves(resolve_targets("all_linear", model)) == drop_repeats(every)
    assert leaves(resolve_targets("all_linear_and_head", model)) == drop_repeats([*every, "lm_head"])
    assert len(resolve_targets("all_linear", model)) == 2 * len(every)
    assert len(resolve_targets("all_linear_and_head", model)) == 2 * len(every) + 1
    assert len(resolve_targets("attn", model)) == 2 * len(ATTN[shape])


def test_a_list_of_names_is_matched_as_peft_does() -> None:
    model = hand_facts("llama")
    assert [x.name for x in resolve_targets(["v_proj", "q_proj"], model)] == model.attn  # in the model's order
    one = resolve_targets(["layers.1.self_attn.q_proj"], model)
    assert [x.name for x in one] == ["model.layers.1.self_attn.q_proj"]
    whole = resolve_targets(["model.layers.0.mlp.up_proj", "lm_head"], model)
    assert [x.name for x in whole] == ["model.layers.0.mlp.up_proj", "lm_head"]


@pytest.mark.parametrize(
    ("target", "name", "expected"),
    [
        ("q_proj", "model.layers.0.self_attn.q_proj", True),
        ("self_attn.q_proj", "model.layers.0.self_attn.q_proj", True),
        ("lm_head", "lm_head", True),
        ("proj", "model.layers.0.self_attn.q_proj", False),
        ("attn.q_proj", "model.layers.0.self_attn.q_proj", False),
        ("layers", "model.layers.0.self_attn.q_proj", False),
        (".*_proj", "model.layers.0.self_attn.q_proj", False),
        ("", "model.layers.0.self_attn.q_proj", False),
    ],
)
def test_a_name_is_a_whole_path_or_the_end_of_one(target: str, name: str, expected: bool) -> None:
    assert matches_target(target, name) is expected


def test_one_misspelt_name_in_a_list_is_refused_with_the_nearest() -> None:
    assert refusal(["q_proj", "v_porj"], hand_facts("llama")) == (
        "lora.targets: 'v_porj' matches no module of this llama; did you mean 'v_proj'?; "
        "allowed: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head"
    )
    assert "did you mean 'c_attn'?" in refusal(["c_attention"], hand_facts("gpt2"))


def test_names_of_another_model_are_refused() -> None:
    said = refusal(["q_proj", "v_proj"], hand_facts("gpt2"))
    assert said.startswith("lora.targets: 'q_proj' matches no module of this gpt2; ")
    assert said.endswith("allowed: c_attn, c_proj, c_fc, lm_head")


@pytest.mark.parametrize("targets", ["all_linear_and_head", ["q_proj", "lm_head"], ["lm_head"]])
def test_a_tied_head_is_refused_with_the_reason(targets: str | list[str]) -> None:
    assert refusal(targets, hand_facts("llama", tied=True)) == (
        "lora.targets: the output head 'lm_head' is tied to the input embedding: an adapter on it would merge into "
        "both and change the model; use all_linear, or name the modules without it"
    )
    assert "lm_head" in leaves(resolve_targets(targets, hand_facts("llama", tied=False)))


def test_a_tied_head_that_is_no_target_hinders_nobody() -> None:
    for group in ("attn", "mlp", "all_linear"):
        assert "lm_head" not in leaves(resolve_targets(group, hand_facts("llama", tied=True)))


def test_a_group_that_finds_nothing_is_refused() -> None:
    model = dataclasses.replace(hand_facts("llama"), attn=[], mlp=[])
    for group in ("attn", "mlp"):
        said = refusal(group, model)
        assert said.startswith(
            f"lora.targets = {group}: matches no module of this llama; name modules instead; allowed: q_"
        )


def test_a_model_without_a_linear_head_has_no_group_with_one() -> None:
    model = dataclasses.replace(hand_facts("llama"), head=None)
    said = "lora.targets = all_linear_and_head: this llama has no linear output head"
    assert refusal("all_linear_and_head", model) == said


# --- the list for PEFT -------------------------------------------------------------------------------------------


def modules(shape: str, targets: str | list[str]) -> list[str]:
    model = hand_facts(shape, tied=False)
    return name_target_modules(resolve_targets(targets, model), model)


def test_last_names_are_enough_where_they_match_nothing_else() -> None:
    assert modules("llama", "attn") == ["q_proj", "v_proj"]
    assert modules("llama", ["v_proj", "q_proj"]) == ["q_proj", "v_proj"]
    assert modules("gpt2", "attn") == ["c_attn"]
    assert modules("gpt2", "all_linear") == ["c_attn", "c_fc", "c_proj"]


def test_whole_paths_are_given_where_a_last_name_would_match_too_much() -> None:
    """GPT-2 has a c_proj in its attention and in its MLP."""
    expected = [f"transformer.h.{n}.mlp.{leaf}" for n in range(2) for leaf in ("c_fc", "c_proj")]
    assert modules("gpt2", "mlp") == expected
    assert modules("llama", ["layers.1.self_attn.q_proj"]) == ["model.layers.1.self_attn.q_proj"]


def test_a_number_is_no_name_since_layers_have_it_too() -> None:
    numbered = [Linear("h.0.attn", 8, 8), Linear("h.0.ffn.0", 8, 8), Linear("h.0.ffn.2", 8, 8)]
    model = dataclasses.replace(hand_facts("llama"), linears=numbered)
    assert name_target_modules(numbered, model) == ["h.0.attn", "h.0.ffn.0", "h.0.ffn.2"]
    assert name_target_modules(numbered[:1], model) == ["attn"]


@settings(deadline=None)
@given(st.sampled_from(sorted(LAYER)), st.sets(st.integers(0, 14), min_size=1))
def test_the_list_matches_what_was_chosen_and_nothing_else(shape: str, chosen: set[int]) -> None:
    model = hand_facts(shape, tied=False)
    linears = [linear for position, linear in enumerate(model.linears) if position in chosen]
    named = name_target_modules(linears, model)
    again = resolve_targets(named, model) if linears else []
    assert again == linears


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", sorted(LAYER))
def test_a_group_and_its_names_are_the_same_targets(shape: str, group: str) -> None:
    model = hand_facts(shape, tied=False)
    linears = resolve_targets(group, model)
    assert resolve_targets(name_target_modules(linears, model), model) == linears


# --- rank --------------------------------------------------------------------------------------------------------


def test_a_rank_above_the_smaller_side_of_a_matrix_is_refused() -> None:
    model = hand_facts("llama")
    attn = resolve_targets("attn", model)
    check_rank(Lora(r=32), attn)  # v_proj is 64 x 32
    with pytest.raises(Refused) as caught:
        check_rank(Lora(r=33), attn)
    said = "is larger than the layer model.layers.0.self_attn.v_proj (64 x 32); at most 32"
    assert str(caught.value) == f"lora.r = 33: {said}"
    check_rank(Lora(r=64), resolve_targets("mlp", model))
    with pytest.raises(Refused, match=r"^lora\.r = 65: is larger than the layer model\.layers\.0\.mlp\.gate_proj"):
        check_rank(Lora(r=65), resolve_targets("mlp", model))

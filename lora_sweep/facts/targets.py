"""Finds the matrices that ``lora.targets`` names in a model, and checks that LoRA can adapt them."""

from collections.abc import Iterable

from lora_sweep.config.schema import Lora
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import Linear, ModelFacts


def resolve_targets(targets: str | list[str], model: ModelFacts) -> list[Linear]:
    """The matrices that ``targets`` names, in the model's order.

    Args:
        targets: a group (attn, mlp, all_linear, all_linear_and_head), or a list of names. As in PEFT, a name is a
            whole path or the end of one (``q_proj``, ``layers.0.self_attn.q_proj``).

    Raises:
        Refused: a name matches nothing, a group is empty, or the head is tied to the embedding.
    """
    if isinstance(targets, str):
        names = list_group_names(targets, model)
    else:
        for target in targets:
            if not any(matches_target(target, linear.name) for linear in model.linears):
                leaves = drop_repeats(linear.leaf for linear in model.linears)
                raise Refused(
                    "lora.targets", f"{target!r} matches no module of this {model.model_type}", leaves, target
                )
        names = {linear.name for linear in model.linears if any(matches_target(t, linear.name) for t in targets)}
    if model.head in names and model.tied_head:
        raise Refused(
            "lora.targets",
            f"the output head {model.head!r} is tied to the input embedding: an adapter on it would merge into both "
            "and change the model; use all_linear, or name the modules without it",
        )
    return [linear for linear in model.linears if linear.name in names]


def matches_target(target: str, name: str) -> bool:
    """Whether PEFT adapts the module ``name`` for ``target``, which is its whole path, or the end of it after a dot."""
    return name == target or name.endswith("." + target)


def drop_repeats(names: Iterable[str]) -> list[str]:
    """The names without repeats, in order of first appearance."""
    return list(dict.fromkeys(names))


def name_target_modules(linears: list[Linear], model: ModelFacts) -> list[str]:
    """The names for PEFT's ``target_modules``: the last parts of the names if these match only ``linears``."""
    wanted = {linear.name for linear in linears}
    leaves = drop_repeats(linear.leaf for linear in linears)
    matched = {linear.name for linear in model.linears if any(matches_target(leaf, linear.name) for leaf in leaves)}
    # A module in a Sequential is named by a number, as layers are: PEFT would match whole layers.
    has_number = any(leaf.isdigit() for leaf in leaves)
    return sorted(leaves if matched == wanted and not has_number else wanted)


def check_rank(lora: Lora, linears: list[Linear]) -> None:
    """Refuse a rank above the smaller side of any matrix, because the product of A and B cannot reach it."""
    for linear in linears:
        smaller = min(linear.in_features, linear.out_features)
        if lora.r > smaller:
            shape = f"{linear.in_features} x {linear.out_features}"
            raise Refused(f"lora.r = {lora.r}", f"is larger than the layer {linear.name} ({shape}); at most {smaller}")


def list_group_names(group: str, model: ModelFacts) -> set[str]:
    """The full names of the matrices in a group of ``lora.targets``; refused where there are none."""
    linears = {linear.name for linear in model.linears}
    if group == "attn":
        names = set(model.attn)
    elif group == "mlp":
        names = set(model.mlp)
    elif group == "all_linear":
        names = linears - {model.head}
    else:
        if model.head is None:
            raise Refused("lora.targets = all_linear_and_head", f"this {model.model_type} has no linear output head")
        names = linears
    if not names:
        leaves = drop_repeats(linear.leaf for linear in model.linears)
        raise Refused(
            f"lora.targets = {group}", f"matches no module of this {model.model_type}; name modules instead", leaves
        )
    return names

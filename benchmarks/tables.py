"""What was measured as Markdown, for the README."""

import statistics
from typing import Any

QUANTS = {"none": "none", "4bit": "4 bits", "8bit": "8 bits"}


def as_markdown(found: dict[str, Any]) -> str:
    """Training by bits and targets, the grid, texts and packs, with the machine named."""
    machine, size = found["machine"], found["size"]
    allocator = machine.get("allocator", "the C library's")
    head = (
        f"{machine['name']}, {machine['cores']} cores, {machine['dtype']}, torch {machine['torch']}; "
        f"SmolLM2-135M, {size['steps']} steps of 4 rows, ours with {size['members']} trials at a time; "
        f"medians of {size['rounds']} rounds (lowest to highest), "
        f"{found['date']}. Products of large matrices reach {machine['peak'] / 1e9:.0f} GFLOP/s here; our workers' "
        f"allocator is {allocator}, the plain loop's the C library's."
    )
    return "\n\n".join([head, training(found), whole(found), packs(found)])


def training(found: dict[str, Any]) -> str:
    lines = [
        "| base | targets | plain loop, tokens/s | ours | ratio | of the product peak | memory, plain | ours |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for key, ratio in found["train_ratio"].items():
        quant, _, targets = key.partition("/")
        low, high = found["spread"]["train_ratio"][key]
        lines.append(
            f"| {QUANTS[quant]} | {targets} | {found['plain_tokens_per_second'][key]:.0f} "
            f"| {found['ours_tokens_per_second'][key]:.0f} | {ratio:.1f}x ({low:.1f} to {high:.1f}) "
            f"| {found['fraction_of_peak'][key]:.0%} | {gigabytes(found['peak_memory_bytes']['plain'][key])} "
            f"| {gigabytes(found['peak_memory_bytes']['ours'][key])} |"
        )
    return "\n".join(lines)


def whole(found: dict[str, Any]) -> str:
    lines = ["| | plain loop | ours | ratio |", "|---|--:|--:|--:|"]
    if grid := found.get("makespan_seconds"):
        lines.append(
            f"| the main command: {grid['trials']} trials, texts and scores included; ours with its baselines "
            f"| {grid['plain']:.0f} s | {grid['ours']:.0f} s | {found['makespan_ratio']:.1f}x |"
        )
    if epoch := found.get("epoch"):
        plain, alone, ours = (statistics.median(epoch[side]) for side in ("plain", "alone", "ours"))
        kind = f"training, {epoch['of'].replace('bit/', ' bits, ')}: one epoch of {epoch['steps']} steps"
        for name, pace, side in (
            (f"ours with {found['size']['members']} trials at a time", ours, "ours"),
            ("ours with one trial", alone, "alone"),
        ):
            ratio = epoch["ratio"][side]
            lines.append(f"| {kind}, {name}, tokens/s | {plain:.0f} | {pace:.0f} | {ratio:.1f}x |")
    for quant, pace in found.get("generate_tokens_per_second", {}).items():
        lines.append(
            f"| texts at {QUANTS[quant]}, new tokens/s "
            f"| {pace['plain']:.0f} | {pace['ours']:.0f} | {pace['ratio']:.1f}x |"
        )
    return "\n".join(lines)


def packs(found: dict[str, Any]) -> str:
    members = found["pack_memory_bytes"]
    paces = [f"{pace:.0f}" for pace in found["pack_tokens_per_second"].values()]
    lines = [
        "| trained together (4 bits, all_linear, r=8) | " + " | ".join(members) + " |",
        "|---|" + "--:|" * len(members),
        "| peak memory | " + " | ".join(gigabytes(value) for value in members.values()) + " |",
        "| tokens/s of all trials together | " + " | ".join(paces) + " |",
    ]
    return "\n".join(lines)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"

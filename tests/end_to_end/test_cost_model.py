"""The cost model counts what is executed, and comes near what was measured (benchmarks/results.json)."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cost_model, packs, tables
from benchmarks.cost_model import OPENLLAMA, SMOLLM2, TARGETS, Layout, Machine, train_operations

ROOT = Path(__file__).parents[2]
H200: dict[str, Any] = json.loads((ROOT / "benchmarks/packs_h200.json").read_text(encoding="utf-8"))
RESULTS: dict[str, Any] = json.loads(cost_model.RESULTS.read_text(encoding="utf-8"))


def test_the_shapes_are_those_of_the_models() -> None:
    assert SMOLLM2.product_params + 61 * 576 == 134_515_008  # as transformers counts them; 61 norms, the head is tied
    assert OPENLLAMA.product_params + OPENLLAMA.vocab * OPENLLAMA.hidden + 53 * 3200 == 3_426_473_600


def test_operations_are_two_a_number_and_token_forward_and_as_many_back() -> None:
    found = train_operations(SMOLLM2, TARGETS["attn"], 8, Layout(100, 2 * 50 * 50, 10))
    assert found["base"] == 4 * 100 * (SMOLLM2.product_params - SMOLLM2.head_params)
    assert found["head"] == 4 * 10 * SMOLLM2.head_params
    assert found["adapters"] == 6 * 100 * 460_800  # the trainable parameters of the main command's first row
    assert found["attention"] == 12 * 2 * 9 * 50 * 50 * 64 * 30


@pytest.mark.parametrize("key", RESULTS["train_ratio"])
def test_trainings_come_out_within_a_quarter_of_what_was_measured(key: str) -> None:
    machine = cost_model.calibrated(RESULTS)
    assert 0.2 < machine.efficiency < 1
    layouts, measured = cost_model.training(RESULTS, key)
    told = sum(
        cost_model.train_seconds(machine, SMOLLM2, key.partition("/")[2], cost_model.RANK, layout) for layout in layouts
    )
    assert told == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize("of_gpu", [each for each in H200["train"] if each["together"] or each["members"] == 1])
def test_packs_on_a_gpu_come_out_within_a_quarter_of_what_was_measured(of_gpu: dict[str, Any]) -> None:
    found, members = H200["machine"], of_gpu["members"]
    machine = Machine(found["peak"], found["bandwidth"], found["call_seconds"], 0.5, overlapped=True)
    layout = cost_model.layout_of(cost_model.ROWS * members, shared=True)
    told = cost_model.train_seconds(machine, OPENLLAMA, "all_linear", cost_model.RANK, layout, members)
    tokens = members * cost_model.ROWS * (cost_model.PREFIX + cost_model.SUFFIX)
    assert tokens / told == pytest.approx(of_gpu["tokens_per_second"], rel=0.25)


def test_writing_on_a_gpu_comes_out_near_what_was_measured() -> None:
    found = H200["machine"]
    machine = Machine(found["peak"], found["bandwidth"], found["call_seconds"], 0.5, overlapped=True)
    for measured in H200["texts"]:
        rows = measured["authors"] * measured["prompts"]
        told = cost_model.decode_seconds(machine, OPENLLAMA, rows, cost_model.PROMPT + 32)
        assert rows / told == pytest.approx(measured["tokens_per_second"], rel=0.3)


def test_more_members_and_a_shared_prefix_never_cost() -> None:
    rows = [line for line in cost_model.table().splitlines() if line.startswith("| tokens/s")]
    whole, shared = ([float(cell.replace(",", "")) for cell in row.split("|")[2:6]] for row in rows)
    assert whole == sorted(whole)
    assert shared == sorted(shared)
    assert all(a <= b for a, b in zip(whole, shared, strict=True))
    assert whole[-1] < shared[-1]
    assert "not a measurement" in cost_model.table()


def test_the_results_have_what_they_are_kept_for() -> None:
    six = {f"{quant}/{targets}" for quant in ("none", "4bit", "8bit") for targets in ("attn", "all_linear")}
    for name in ("train_ratio", "fraction_of_peak", "ours_tokens_per_second", "plain_tokens_per_second"):
        assert set(RESULTS[name]) == six
        assert all(value > 0 for value in RESULTS[name].values())
    assert RESULTS["makespan_ratio"] > 0 < RESULTS["generate_ratio"]
    assert set(RESULTS["pack_memory_bytes"]) == {"1", "2", "4", "8"}
    assert len(RESULTS["rounds"]) == 3


def test_both_sides_trained_on_the_same_rows() -> None:
    for found in RESULTS["rounds"]:
        for key in RESULTS["train_ratio"]:
            ours, plain = (sum(found[side][key]["row_tokens"]) for side in ("ours", "plain"))
            assert plain == pytest.approx(ours, rel=0.01)  # TRL joins a prompt and its response in its own way


def test_the_page_on_speed_shows_the_results_as_they_are_kept() -> None:
    page = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    of_gpu = packs.as_markdown(H200).partition("\n\n")[2]
    _, predicted, loading = cost_model.table().split("\n\n")
    for part in (tables.training(RESULTS), tables.whole(RESULTS), tables.packs(RESULTS), of_gpu, predicted):
        assert part in page
    assert loading in " ".join(page.split())


def test_the_plain_loop_has_nothing_of_ours() -> None:
    tree = ast.parse((ROOT / "benchmarks/plain_loop.py").read_text(encoding="utf-8"))
    modules = [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert "trl" in modules
    assert not any(module.startswith(("lora_sweep", "sweep")) for module in modules)

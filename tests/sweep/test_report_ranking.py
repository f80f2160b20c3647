"""Which row is recommended, what the lines under the table claim, and how seeds fold into one row.

The numbers of the comparisons themselves are tested in test_statistics.py.
"""

import dataclasses
import json
import random
from pathlib import Path

import pytest
from support.report_files import Json, config_of, entry_of, training_of, write_evaluation, write_sweep, write_trial

from lora_sweep.runs.files import sweep_file, trial_folder, write_json
from sweep.report.analysis.analyse import Analysis, analyse_sweep
from sweep.report.write import write_report

PROMPTS = 40
NOISE = random.Random(0)
HARD = [NOISE.gauss(0, 8) for _ in range(PROMPTS)]  # what a prompt does to every row


def values(mean: float, seed: int, spread: float = 4.0) -> list[float]:
    """One row's numbers on PROMPTS prompts, around ``mean``."""
    draw = random.Random(f"{mean} {seed}")
    raw = [hard + draw.gauss(0, spread) for hard in HARD]
    return [each + mean - sum(raw) / PROMPTS for each in raw]


def add(
    runs: Path, entries: list[Json], kind: str, mean: float, seed: int = 0, loss: float = 3.0, **config: object
) -> None:
    """A complete row with that mean."""
    place = len(entries)
    tree = config_of(8, "attn", 4, seed=seed)
    tree["lora"].update({key: value for key, value in config.items() if key in ("r", "targets")})
    tree["quant"]["bits"] = config.get("bits", 4)
    tree["train"]["learning_rate"] = config.get("rate", 0.003)
    label = f"r={tree['lora']['r']} {tree['lora']['targets']} {tree['quant']['bits']}bit" + f" seed={seed}" * (
        "seed" in config
    )
    entry = entry_of(kind, label if kind == "trial" else "baseline 4bit", place)
    training = training_of(entry["trial_id"], kind, tree, place)
    write_trial(runs, entry, tree, training, None)
    numbers = values(mean, place)
    write_evaluation(runs, entry, training, sum(numbers) / PROMPTS, values=numbers, neutral_loss=loss)
    entries.append(entry)


def grid(runs: Path, effect: float = 0.0, both: float = 0.0, gain: float = 12.0, **more: object) -> Analysis:
    """A baseline and 2 x 2 x 2 rows of r, targets and bits; ``effect`` of all_linear, ``both`` of it with r=16."""
    entries: list[Json] = []
    add(runs, entries, "baseline", 20.0)
    for r in (8, 16):
        for targets in ("attn", "all_linear"):
            for bits in (4, 8):
                wide = targets == "all_linear"
                mean = 20.0 + gain + effect * wide + both * (wide and r == 16)
                add(
                    runs,
                    entries,
                    "trial",
                    mean,
                    loss=3.0 + 0.1 * wide + r / 1000,
                    r=r,
                    targets=targets,
                    bits=bits,
                    **more,
                )
    write_sweep(runs, "demo", entries)
    return analyse_sweep(runs, "demo")


def said(analysis: Analysis, kind: str) -> list[str]:
    return [each.text for each in analysis.observations if each.kind == kind]


def test_the_cheapest_of_the_tied_group_is_recommended_not_the_highest(tmp_path: Path) -> None:
    found = grid(tmp_path).ranking
    assert len(found.tied) == 8
    assert found.recommended is not None
    assert found.recommended.summary.label == "r=8 attn 4bit"
    assert found.recommended.verdict == "high"
    assert found.text.startswith("Use row 1 (r=8 attn 4bit): quality 32.0 [")
    assert "12.0 above its baseline, row B1 (baseline 4bit) (difference [" in found.text
    assert "It is the cheapest of 8 rows tied with the best, out of 8 ranked rows" in found.text
    assert found.notes[0].startswith("single seed: ranking not established")


def test_rows_behind_the_best_are_low_and_not_recommended(tmp_path: Path) -> None:
    found = grid(tmp_path, effect=6.0).ranking
    assert {standing.summary.targets for standing in found.tied} == {"all_linear"}
    assert found.recommended is not None
    assert found.recommended.summary.label == "r=8 all_linear 4bit"
    verdicts = {
        standing.summary.targets: standing.verdict for standing in found.comparison.standings if standing.verdict
    }
    assert verdicts == {"attn": "low", "all_linear": "high"}


def test_a_row_like_its_baseline_has_no_gain(tmp_path: Path) -> None:
    found = grid(tmp_path, gain=0.2).ranking
    assert {standing.verdict for standing in found.tied} == {"no gain"}
    assert found.text.startswith("No row is shown to be better than its baseline.")


def test_a_tied_row_without_gain_is_passed_over_for_one_with(tmp_path: Path) -> None:
    entries: list[Json] = []
    add(tmp_path, entries, "baseline", 20.0)
    add(tmp_path, entries, "trial", 22.2, r=8)
    add(tmp_path, entries, "trial", 23.4, r=16)
    write_sweep(tmp_path, "demo", entries)
    found = analyse_sweep(tmp_path, "demo").ranking
    assert [(each.summary.r, each.verdict) for each in found.tied] == [(8, "no gain"), (16, "high")]
    assert found.recommended is found.tied[1]
    assert "It is the cheapest with a gain over its baseline of 2 rows tied with the best" in found.text


def test_the_order_of_the_trials_changes_no_number(tmp_path: Path) -> None:
    before = grid(tmp_path, effect=2.0)
    path = sweep_file(tmp_path, "demo")
    content = json.loads(path.read_text())
    random.Random(1).shuffle(content["trials"])
    write_json(path, content)
    after = analyse_sweep(tmp_path, "demo")

    def numbers(analysis: Analysis) -> dict[str, object]:
        return {
            each.summary.trial_id: [
                getattr(each, f.name) for f in dataclasses.fields(each) if f.name != "configuration"
            ]
            for each in analysis.standings
        }

    assert numbers(after) == numbers(before)
    assert [dataclasses.astuple(each) for each in after.effects] == [
        dataclasses.astuple(each) for each in before.effects
    ]
    assert [each.summary.trial_id for each in after.ranking.tied] == [
        each.summary.trial_id for each in before.ranking.tied
    ]


@pytest.mark.parametrize(("scorer", "high"), [("text", 0.0), ("regex", 8.76)])  # Wilson: 0 of 40
def test_no_right_answer_is_a_share_where_an_answer_is_right_or_wrong(tmp_path: Path, scorer: str, high: float) -> None:
    entries: list[Json] = []
    for place, r in enumerate((8, 16)):
        tree = config_of(r, "attn", 4, eval__scorer=scorer)
        entry = entry_of("trial", f"r={r}", place)
        training = training_of(entry["trial_id"], "trial", tree, place)
        write_trial(tmp_path, entry, tree, training, None)
        write_evaluation(tmp_path, entry, training, 0.0, values=[0.0] * PROMPTS)
        entries.append(entry)
    write_sweep(tmp_path, "demo", entries)
    found = analyse_sweep(tmp_path, "demo")
    for each, row in zip(found.standings, found.rows.configurations, strict=True):
        assert each.quality is not None
        assert row.quality_ci_high == each.quality.high
        assert (each.quality.low, each.quality.high) == (0.0, pytest.approx(high, abs=0.01))
    for effect in found.effects:
        assert [level.high for level in effect.levels] == pytest.approx([high, high], abs=0.01)


# ---- key observations ----


def test_a_shown_effect_is_claimed_with_its_cost_and_others_are_not(tmp_path: Path) -> None:
    analysis = grid(tmp_path, effect=6.0)
    assert [each.factor.key for each in analysis.effects] == ["r", "targets", "bits"]
    findings = [text for text in said(analysis, "finding") if "neutral" not in text]
    assert len(findings) == 1
    assert findings[0].startswith("targets all_linear instead of attn raises quality: +")
    assert "on average over 4 pairs of rows, at 5.30 times the trainable parameters" in findings[0]
    none = said(analysis, "none")
    assert [text.split(" shows ")[0] for text in none] == ["r 16 instead of 8", "base bits 8 instead of 4"]
    assert all("shows no difference in quality" in text for text in none)
    for effect in analysis.effects:
        for contrast in effect.contrasts:
            claimed = any(text.startswith(f"{effect.factor.name} ") for text in findings)
            assert claimed == (contrast.low > 0 or contrast.high < 0)  # type: ignore[operator]


def test_an_interaction_is_said_where_it_is_visible(tmp_path: Path) -> None:
    assert not [text for text in said(grid(tmp_path / "a", effect=6.0), "finding") if "Interaction" in text]
    lines = [text for text in said(grid(tmp_path / "b", both=8.0), "finding") if "Interaction" in text]
    assert len(lines) == 1
    assert "r 16 instead of 8 changes quality by +" in lines[0]
    assert "more with targets all_linear than with attn" in lines[0]


def test_one_learning_rate_and_the_edge_of_the_grid_are_warned_of(tmp_path: Path) -> None:
    analysis = grid(tmp_path / "a")
    assert [text.split(":")[0] for text in said(analysis, "warning")] == ["r was varied at one learning rate (0.003)"]
    entries: list[Json] = []
    add(tmp_path / "b", entries, "baseline", 20.0)
    for r, mean in ((4, 24.0), (8, 28.0), (16, 33.0)):
        for rate in (0.001, 0.003):
            add(tmp_path / "b", entries, "trial", mean + 400 * rate, r=r, rate=rate)
    write_sweep(tmp_path / "b", "demo", entries)
    path = sweep_file(tmp_path / "b", "demo")
    write_json(path, {**json.loads(path.read_text()), "varied": ["lora.r", "train.learning_rate"]})
    warnings = said(analyse_sweep(tmp_path / "b", "demo"), "warning")
    assert len(warnings) == 1
    assert "has the largest r tried, 16. A larger one may be better still." in warnings[0]


def test_forgetting_is_the_loss_on_the_neutral_text_above_the_baselines(tmp_path: Path) -> None:
    analysis = grid(tmp_path)
    by_label = {row.label: row.forgetting for row in analysis.rows.configurations}
    assert by_label["r=8 attn 4bit"] == pytest.approx(0.008)
    assert by_label["r=16 all_linear 8bit"] == pytest.approx(0.116)
    assert by_label["baseline 4bit"] is None
    line = next(text for text in said(analysis, "finding") if "neutral" in text)
    assert "+0.008 for row 1 (r=8 attn 4bit)" in line
    assert "+0.116 for row 7 (r=16 all_linear 4bit), the highest" in line


def test_blocks_that_miss_a_level_are_left_out(tmp_path: Path) -> None:
    grid(tmp_path, effect=6.0)
    entry = json.loads(sweep_file(tmp_path, "demo").read_text())["trials"][8]  # r=16 all_linear 8bit
    trial_folder(tmp_path, entry["trial_id"]).evaluation(entry["eval_id"]).result.unlink()
    analysis = analyse_sweep(tmp_path, "demo")
    assert [effect.blocks for effect in analysis.effects] == [3, 3, 3]


def varied(runs: Path, rows: list[tuple[float, Json]], keys: list[str]) -> Analysis:
    """A baseline and a row for each (mean, settings by dotted path)."""
    entries: list[Json] = []
    add(runs, entries, "baseline", 20.0)
    for mean, settings in rows:
        add(runs, entries, "trial", mean)
        path = trial_folder(runs, entries[-1]["trial_id"]).config
        content = json.loads(path.read_text())
        for key, value in settings.items():
            group, name = key.split(".")
            content["config"][group][name] = value
        write_json(path, content)
    write_sweep(runs, "demo", entries)
    record = sweep_file(runs, "demo")
    write_json(record, {**json.loads(record.read_text()), "varied": keys})
    return analyse_sweep(runs, "demo")


def test_rows_that_differ_in_what_this_command_did_not_vary_are_in_no_pair(tmp_path: Path) -> None:
    """A sweep's name was used again: r of 2 and 4 with 2 steps, r of 8 and 16 with 200."""
    rows = [(r + 3.0 * (steps > 2), {"lora.r": r, "train.max_steps": steps}) for r, steps in ((2, 2), (4, 2), (8, 200))]
    assert varied(tmp_path, rows, ["lora.r"]).effects == []


def test_a_varied_eval_quant_keeps_its_rows_apart(tmp_path: Path) -> None:
    rows = [(30.0 + r / 4, {"lora.r": r, "eval.quant": quant}) for quant in ("8bit", "none") for r in (8, 16)]
    (effect,) = varied(tmp_path, rows, ["lora.r", "eval.quant"]).effects
    assert effect.blocks == 2


def test_a_switch_has_no_edge_and_nothing_lies_below_none(tmp_path: Path) -> None:
    switch = varied(
        tmp_path / "a", [(30.0, {"lora.use_dora": False}), (40.0, {"lora.use_dora": True})], ["lora.use_dora"]
    )
    assert not said(switch, "warning")
    means = ((40.0, 0.0), (35.0, 0.1), (30.0, 0.2))
    dropout = varied(tmp_path / "b", [(mean, {"lora.dropout": each}) for mean, each in means], ["lora.dropout"])
    assert len(said(dropout, "finding")) >= 2
    assert not said(dropout, "warning")


def test_an_edge_is_said_also_where_two_settings_move_together(tmp_path: Path) -> None:
    rows = [(20.0 + 4 * r, {"lora.r": r, "lora.alpha": 2.0 * r}) for r in (2, 4, 8)]
    analysis = varied(tmp_path, rows, ["lora.r", "lora.alpha"])
    unknown = [text.split(" is unknown")[0] for text in said(analysis, "none")]
    assert unknown == ["The effect of r", "The effect of alpha"]  # never varied alone
    edges = [text for text in said(analysis, "warning") if text.startswith("Best at the edge")]
    assert [("largest r tried, 8" in text, "largest alpha tried, 16" in text) for text in edges] == [
        (True, False),
        (False, True),
    ]


def test_one_prompt_says_nothing_of_a_difference(tmp_path: Path) -> None:
    entries: list[Json] = []
    for place, mean in enumerate((20.0, 30.0, 50.0)):
        config = config_of(8 * max(place, 1), "attn", 4)
        entry = entry_of("trial" if place else "baseline", f"r={place}", place)
        training = training_of(entry["trial_id"], entry["kind"], config, place)
        write_trial(tmp_path, entry, config, training, None)
        write_evaluation(tmp_path, entry, training, mean, values=[mean])
        entries.append(entry)
    write_sweep(tmp_path, "demo", entries)
    analysis = analyse_sweep(tmp_path, "demo")
    assert "(difference" not in analysis.ranking.text
    assert said(analysis, "none") == ["The effect of r is unknown: there are too few prompts."]
    assert len(analysis.ranking.tied) == 2


def test_rows_that_were_asked_about_other_things_are_not_ranked(tmp_path: Path) -> None:
    grid(tmp_path)
    entry = json.loads(sweep_file(tmp_path, "demo").read_text())["trials"][3]
    path = trial_folder(tmp_path, entry["trial_id"]).evaluation(entry["eval_id"]).generations
    path.write_text(path.read_text().replace("Archive validation-1", "Another thing"))
    found = analyse_sweep(tmp_path, "demo").ranking
    assert found.text.startswith("Rows were evaluated differently, so their means cannot be compared")
    assert found.tied == []


# ---- seeds ----


def seeded(runs: Path, noise: float, seeds: int = 3) -> Analysis:
    """Two configurations of equal worth; ``noise`` is by how much seeds differ."""
    entries: list[Json] = []
    add(runs, entries, "baseline", 20.0)
    draw = random.Random(7)
    for r in (8, 16):
        for seed in range(seeds):
            shift = draw.choice((-noise, noise)) if seed else noise * (1 if r == 16 else -1)
            add(runs, entries, "trial", 32.0 + shift, seed=seed, r=r, rate=0.003)
    write_sweep(runs, "demo", entries)
    return analyse_sweep(runs, "demo")


def test_seeds_fold_into_one_row_of_the_ranking_and_stay_rows_of_the_csv(tmp_path: Path) -> None:
    analysis = seeded(tmp_path, noise=1.0)
    assert [row.mark for row in analysis.rows.configurations] == ["B1", "1", "2"]
    assert [row.mark for row in analysis.rows.trials] == ["B1", "1a", "1b", "1c", "2a", "2b", "2c"]
    first = analysis.standings[1]
    assert (first.seeds, first.summary.seed) == (3, [0, 1, 2])
    trials = analysis.rows.trials[1:4]
    assert first.quality is not None
    assert first.quality.value == pytest.approx(sum(row.objective for row in trials) / 3)
    assert first.summary.trainable_params == trials[0].trainable_params
    assert first.summary.peak_memory_bytes == max(row.peak_memory_bytes for row in trials)
    assert first.prompt_noise is not None
    assert first.seed_noise is not None
    assert first.seed_noise > 0
    text = write_report(tmp_path, "demo")
    assert "3 seeds per row: intervals allow for the choice of prompts and of seeds" in " ".join(text.split())
    assert "single seed" not in text
    csv = (tmp_path / "sweeps/demo/report.csv").read_text().splitlines()
    assert len(csv) == 8


def test_a_difference_that_one_seed_shows_is_not_shown_with_the_noise_of_seeds(tmp_path: Path) -> None:
    one = seeded(tmp_path / "one", noise=4.0, seeds=1)
    assert [each.is_tied for each in one.standings[1:]] == [False, True]
    several = seeded(tmp_path / "several", noise=4.0)
    assert [each.is_tied for each in several.standings[1:]] == [True, True]
    wide, narrow = (each.standings[1].quality for each in (several, one))
    assert wide is not None
    assert narrow is not None
    assert wide.high - wide.low > narrow.high - narrow.low  # type: ignore[operator]


def test_a_seed_that_failed_is_said_and_does_not_count(tmp_path: Path) -> None:
    seeded(tmp_path, noise=1.0)
    entry = json.loads(sweep_file(tmp_path, "demo").read_text())["trials"][2]
    path = trial_folder(tmp_path, entry["trial_id"]).result
    write_json(path, {**json.loads(path.read_text()), "status": "diverged", "reason": "loss is nan"})
    analysis = analyse_sweep(tmp_path, "demo")
    assert (analysis.standings[1].seeds, analysis.standings[2].seeds) == (2, 3)
    assert "complete, without 1 seed" in write_report(tmp_path, "demo")

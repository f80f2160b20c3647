"""What is said of a command that does not compose: one line, with the place and the nearest right spelling."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from lora_sweep import train
from lora_sweep.config.hydra_errors import explain_hydra_error, find_key_elsewhere, list_keys_below
from sweep.plan import __main__, facts

ROOT = Path(__file__).parents[2]
COMMANDS = {"lora_sweep.train": train.main, "sweep.plan": __main__.main}
LORA_KEYS = "allowed: r, alpha, dropout, bias, use_rslora, use_dora, targets"
GROUPS = "allowed: model, data, lora, quant, train, eval, tracking, launch, seed, runs_dir, sweep_name"

ON_THE_COMMAND_LINE = [
    ("lora.rr=8", f"lora.rr: is no known key; did you mean 'r'?; {LORA_KEYS}"),
    ("lora.target=mlp", f"lora.target: is no known key; did you mean 'targets'?; {LORA_KEYS}"),
    ("lora.rr=8,16", f"lora.rr: is no known key; did you mean 'r'?; {LORA_KEYS}"),
    ("+lora.drop_out=0.1", f"lora.drop_out: is no known key; did you mean 'dropout'?; {LORA_KEYS}"),
    ("++lora.drop_out=0.1", f"lora.drop_out: is no known key; did you mean 'dropout'?; {LORA_KEYS}"),
    ("modl=tiny", f"modl: is no known key; did you mean 'model'?; {GROUPS}"),
    ("modl.path=x", f"modl: is no known key; did you mean 'model'?; {GROUPS}"),
    ("r=8", f"r: is no known key; did you mean 'lora.r'?; {GROUPS}"),
    ("batch_size=8", f"batch_size: is no known key; did you mean 'eval.batch_size'?; {GROUPS}"),
    ("lora.learning_rate=1", f"lora.learning_rate: is no known key; did you mean 'train.learning_rate'?; {LORA_KEYS}"),
    ("zzz=8", f"zzz: is no known key; {GROUPS}"),
    (
        "data.columns.prodct=x",
        "data.columns.prodct: is no known key; did you mean 'product'?; allowed: product, category, description, split",
    ),
    ("train.sft.x=1", "train.sft.x: is a new key: write it with a plus in front, +train.sft.x=..."),
    ("quant=4bits", "quant=4bits: is no file of conf/quant; did you mean '4bit'?; allowed: 4bit, 8bit, none"),
    ("quant=8bit,4bits", "quant=4bits: is no file of conf/quant; did you mean '4bit'?; allowed: 4bit, 8bit, none"),
    (
        "experiment=smok",
        (
            "experiment=smok: is no file of conf/experiment; did you mean 'smoke'?; "
            "allowed: databricks_table, demo, smoke"
        ),
    ),
    ("lora=8", "a group takes a file's name, as in lora=default; a value goes to its key, as in lora.r=8"),
    ("lora.r=2.5", "lora.r = 2.5: must be a whole number"),
    ("lora.r=4,2.5", "lora.r = 2.5: must be a whole number"),
    ("lora.r=[4,8]", "lora.r = [4, 8]: must be a whole number"),
    ("lora.alpha=big", "lora.alpha = big: must be a number"),
    ("lora.use_dora=maybe", "lora.use_dora = maybe: must be true or false"),
    ("lora.r=null", "lora.r = null: must have a value"),
    ("train.sft=3", "train.sft: Cannot assign int to Dict[str, Any]"),
    ("lora.bias=[all]", "lora.bias: Cannot convert 'list' to string: '['all']'"),
    ("eval.baseline_templates=qa", "eval.baseline_templates: must be a list, as in [a,b]"),
    (
        "data.columns=x",
        "data.columns: 'x' stands where a mapping with keys must be; allowed: product, category, description, split",
    ),
    ("lora.r", "lora.r: cannot be read as KEY=VALUE (missing EQUAL at '<EOF>'); quote it for the shell"),
    (
        "lora.targets=[q_proj",
        (
            "lora.targets=[q_proj: cannot be read as KEY=VALUE (no viable alternative at input '[q_proj'); "
            "quote it for the shell"
        ),
    ),
    ("~lora.r", "~lora.r: cannot be deleted: every trial has this key"),
    (
        "+experiment=smoke",
        (
            "experiment=smoke: chooses its group a second time: leave out the plus, "
            "or write override in a list of defaults"
        ),
    ),
    ("lora.alpha=${lora.rr}", "lora.alpha: Interpolation key 'lora.rr' not found"),
    (
        "model.wheel.sha256=x",
        "a key below one that is null cannot be set alone; give the whole, as in 'model.wheel={...}'",
    ),
]

IN_A_FILE = [
    ("lora", "rr: 8", f"lora/mine.yaml: lora.rr: is no known key; did you mean 'r'?; {LORA_KEYS}"),
    ("lora", "r: eight", "lora/mine.yaml: lora.r = eight: must be a whole number"),
    ("lora", "r: null", "lora/mine.yaml: lora.r = null: must have a value"),
    ("lora", "- 8", f"lora/mine.yaml: '[8]' stands where a mapping with keys must be; {LORA_KEYS}"),
    ("lora", "r: [8", "FOLDER/lora/mine.yaml, line 2: is broken YAML (expected ',' or ']', but got '<stream end>')"),
    ("lora", "r: 8\nr: 9", "FOLDER/lora/mine.yaml, line 2: is broken YAML (found duplicate key r)"),
    (
        "data",
        "columns: {categry: x}",
        (
            "data/mine.yaml: data.columns.categry: is no known key; did you mean 'category'?; "
            "allowed: product, category, description, split"
        ),
    ),
    (
        "data",
        "columns: x",
        (
            "data/mine.yaml: 'x' stands where a mapping with keys must be; "
            "allowed: product, category, description, split"
        ),
    ),
    (
        "eval",
        "fixed_prompts: [{prodct: Lamp}]",
        "eval/mine.yaml: prodct: is no known key; did you mean 'product'?; allowed: product, category",
    ),
    ("eval", "baseline_templates: qa", "eval/mine.yaml: eval.baseline_templates: must be a list, as in [a,b]"),
    (
        "experiment",
        "# @package _global_\nlora: {rr: 8}",
        f"experiment/mine.yaml: lora.rr: is no known key; did you mean 'r'?; {LORA_KEYS}",
    ),
    (
        "experiment",
        "# @package _global_\nlorra: {r: 8}",
        f"experiment/mine.yaml: lorra: is no known key; did you mean 'lora'?; {GROUPS}",
    ),
    (
        "experiment",
        "# @package _global_\ndefaults: [{override /quant: 4bits}]",
        "quant=4bits: is no file of conf/quant; did you mean '4bit'?; allowed: 4bit, 8bit, none",
    ),
    (
        "experiment",
        "# @package _global_\nhydra: {sweeper: {params: {lora.rr: '8,16'}}}",
        f"lora.rr: is no known key; did you mean 'r'?; {LORA_KEYS}",
    ),
    (
        "experiment",
        "# @package _global_\nhydra: {sweeper: {rows: [[lora.rr=8]]}}",
        f"lora.rr: is no known key; did you mean 'r'?; {LORA_KEYS}",
    ),
    (
        "experiment",
        "# @package _global_\nhydra: {sweeper: {rows: [lora.r=8]}}",
        "hydra.sweeper.rows: lora.r=8: must be a list of overrides, as in [lora.r=8]",
    ),
    (
        "experiment",
        "# @package _global_\nhydra: {sweeper: {parms: {lora.r: '8,16'}}}",
        "hydra.sweeper.parms: is no known key; did you mean 'params'?; allowed: params, rows",
    ),
]


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """``refusal(command, *arguments)``: what the command says on stderr when run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train.run_trial, "__module__", "__main__")  # Hydra looks for conf/ beside what is run
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # train.main sets it; so it is as before afterwards

    def looked(*args: Any) -> Any:
        raise AssertionError("it composed, and the model was looked at")

    monkeypatch.setattr(facts, "ask_inspect", looked)
    monkeypatch.setattr(facts, "read_cached_facts", looked)

    def run(command: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [command, *arguments])
        with pytest.raises(SystemExit) as ended:
            COMMANDS[command]()
        GlobalHydra.instance().clear()
        assert ended.value.code == 78
        written = capsys.readouterr()
        assert written.out == ""
        return written.err

    return run


def with_command(mistakes: list[Any]) -> list[Any]:
    """Each mistake with the main command, and every third with the plan's: both ask the same loader of Hydra.

    The last of a file's mistakes is among them, which each of the two commands looks for itself.
    """
    each = [("lora_sweep.train", *mistake) for mistake in mistakes]
    return each + [("sweep.plan", *mistake) for mistake in mistakes[::-3]]


@pytest.mark.parametrize(("command", "argument", "sentence"), with_command(ON_THE_COMMAND_LINE))
def test_a_mistake_on_the_command_line(refusal: Any, command: str, argument: str, sentence: str) -> None:
    assert refusal(command, "model=tiny", "data=tiny", argument) == f"refused: {sentence}\n"


@pytest.mark.parametrize(("command", "group", "text", "sentence"), with_command(IN_A_FILE))
def test_a_mistake_in_a_groups_file(
    refusal: Any, command: str, group: str, text: str, sentence: str, tmp_path: Path
) -> None:
    folder = tmp_path / "my conf"
    (folder / group).mkdir(parents=True)
    (folder / group / "mine.yaml").write_text(text + "\n")
    said = refusal(command, "--config-dir", str(folder), "model=tiny", f"{group}=mine")
    assert said == f"refused: {sentence.replace('FOLDER', str(folder))}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_of_files_that_is_not_there(refusal: Any, command: str) -> None:
    said = refusal(command, "--config-dir", "nowhere", "model=tiny")
    assert said.startswith("refused: ")
    assert "nowhere" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("argument", "sentence"), [ON_THE_COMMAND_LINE[0], ON_THE_COMMAND_LINE[13]])
def test_so_says_the_real_command(command: str, argument: str, sentence: str, tmp_path: Path) -> None:
    arguments = ["-m", "model=tiny", "data=tiny", f"runs_dir={tmp_path}/runs", argument]
    line = [sys.executable, "-m", command, *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (78, f"refused: {sentence}\n", "")
    assert not (tmp_path / "runs").exists()


def test_an_error_of_another_kind_is_none_of_ours() -> None:
    assert explain_hydra_error(ValueError("a bug")) is None
    assert explain_hydra_error(AssertionError("another")) is None


def test_keys_below_a_place_of_the_schema() -> None:
    assert list_keys_below("quant") == ["bits", "double_quant", "materialize"]
    assert list_keys_below("data.columns") == ["product", "category", "description", "split"]
    assert list_keys_below("model.wheel") == ["requirement", "sha256", "file"]
    assert list_keys_below("train.sft") == []
    assert list_keys_below("nowhere.at.all") == []


@pytest.mark.parametrize(
    ("word", "key"), [("max_step", "train.max_steps"), ("r", "lora.r"), ("lr", None), ("zzzz", None)]
)
def test_the_same_key_in_another_group(word: str, key: str | None) -> None:
    assert find_key_elsewhere(word) == key

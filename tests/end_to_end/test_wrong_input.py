"""Wrong input to the real command: one sentence, exit code 78, nothing written, no weight loaded.

The model of these tests is a folder with an architecture and a tokenizer and no weights at all: whatever is let
through reaches a worker, which fails with another exit code and leaves files.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import run_command

from lora_sweep.config.checks import check_config, check_train
from lora_sweep.config.schema import Config, Data, Model, Train
from lora_sweep.data.sources import make_tiny_records
from lora_sweep.errors import Refused
from lora_sweep.model.inspect import check_settings
from lora_sweep.runs.cache import build_once, cache_folder

ROOT = Path(__file__).parents[2]
Made = Callable[..., Path]


@pytest.fixture(scope="session")
def weightless(tiny_folder: Made) -> Path:
    """The model, made once a session; and what is known of it once a first command has looked at it."""
    folder = cache_folder() / "test-models" / "llama-weightless"
    with build_once(folder) as part:
        if part is not None:
            ignored = shutil.ignore_patterns("*.safetensors")
            shutil.copytree(tiny_folder("llama"), part, dirs_exist_ok=True, ignore=ignored)
    assert not list(folder.glob("*.safetensors"))
    with build_once(folder.with_name("llama-weightless-known")) as part:
        if part is not None:
            refusal(folder, folder.with_name("no-runs"), "lora.r=33")  # refused after the model was looked at
    return folder


def train(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m lora_sweep.train`` with the arguments, in a process of its own."""
    command = [sys.executable, "-m", "lora_sweep.train", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def refusal(model: Path, runs: Path, *overrides: str) -> str:
    """What the command says when refused; everything else that a refusal must be is asserted here."""
    words = ("model=tiny", "data=tiny", f"model.path={model}", f"runs_dir={runs}", "tracking=none", *overrides)
    done = run_command("lora_sweep.train", *words)
    assert done.returncode == 78, done.stderr + done.stdout
    assert done.stdout == ""
    assert done.stderr.startswith("refused: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not runs.exists()
    return done.stderr.removeprefix("refused: ").rstrip("\n")


def test_a_refusal_is_the_same_in_a_process_of_its_own(weightless: Path, tmp_path: Path) -> None:
    words = (f"model.path={weightless}", f"runs_dir={tmp_path}/runs", "lora.r=33")
    done = train("model=tiny", "data=tiny", *words)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == f"refused: {refusal(weightless, tmp_path / 'runs', 'lora.r=33')}\n"


def test_the_same_command_without_a_mistake_reaches_a_worker(weightless: Path, tmp_path: Path) -> None:
    """So the refusals below are what keeps it from there."""
    runs = tmp_path / "runs"
    words = ("model=tiny", "data=tiny", f"model.path={weightless}", f"runs_dir={runs}", "tracking=none")
    done = run_command("lora_sweep.train", *words)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "no file named model.safetensors" in done.stdout
    assert list(runs.rglob("result.json"))


# --- values and names: one of each check; the sentences are in test_config_checks.py and test_config_hydra_errors.py

LINES = {
    "unknown choice": (
        "quant=4bits",
        "quant=4bits: is no file of conf/quant; did you mean '4bit'?; allowed: 4bit, 8bit",
    ),
    "unknown key": ("lora.ranks=8", "lora.ranks: is no known key; allowed: r, alpha, dropout, bias, use_rslora"),
    "r = 0": ("lora.r=0", "lora.r = 0: must be a whole number of at least 1"),
    "r larger than a layer": (
        "lora.r=33",
        "lora.r = 33: is larger than the layer model.layers.0.self_attn.v_proj (64 x 32); at most 32",
    ),
    "rate NaN": ("train.learning_rate=nan", "train.learning_rate = nan: must be a number above 0"),
    "a template without the product": (
        "data.template='Write of {category}: '",
        "data.template: lacks the field {product}: every prompt would be the same",
    ),
    "one target of the list wrong": (
        "lora.targets=[q_proj,v_porj]",
        "lora.targets: 'v_porj' matches no module of this llama; did you mean 'v_proj'?; allowed: q_proj, k_proj",
    ),
    "a trainer's key that is ours": ("+train.sft.seed=3", "train.sft.seed: is set by lora-sweep; use seed"),
    "a sweep's name that is a path": ("sweep_name=../x", "sweep_name = '../x': must be 1 to 80 letters, digits"),
}


@pytest.mark.parametrize("line", LINES)
def test_a_wrong_value_is_refused(line: str, weightless: Path, tmp_path: Path) -> None:
    override, said = LINES[line]
    assert refusal(weightless, tmp_path / "runs", override).startswith(said)


SWEPT = {
    "lora.r=4,0": "lora.r = 0: must be a whole number of at least 1",
    "lora.targets=attn,[q_proj,v_porj]": "lora.targets: 'v_porj' matches no module of this llama",
    "train.lr_scheduler_type=linear,cosin": "train.lr_scheduler_type = cosin: is unknown; did you mean 'cosine'?",
}


@pytest.mark.parametrize("override", SWEPT)
def test_one_wrong_point_refuses_a_strict_sweep(override: str, weightless: Path, tmp_path: Path) -> None:
    said = refusal(weightless, tmp_path / "runs", override, "launch.strict=true")
    assert said.startswith(SWEPT[override])


@pytest.mark.slow
def test_a_wrong_point_is_a_row_and_the_others_reach_a_worker(weightless: Path, tmp_path: Path) -> None:
    """The settings of the trainer are judged too, and NaN is no number that a file of results could hold."""
    runs = tmp_path / "runs"
    grid = ["lora.r=4,33", "train.lr_scheduler_type=linear,cosin", "train.learning_rate=1e-3,nan"]
    done = train("model=tiny", "data=tiny", f"model.path={weightless}", f"runs_dir={runs}", "tracking=none", *grid)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "1 trial and 1 baseline of llama-weightless; 2 to run, 0 done, 7 invalid" in done.stdout
    found = [json.loads(path.read_text()) for path in (runs / "trials").glob("*/result.json")]
    reasons = [result["reason"] for result in found if result["status"] == "invalid"]
    starts = ("lora.r = 33: is larger", "train.learning_rate = nan: must be", "train.lr_scheduler_type = cosin: is")
    assert [sum(reason.startswith(start) for reason in reasons) for start in starts] == [1, 4, 2]
    assert len(reasons) == 7


@pytest.mark.parametrize("override", ["lora.r=33,34", "lora.r=0,4 train.optim=adamw_torc"])
def test_a_sweep_without_a_right_point_is_refused(override: str, weightless: Path, tmp_path: Path) -> None:
    said = refusal(weightless, tmp_path / "runs", *override.split())
    assert said.startswith(("lora.r = 33: ", "lora.r = 0: "))


@pytest.mark.parametrize("override", ["lora.r=4,eight", "model=tiny,tinny"])
def test_a_point_that_does_not_compose_refuses_the_whole_sweep(override: str, weightless: Path, tmp_path: Path) -> None:
    assert override.partition("=")[0] in refusal(weightless, tmp_path / "runs", override)


@pytest.mark.slow
def test_of_two_models_the_missing_one_is_rows(weightless: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    models = f"model.path={weightless},{tmp_path}/nowhere"
    done = train("model=tiny", "data=tiny", models, f"runs_dir={runs}", "tracking=none")
    assert "1 trial and 1 baseline of llama-weightless; 2 to run, 0 done, 1 invalid" in done.stdout, done.stderr
    assert f"model.path = {tmp_path}/nowhere: is no folder; it must be a folder in transformers' format" in done.stdout


def test_what_belongs_to_the_whole_sweep_is_not_swept(weightless: Path, tmp_path: Path) -> None:
    said = refusal(weightless, tmp_path / "runs", "launch.workers=1,2")
    assert said == "launch.workers: differs between points; it is one setting of the whole sweep"


# --- data -----------------------------------------------------------------------------------------------------------

GOOD = "".join(json.dumps(record) + "\n" for record in make_tiny_records(40)).encode()
FILES: dict[str, tuple[bytes, str, str]] = {
    "missing column": (
        GOOD.replace(b'"product"', b'"products"'),
        "data.template=alpaca",
        (
            "data.columns.product: there is no column 'product' in FILE; did you mean 'products'?; "
            "allowed: products, category, description"
        ),
    ),
    "empty split": (
        GOOD,
        "data.validation_fraction=0",
        "data FILE: no row is left in the validation split of 40 usable rows (data.validation_fraction=0.0)",
    ),
    "truncated JSON": (
        GOOD[:-30],
        "data.template=alpaca",
        "FILE, line 40: is broken JSON (Unterminated string starting, column ",
    ),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_wrong_file_is_refused(fault: str, weightless: Path, tmp_path: Path) -> None:
    """One of each step of reading; all the sentences are in test_data_sources.py and test_data_splits.py."""
    content, override, sentence = FILES[fault]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    printed = refusal(weightless, tmp_path / "runs", f"data.path={path}", override)
    assert printed.startswith(sentence.replace("FILE", str(path)))


# --- what needs the tokenizer or the model --------------------------------------------------------------------------


def test_prompts_that_fill_the_length_are_refused(weightless: Path, tmp_path: Path) -> None:
    said = refusal(weightless, tmp_path / "runs", "train.max_length=24")
    assert said.startswith("train.max_length = 24: 32 of 32 prompts leave no room for a response; the longest has ")
    assert said.endswith("raise train.max_length or shorten those rows")


def test_a_tied_head_as_target_is_refused(weightless: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tied"
    shutil.copytree(weightless, folder)
    settings = json.loads((folder / "config.json").read_text())
    assert settings["tie_word_embeddings"] is False
    (folder / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": True}))
    said = refusal(folder, tmp_path / "runs", "lora.targets=[q_proj,lm_head]")
    assert said.startswith("lora.targets: the output head 'lm_head' is tied to the input embedding: ")
    assert said.endswith("use all_linear, or name the modules without it")


def test_a_tokenizer_without_an_eos_token_is_refused(weightless: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no-eos"
    shutil.copytree(weightless, folder)
    settings = folder / "tokenizer_config.json"
    values = json.loads(settings.read_text())
    assert values.pop("eos_token")
    settings.write_text(json.dumps(values))
    said = refusal(folder, tmp_path / "runs")
    assert said == "model: its tokenizer has no eos token: a tuned model could never learn to stop"


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path / "nowhere", tmp_path / "runs")
    assert said == f"model.path = {tmp_path}/nowhere: is no folder; it must be a folder in transformers' format"


def test_a_folder_that_is_no_causal_language_model_is_refused(weightless: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vision"
    shutil.copytree(weightless, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 64}))
    said = refusal(folder, tmp_path / "runs")
    assert said.startswith("model vision: is no causal language model that transformers knows (Unrecognized")


def test_a_key_that_the_trainer_does_not_know_is_refused(weightless: Path, tmp_path: Path) -> None:
    said = refusal(weightless, tmp_path / "runs", "+train.sft.neftun_noise_alpha=5")
    assert said == "train.sft.neftun_noise_alpha: is no key of TRL's SFTConfig; allowed: neftune_noise_alpha"


def test_an_unknown_schedule_is_refused(weightless: Path, tmp_path: Path) -> None:
    said = refusal(weightless, tmp_path / "runs", "train.lr_scheduler_type=cosin")
    assert said.startswith(
        "train.lr_scheduler_type = cosin: is unknown; did you mean 'cosine'?; allowed: linear, cosine"
    )


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("lr_scheduler_type", "linaer", "linear"),
        ("optim", "adamw_torc", "adamw_torch"),
        ("train_sampling_strategy", "group_by_len", "group_by_length"),
    ],
)
def test_a_name_that_transformers_does_not_know_is_refused(key: str, value: str, near: str) -> None:
    """As above, without the process. An unknown sampling strategy would mean random order, and no word of it."""
    check_settings(Train())
    check_settings(Train(**{key: near}))
    with pytest.raises(Refused) as caught:
        check_settings(Train(**{key: value}))
    assert str(caught.value).startswith(f"train.{key} = {value}: is unknown; did you mean {near!r}?; allowed: ")


def test_keys_of_the_trainer_go_through() -> None:
    check_settings(Train(sft={"adam_beta2": 0.99, "neftune_noise_alpha": 5}))


def test_every_key_that_we_give_the_trainer_is_refused_by_name() -> None:
    """Else TRL's config would be given it twice, and the trial would fail after its model was loaded."""
    import ast

    source = ast.parse((ROOT / "lora_sweep/model/sft_settings.py").read_text())
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call) and ast.unparse(node.func) == "SFTConfig"]
    given = {str(keyword.arg) for call in calls for keyword in call.keywords if keyword.arg}
    assert "logging_nan_inf_filter" in given
    for key in given:
        with pytest.raises(Refused, match=rf"^train\.sft\.{key}: is set by lora-sweep; use "):
            check_train(Train(sft={key: 1}))


def test_these_checks_pass_what_is_right() -> None:
    check_config(Config(model=Model(name="x", tiny="llama"), data=Data(name="x", tiny=9)))


def test_rows_longer_than_the_model_has_positions_are_refused(weightless: Path, tmp_path: Path) -> None:
    said = refusal(weightless, tmp_path / "runs", "train.max_length=4096")
    assert said == "train.max_length = 4096: is more than this model's 1024 positions"


def test_texts_longer_than_the_model_has_positions_are_refused(weightless: Path, tmp_path: Path) -> None:
    said = refusal(weightless, tmp_path / "runs", "eval.max_new_tokens=1000")
    assert re.fullmatch(
        r"eval\.max_new_tokens = 1000: and the longest prompt's \d+ tokens are more than this model's 1024 positions",
        said,
    )

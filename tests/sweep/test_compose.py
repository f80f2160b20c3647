"""Overrides to points to configs: what a grid expands to, and that the fast way composes what Hydra composes."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from lora_sweep.config.schema import Config, FixedPrompt, config_from_json, register_schema
from lora_sweep.errors import Refused
from sweep.compose import compose_points
from sweep.search.grid import list_points
from sweep.trials import copy_tree

CONF = Path(__file__).parents[2] / "conf"
DEMO = {"lora.r": "8,16", "lora.targets": "attn,all_linear", "quant": "4bit,8bit"}
ROWS = [["lora.r=8", "lora.targets=attn", "quant=4bit"], ["lora.r=16", "lora.targets=mlp", "quant=8bit"]]


@pytest.fixture
def loader() -> Iterator[ConfigLoader]:
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield hydra.config_loader


def composed(loader: ConfigLoader, *arguments: str) -> list[Config]:
    return compose_points(loader, [], list_points(loader, arguments, {}, []))


def as_hydra_composes(overrides: list[str]) -> Config:
    values: Any = OmegaConf.to_container(compose("base", overrides), resolve=True)
    return config_from_json(values)


# --- points --------------------------------------------------------------------------------------------------------


def test_the_first_key_typed_changes_slowest(loader: ConfigLoader) -> None:
    assert list_points(loader, ["lora.r=8,16", "quant=4bit,8bit", "seed=3"], {}, []) == [
        ["lora.r=8", "quant=4bit", "seed=3"],
        ["lora.r=8", "quant=8bit", "seed=3"],
        ["lora.r=16", "quant=4bit", "seed=3"],
        ["lora.r=16", "quant=8bit", "seed=3"],
    ]


def test_no_override_is_one_point(loader: ConfigLoader) -> None:
    assert list_points(loader, [], {}, []) == [[]]


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("lora.targets=[q_proj,v_proj],attn", [["q_proj", "v_proj"], "attn"]),
        ("lora.targets=[q_proj,v_proj]", [["q_proj", "v_proj"]]),
        ("lora.targets=[q_proj],[up_proj,down_proj]", [["q_proj"], ["up_proj", "down_proj"]]),
        ("lora.targets='[q_proj,v_proj]'", ["[q_proj,v_proj]"]),
        ("lora.r=range(2,6)", [2, 3, 4, 5]),
        ("lora.r=range(2,17,7)", [2, 9, 16]),
        ("lora.r=choice(4,8)", [4, 8]),
        ("lora.r=sort(16,8,4)", [4, 8, 16]),
        ("lora.r=8,8", [8, 8]),
        ("train.learning_rate=1e-4,0.0003", [1e-4, 3e-4]),
        ("train.max_steps=null,10", [None, 10]),
        ("lora.use_dora=true,false", [True, False]),
        ("quant=4bit,8bit,none", [4, 8, None]),
        ("quant=glob(*bit)", [4, 8]),
        ("data.template='Name {product}, briefly: ',qa", ["Name {product}, briefly: ", "qa"]),
        ("sweep_name='a,b'", ["a,b"]),
    ],
)
def test_what_a_sweep_over_one_key_stands_for(loader: ConfigLoader, argument: str, values: list[Any]) -> None:
    key = argument.partition("=")[0].replace("quant", "quant.bits")
    configs = composed(loader, argument)
    assert [OmegaConf.select(OmegaConf.structured(config), key) for config in configs] == values


def test_an_experiments_grid_comes_before_what_is_typed(loader: ConfigLoader) -> None:
    found = list_points(loader, ["experiment=demo", "seed=1,2"], DEMO, [])
    assert len(found) == 16
    assert found[0] == ["lora.r=8", "lora.targets=attn", "quant=4bit", "experiment=demo", "seed=1"]
    assert found[1] == ["lora.r=8", "lora.targets=attn", "quant=4bit", "experiment=demo", "seed=2"]


@pytest.mark.parametrize("typed", ["lora.r=2", "++lora.r=2", "lora.r=2,3"])
def test_the_command_line_wins_over_an_experiments_grid(loader: ConfigLoader, typed: str) -> None:
    configs = compose_points(loader, [], list_points(loader, [typed], DEMO, []))
    ranks = [2, 3] if "," in typed else [2]
    assert {config.lora.r for config in configs} == set(ranks)
    assert len(configs) == 4 * len(ranks)


def test_rows_are_a_list_and_not_a_product(loader: ConfigLoader) -> None:
    configs = compose_points(loader, [], list_points(loader, [], {}, ROWS))
    assert [(c.lora.r, c.lora.targets, c.quant.bits) for c in configs] == [(8, "attn", 4), (16, "mlp", 8)]


@pytest.mark.parametrize("typed", [["eval.split=test"], ["eval.split=validation,test"], ["+eval={split: test}"]])
def test_no_command_is_scored_on_the_test_split(loader: ConfigLoader, typed: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        composed(loader, *typed)
    assert str(caught.value) == "eval.split = test: the test split is read once, by python -m sweep.confirm"


def test_a_scorer_and_its_settings_can_be_typed(loader: ConfigLoader) -> None:
    (own,) = composed(loader, "eval.scorer=judges.mine:score")
    assert own.eval.scorer == "judges.mine:score"
    (regex,) = composed(loader, "eval.scorer=regex", r"eval.pattern='#### (\d+), or [a-c]'")
    assert regex.eval.pattern == r"#### (\d+), or [a-c]"
    (label,) = composed(loader, "eval.scorer=label", "eval.labels=[yes,no,7]")
    assert label.eval.labels == ["yes", "no", "7"]


def test_rows_times_the_command_line(loader: ConfigLoader) -> None:
    configs = compose_points(loader, [], list_points(loader, ["seed=1,2"], {}, ROWS))
    assert [(c.lora.r, c.seed) for c in configs] == [(8, 1), (8, 2), (16, 1), (16, 2)]


@pytest.mark.parametrize("typed", ["quant=none", "lora.r=2", "++lora.r=2"])
def test_the_command_line_wins_over_rows(loader: ConfigLoader, typed: str) -> None:
    configs = compose_points(loader, [], list_points(loader, [typed], {}, ROWS))
    if typed == "quant=none":
        assert [(c.lora.r, c.quant.bits) for c in configs] == [(8, None), (16, None)]
    else:
        assert [(c.lora.r, c.quant.bits) for c in configs] == [(2, 4), (2, 8)]


@pytest.mark.parametrize(
    ("arguments", "rows", "said"),
    [
        (["lora.r=interval(1,8)"], [], "lora.r=interval(1,8): has no list of values, and a grid needs one"),
        (["quant=glob(*bits)"], [], "quant=glob(*bits): has no values"),
        (
            ["experiment=demo,smoke"],
            [],
            "experiment=demo,smoke: names several experiments; a command can have only one",
        ),
        ([], ["lora.r=8"], "hydra.sweeper.rows: lora.r=8: must be a list of overrides"),
    ],
)
def test_what_is_no_list_of_points_is_refused(
    loader: ConfigLoader, arguments: list[str], rows: list[Any], said: str
) -> None:
    with pytest.raises(Refused) as caught:
        list_points(loader, arguments, {}, rows)
    assert str(caught.value).startswith(said)


# --- the fast way is Hydra's way -----------------------------------------------------------------------------------

POINTS = [
    [],
    ["lora.r=16"],
    ["lora.alpha=8"],
    ["lora.targets=[q_proj,v_proj]", "lora.dropout=0.0"],
    ["lora.targets=mlp", "lora.use_rslora=true"],
    ["train.learning_rate=1e-4", "train.max_steps=12", "seed=7"],
    ["train.max_steps=null"],
    ["train.learning_rate=2", "train.num_train_epochs=3"],
    ["quant=4bit"],
    ["quant=4bit", "quant.double_quant=false"],
    ["quant.double_quant=false", "quant=4bit"],
    ["model=tiny", "model.tiny=gpt2", "data=tiny", "data.tiny=40"],
    ["model.path=/models/a b", "model.revision=null"],
    ["model=openllama_3b_v2", "model.architecture.hidden_size=64"],
    ["model=openllama_3b_v2", "+model.architecture.head_dim=32"],
    ["model.wheel.sha256=ab12"],
    ["data.path=rows.csv", "data.columns.product=name", "data.columns.category=null", "data.columns.split=part"],
    ["data.columns={product: title, split: part}"],
    ["data.template='Describe {product} ({category}): '", "data.end_marker=''"],
    ["eval.fixed_prompts=[]"],
    ["eval.fixed_prompts=[{product: Lamp, category: Light}, {product: Chair}]"],
    ["eval.fixed_prompts.0.product=Lamp"],
    ["eval.baseline_templates=[qa,chat]", "eval.quant=8bit"],
    ["+train.sft.adam_beta2=0.99"],
    ["++train.sft.adam_beta2=0.99", "train.learning_rate=3e-4"],
    ["+train.sft.lr_scheduler_kwargs={num_cycles: 2}", "lora.r=4"],
    ["+train.sft.adam_beta1=0.8", "train.sft.adam_beta1=0.7"],
    ["lora.r=4", "++lora.r=32"],
    ["++lora.r=32", "lora.r=4"],
    ["lora.r=4", "lora.r=2"],
    ["lora.r=32", "lora.alpha=${lora.r}"],
    ["experiment=smoke", "lora.r=2"],
    ["experiment=smoke", "train.max_steps=3", "quant=8bit"],
    ["experiment=databricks_table", "eval.prompts=5", "lora.alpha=4"],
    ["tracking=none", "tracking.project=x", "runs_dir=/tmp/a", "sweep_name=s-1"],
]


@pytest.mark.parametrize("point", POINTS, ids=" ".join)
def test_a_point_is_what_hydra_composes(loader: ConfigLoader, point: list[str]) -> None:
    assert compose_points(loader, [], [point]) == [as_hydra_composes(point)]


def test_points_composed_together_do_not_touch_one_another(loader: ConfigLoader) -> None:
    some = [POINTS[0], POINTS[3], ["lora.r=2"], POINTS[8], POINTS[0], ["lora.targets=mlp"]]
    expected = [as_hydra_composes(point) for point in some]
    together = compose_points(loader, [], some)
    assert together == expected
    together[0].eval.fixed_prompts.append(FixedPrompt("one more"))
    together[1].lora.targets.append("k_proj")
    assert together[2:] == expected[2:]


def test_a_value_that_follows_another_follows_it_in_every_point(loader: ConfigLoader) -> None:
    configs = composed(loader, "lora.r=4,8", "lora.alpha=${lora.r}")
    assert [(c.lora.r, c.lora.alpha) for c in configs] == [(4, 4.0), (8, 8.0)]


def test_so_does_one_in_an_experiments_file(loader: ConfigLoader, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/twice.yaml").write_text("# @package _global_\ntrain: {max_length: '${data.split_seed}'}\n")
    found = list_points(loader, ["experiment=twice", "data.split_seed=100,200"], {}, [])
    configs = compose_points(loader, [f"hydra.searchpath=[{tmp_path}]"], found)
    assert [c.train.max_length for c in configs] == [100, 200]


def test_two_points_never_share_a_list(loader: ConfigLoader) -> None:
    first, second = composed(loader, "lora.targets=[q_proj,v_proj]", "seed=1,2")
    first.lora.targets.append("k_proj")
    assert second.lora.targets == ["q_proj", "v_proj"]


@pytest.mark.parametrize("value", ["2.5", "eight", "[8]", "null", "true,x"])
def test_a_value_of_the_wrong_type_is_refused_as_by_hydra(loader: ConfigLoader, value: str) -> None:
    with pytest.raises(ValidationError):
        composed(loader, f"lora.r={value}")


# --- a thousand points ---------------------------------------------------------------------------------------------


def test_a_thousand_points_compose_once_a_choice_of_groups(
    loader: ConfigLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, list[Any]] = {"load_configuration": [], "get_group_options": []}
    for name, seen in calls.items():
        real = getattr(loader, name)
        monkeypatch.setattr(loader, name, counting(real, seen))
    configs = composed(
        loader,
        "model=tiny",
        "data=tiny",
        "lora.r=range(1,11)",
        "lora.targets=attn,mlp",
        "lora.alpha=1,2,4,8,16",
        "train.learning_rate=1e-4,3e-4,1e-3,3e-3,1e-2",
        "quant=none,8bit",
    )
    assert len(configs) == 1000
    assert len(calls["load_configuration"]) == 2  # 0.1 s each: quant=none and quant=8bit
    assert len(calls["get_group_options"]) <= 7  # 0.01 s each: one a key
    seen = [(c.lora.r, c.lora.targets, c.lora.alpha, c.train.learning_rate, c.quant.bits) for c in configs]
    rates, alphas = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (1.0, 2.0, 4.0, 8.0, 16.0)
    assert seen == list(itertools.product(range(1, 11), ("attn", "mlp"), alphas, rates, (None, 8)))


def counting(call: Any, seen: list[Any]) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        return call(*args, **kwargs)

    return counted


# --- copies --------------------------------------------------------------------------------------------------------


def test_a_copy_is_equal_and_shares_nothing_that_can_change() -> None:
    config = Config()
    config.model.architecture = {"rope": {"theta": 1e4}, "layers": [1, [2]]}
    config.lora.targets = ["q_proj"]
    config.eval.fixed_prompts = [FixedPrompt("lamp")]
    same = copy_tree(config)
    assert same == config
    same.model.architecture["rope"]["theta"], same.model.architecture["layers"][1][0] = 1, 3
    same.lora.targets.append("v_proj")
    same.eval.fixed_prompts[0].product, same.data.columns.product, same.seed = "desk", "title", 1
    assert config.model.architecture == {"rope": {"theta": 1e4}, "layers": [1, [2]]}
    assert (config.lora.targets, config.eval.fixed_prompts) == (["q_proj"], [FixedPrompt("lamp")])
    assert (config.data.columns.product, config.seed) == ("product", 0)

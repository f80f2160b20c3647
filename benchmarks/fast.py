"""Ours against the plain loop, on the same rows: `make bench`. Writes results.json and prints it as Markdown.

    python benchmarks/fast.py             # 52 minutes on two cores
    python benchmarks/fast.py --quick     # a few steps, to try it out: writes nothing
    python benchmarks/fast.py --float32   # both sides in fp32, under the key ``float32`` of the same file
    python benchmarks/fast.py --keys 4bit/all_linear none/attn --rounds 1 --to other.json   # less, another file

Both sides run in processes of their own, one after another, with the environment that a user has: the plain loop in the
shell's, ours in that of a worker. Each round measures every configuration's training on both sides, one after the
other; which is first changes from round to round. The whole grid, with its texts, is measured once. Tokens are the
rows' own (prompt, response, end), without padding, counted once for both sides. Ours trains two trials at a time, as a
sweep does; the plain loop one, as it is made. All ratios are ours over the plain loop's, so that more is better:
medians over rounds.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cost_model import TARGETS, Layout, Shape, train_operations  # noqa: E402
from benchmarks.tables import as_markdown  # noqa: E402
from lora_sweep.config.schema import Config, register_schema  # noqa: E402
from sweep.engines.local.worker_process import ENVIRONMENT  # noqa: E402
from sweep.plan.make import make_plan  # noqa: E402
from sweep.resources.machine import choose_allocator  # noqa: E402
from sweep.trials import Plan, PlannedTrial  # noqa: E402

RESULTS = Path(__file__).with_name("results.json")
KEYS = tuple(f"{quant}/{targets}" for quant in ("none", "4bit", "8bit") for targets in ("attn", "all_linear"))
GRID = ("lora.r=8,16", "lora.targets=attn,all_linear", "quant=4bit,8bit")  # the main command's
RANKS = (8, 16)
PACKED = "4bit/all_linear"  # the configuration whose packs are measured
PACKS = (1, 2, 4, 8)
PACK_STEPS = 8  # of which three measure the step modes


@dataclass(frozen=True)
class Size:
    """How much is measured. ``grid``: the overrides of the whole grid's command."""

    keys: tuple[str, ...] = KEYS
    rounds: int = 3
    steps: int = 6  # of each round; the grid trains its whole epoch
    members: int = 2  # trials that ours trains at a time in a round, as a sweep's packs do on a CPU
    epoch: int = 16
    prompts: int = 14
    max_new_tokens: int = 128
    grid: tuple[str, ...] = GRID
    ranks: tuple[int, ...] = RANKS
    packs: tuple[int, ...] = PACKS


QUICK_GRID = ("lora.r=8", "lora.targets=attn,all_linear", "quant=4bit,8bit", "train.max_steps=2")
QUICK = Size(
    rounds=1,
    steps=2,
    epoch=2,
    prompts=2,
    max_new_tokens=8,
    grid=(*QUICK_GRID, "eval.prompts=2", "eval.max_new_tokens=8", "eval.validation_rows=4"),
    ranks=(8,),
    packs=(1, 2),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--keys", nargs="+", choices=KEYS, default=KEYS, help="bits and targets that are measured")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--without-grid", action="store_true", help="leave out the whole grid")
    parser.add_argument("--to", type=Path, help="write here instead of results.json")
    args = parser.parse_args()
    size = dataclasses.replace(QUICK if args.quick else Size(), keys=tuple(args.keys))
    size = dataclasses.replace(size, rounds=args.rounds or size.rounds, grid=() if args.without_grid else size.grid)
    with tempfile.TemporaryDirectory() as scratch:
        found = measured(Bench(size, args.float32, Path(scratch)))
    target = args.to or (None if args.quick else RESULTS)
    if target is not None:
        keep(found, target, args.float32)
    print(as_markdown(found))


def keep(found: dict[str, Any], target: Path, float32: bool) -> None:
    """Write the results beside those in the other dtype."""
    known = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
    if float32:
        known["float32"] = found
    else:
        known = {**found, **({"float32": known["float32"]} if "float32" in known else {})}
    target.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


# --- what is measured -------------------------------------------------------------------------------------------------


class Bench:
    """The work of both sides, and the processes that do it."""

    def __init__(self, size: Size, float32: bool, scratch: Path) -> None:
        self.size, self.float32, self.scratch = size, float32, scratch
        self.began = time.monotonic()
        self.trials = plan(size.ranks)
        first = next(iter(self.trials.values()))
        self.half = first.facts.compute_bytes == 2 and not float32
        self.model = model_folder(first.config)
        self.rows = scratch / "rows.json"
        self.rows.write_text(json.dumps(rows_of(first.config, size.prompts)), encoding="utf-8")
        for name, trial in self.trials.items():
            work = {"config": dataclasses.asdict(trial.config), "target_modules": trial.target_modules}
            self.file(name, "work.json").write_text(json.dumps(work), encoding="utf-8")

    def file(self, name: str, what: str) -> Path:
        return self.scratch / f"{name.replace('/', '-')}-{what}"

    def say(self, text: str) -> None:
        minutes = (time.monotonic() - self.began) / 60
        print(f"[{minutes:5.1f} min] {text}", file=sys.stderr, flush=True)

    def plain(self, name: str, whole: bool, texts: bool = True) -> dict[str, Any]:
        """One configuration in the plain loop: a round's training, or the ``whole`` epoch, and then the texts.

        ``wall_seconds`` is what a user waits for.
        """
        trial = self.trials[name]
        lora, bits = trial.config.lora, trial.config.quant.bits
        targets = "all-linear" if lora.targets == "all_linear" else ",".join(trial.target_modules)
        command = ["plain_loop.py", self.rows, "--model", self.model, "--r", lora.r, "--targets", targets]
        command += ["--save", self.file(name, "adapter"), "--steps", self.size.epoch if whole else self.size.steps]
        command += ["--batch", trial.config.train.per_device_train_batch_size, "--dropout", lora.dropout]
        command += ["--learning-rate", trial.config.train.learning_rate]
        command += ["--max-new-tokens", self.size.max_new_tokens if whole and texts else 0]
        command += ([] if bits is None else ["--bits", bits]) + ([] if self.half else ["--float32"])
        found = run(command, {})
        spent = found["seconds"]
        self.say(f"plain {name}: {spent['train']:.1f} s training, {spent['generate']:.1f} s texts")
        return found

    def ours(self, what: str, name: str | None = None, **options: Any) -> dict[str, Any]:
        """One task of our_loop.py, as a worker would run it."""
        command: list[Any] = ["our_loop.py", what]
        command += [] if name is None else [self.file(name, "work.json")]
        for option, value in options.items():
            command += [f"--{option.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
        found = run([*command, *(["--float32"] if self.float32 else [])], {**ENVIRONMENT, **choose_allocator()})
        self.say(f"ours {what} {name or ''}: {json.dumps(found.get('seconds', {}))}")
        return found

    def grid(self) -> float:
        """Wall seconds of the whole command, from nothing but the caches of the model and the facts."""
        command = [sys.executable, "-m", "lora_sweep.train", "-m", *self.size.grid, "tracking=none"]
        begun = time.perf_counter()
        done = subprocess.run(
            [*command, f"runs_dir={self.scratch / 'runs'}", "sweep_name=grid"], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(done.stdout[-4000:] + done.stderr[-4000:])
        spent = time.perf_counter() - begun
        self.say(f"ours, the whole grid: {spent:.0f} s")
        return spent


def measured(bench: Bench) -> dict[str, Any]:
    """Everything, from the machine to the medians."""
    machine = bench.ours("machine")
    grid = None if bench.float32 or not bench.size.grid else whole_grid(bench)
    rounds: list[dict[str, Any]] = []
    for number in range(bench.size.rounds):
        bench.say(f"round {number + 1} of {bench.size.rounds}")
        rounds.append(one_round(bench, number))
    packs = [
        bench.ours("train", f"{PACKED}/8", steps=min(PACK_STEPS, bench.size.epoch), members=k) for k in bench.size.packs
    ]
    name = f"{bench.size.keys[0]}/{bench.size.ranks[0]}"
    decoding = [
        {"adapters": adapters, "prompts": prompts, **writing(bench, name, adapters, prompts)}
        for adapters, prompts in ((1, 1), (1, bench.size.prompts), (4, bench.size.prompts))
    ]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine,
        "size": dataclasses.asdict(bench.size),
        **ratios(rounds, machine["peak"], bench.size.keys),
        **(grid_figures(grid) if grid else {}),
        **pack_figures(packs),
        "epoch": epochs(bench),
        "decoding": decoding,
        "rounds": rounds,
    }


def whole_grid(bench: Bench) -> dict[str, Any]:
    """The main command's grid, on both sides, and the texts of each pack of it."""
    names = [name for name in bench.trials if not name.startswith("none")]
    plain = {name: bench.plain(name, whole=True) for name in names}
    texts = {
        quant: writing(bench, f"{quant}/all_linear/{bench.size.ranks[0]}", None, bench.size.prompts)
        for quant in ("4bit", "8bit")
    }
    return {"plain": plain, "ours": bench.grid(), "texts": texts}


def epochs(bench: Bench) -> dict[str, Any]:
    """One configuration's whole epoch, as a user trains it: what warms up is a smaller part of it.

    Ours alone, and with as many as in a round.
    """
    name = f"{PACKED}/{bench.size.ranks[0]}"
    paces: dict[str, list[float]] = {"plain": [], "alone": [], "ours": []}
    for _ in range(bench.size.rounds):
        for side, members in (("alone", 1), ("ours", bench.size.members)):
            one = bench.ours("train", name, steps=bench.size.epoch, members=members)
            paces[side].append(one["tokens"] / one["seconds"]["train"])
        plain = bench.plain(name, whole=True, texts=False)["seconds"]["train"]
        paces["plain"].append(one["tokens"] / one["members"] / plain)
    ratio = {
        side: statistics.median(a / b for a, b in zip(paces[side], paces["plain"], strict=True))
        for side in ("alone", "ours")
    }
    return {"of": PACKED, "steps": bench.size.epoch, **paces, "ratio": ratio}


def one_round(bench: Bench, number: int) -> dict[str, Any]:
    """Every configuration's training on both sides."""
    found: dict[str, Any] = {"plain": {}, "ours": {}}
    for key in bench.size.keys:
        name = f"{key}/{bench.size.ranks[0]}"
        for side in ("plain", "ours") if number % 2 == 0 else ("ours", "plain"):
            if side == "plain":
                found[side][key] = bench.plain(name, whole=False)
            else:
                found[side][key] = bench.ours("train", name, steps=bench.size.steps, members=bench.size.members)
    return found


def writing(bench: Bench, name: str, adapters: int | None, prompts: int) -> dict[str, Any]:
    """The texts of a pack: of all adapters that the plain loop made at these bits, or of the first one so often."""
    quant = name.partition("/")[0]
    made = [bench.file(each, "adapter") for each in bench.trials if each.startswith(f"{quant}/")]
    made = [folder for folder in made if folder.is_dir()]
    folders = made if adapters is None else made[:1] * adapters
    found = bench.ours("write", name, adapters=folders, prompts=prompts, max_new_tokens=bench.size.max_new_tokens)
    return {**found, "authors": len(folders)}


# --- the work ---------------------------------------------------------------------------------------------------------


def plan(ranks: Sequence[int]) -> dict[str, PlannedTrial]:
    """The trials of both sides, as ``quant/targets/r``: the grid's, and the like on a base that is not quantized."""
    names = [f"{key}/{r}" for key in KEYS for r in ranks if r == ranks[0] or not key.startswith("none")]
    points = []
    for name in names:
        quant, targets, r = name.split("/")
        points.append([f"quant={quant}", f"lora.targets={targets}", f"lora.r={r}", "tracking=none"])
    made = planned(points)
    by_key = {trial.key: trial for trial in made.trials}
    return {name: by_key[key] for name, key in zip(names, made.points, strict=True)}


def planned(points: list[list[str]]) -> Plan:
    """The main command's plan of the points, each of which is a list of overrides."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from sweep.compose import compose_points

    register_schema()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3", job_name="bench"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        return make_plan(compose_points(hydra.config_loader, [], points), strict=True)


def rows_of(config: Config, prompts: int) -> dict[str, Any]:
    """The rows and prompts of a trial as texts."""
    from lora_sweep.data.prompts import choose_end_marker, write_prompt
    from lora_sweep.data.splits import load_splits

    split, template = load_splits(config.data), config.data.template
    end = choose_end_marker(config.data, template)
    asked = [(row.product, row.category) for row in split.validation[: config.eval.prompts]]
    asked += [(prompt.product, prompt.category) for prompt in config.eval.fixed_prompts]
    return {
        "train": [
            {"prompt": write_prompt(template, row.product, row.category, None), "completion": row.description + end}
            for row in split.train
        ],
        "prompts": [write_prompt(template, *pair, None) for pair in asked[:prompts]],
        "end": end.strip(),
    }


def model_folder(config: Config) -> str:
    from lora_sweep.model.load import find_model_source

    return find_model_source(config.model)[0]


def run(command: Iterable[Any], environment: dict[str, str]) -> dict[str, Any]:
    """A script of this folder; its last line is its answer."""
    script, *arguments = map(str, command)
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", **environment},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    spent = time.perf_counter() - begun
    if done.returncode != 0:
        raise RuntimeError(f"{script} {' '.join(arguments)}\n{done.stderr[-4000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "wall_seconds": spent}


# --- figures ----------------------------------------------------------------------------------------------------------


def ratios(rounds: Sequence[dict[str, Any]], peak: float, keys: Sequence[str]) -> dict[str, Any]:
    """What the rounds say, in medians; ``spread`` has each figure's lowest and highest round."""
    figures: dict[str, dict[str, list[float]]] = {
        name: {} for name in ("train_ratio", "ours_tokens_per_second", "plain_tokens_per_second", "fraction_of_peak")
    }
    memory: dict[str, dict[str, float]] = {"ours": {}, "plain": {}}
    for key in keys:
        each = [(found["ours"][key], found["plain"][key]) for found in rounds]
        ours = [one["tokens"] / one["seconds"]["train"] for one, _ in each]
        plain = [one["tokens"] / one["members"] / other["seconds"]["train"] for one, other in each]
        figures["ours_tokens_per_second"][key], figures["plain_tokens_per_second"][key] = ours, plain
        figures["train_ratio"][key] = [a / b for a, b in zip(ours, plain, strict=True)]
        figures["fraction_of_peak"][key] = [operations(one, key) / one["seconds"]["train"] / peak for one, _ in each]
        memory["ours"][key] = statistics.median(device_memory(one, "peak_memory_bytes") for one, _ in each)
        memory["plain"][key] = statistics.median(device_memory(one, "train_peak_memory_bytes") for _, one in each)
    return {
        **{name: medians(values) for name, values in figures.items()},
        "peak_memory_bytes": memory,
        "spread": {name: spreads(values) for name, values in figures.items()},
    }


def device_memory(one: dict[str, Any], host: str) -> int:
    """The peak on the GPU, where there is one, and else that of the process."""
    found: int = one[host] if one["peak_gpu_memory_bytes"] is None else one["peak_gpu_memory_bytes"]
    return found


def operations(one: dict[str, Any], key: str) -> int:
    """What a training of ours executed."""
    shape, adapted = Shape(**one["shape"]), TARGETS[key.partition("/")[2]]
    sizes = [sum(shape.linears()[name]) * shape.layers for name in adapted]
    r = one["adapter_parameters"] // sum(sizes)
    return sum(sum(train_operations(shape, adapted, r, Layout(*layout)).values()) for layout in one["layouts"])


def grid_figures(grid: dict[str, Any]) -> dict[str, Any]:
    """The makespan, and the new tokens a second of a pack's texts and of one text after another, by bits."""
    plain, ours = sum(one["wall_seconds"] for one in grid["plain"].values()), grid["ours"]
    pace: dict[str, dict[str, float]] = {}
    for quant, written in grid["texts"].items():
        alone = [one for name, one in grid["plain"].items() if name.startswith(f"{quant}/")]
        slow = sum(sum(one["new_tokens"]) for one in alone) / sum(one["seconds"]["generate"] for one in alone)
        fast = sum(map(sum, written["new_tokens"])) / written["seconds"]["write"]
        pace[quant] = {"plain": slow, "ours": fast, "ratio": fast / slow, "adapters": written["authors"]}
    return {
        "makespan_ratio": plain / ours,
        "makespan_seconds": {"plain": plain, "ours": ours, "trials": len(grid["plain"])},
        "generate_ratio": min(each["ratio"] for each in pace.values()),
        "generate_tokens_per_second": pace,
        "grid": grid,
    }


def pack_figures(packs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Memory and pace of a training by the members of its pack."""
    return {
        "pack_memory_bytes": {str(one["members"]): device_memory(one, "peak_memory_bytes") for one in packs},
        "pack_tokens_per_second": {str(one["members"]): one["tokens"] / one["seconds"]["train"] for one in packs},
        "packs": list(packs),
    }


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {key: statistics.median(each) for key, each in values.items()}


def spreads(values: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    return {key: (min(each), max(each)) for key, each in values.items()}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()

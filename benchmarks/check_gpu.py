"""`make check-gpu`: does everything work on this machine's accelerator, and how fast? One table, at most eight minutes.

    python benchmarks/check_gpu.py [--to FILE.json] [--minutes 8]

It installs nothing and needs no network and no weights: the models are random ones in the shapes of SmolLM2-135M and
OpenLLaMA-3B-v2. Each check runs in a process of its own with a time limit, so that one that crashes or hangs costs no
other. On a CPU the checks of OpenLLaMA's shape and of running out of memory are left out.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

PACKAGES = (
    "torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate", "safetensors", "tokenizers",
    "hydra", "omegaconf", "pandas", "pyarrow", "numpy", "scipy", "psutil", "platformdirs", "filelock", "rich", "jinja2",
    "markupsafe", "sacrebleu", "rouge_score", "sentencepiece", "gguf",
)  # fmt: skip
STEPS, ROWS = 3, 4  # of the trainings that are compared with TRL's, and their rows a step
LIMITS = {"fp32": 1e-3, "bf16": 3e-2, "4bit": 3e-2, "8bit": 3e-2}  # relative difference of a loss at any step
MEMBERS = 8  # of the pack whose speed is measured
TARGET_SHARE = 0.40  # of the accelerator's own bf16 peak, which a pack should pass
EXIT_MISSING = 78

Row = dict[str, Any]  # of the table: check, result, and numbers


# --- the checks ----------------------------------------------------------------------------------------------------


def check_smoke() -> list[Row]:
    """The smoke sweep: real commands, random models, five results."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lora_sweep.train", "experiment=smoke", "tracking=none"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
        complete = "5 complete" in done.stdout
    words = "5 complete" if complete else (done.stdout + done.stderr)[-300:]
    return [{"check": "experiment=smoke", "passed": done.returncode == 0 and complete, "result": words}]


def check_equality(form: str) -> list[Row]:
    """The losses of a pack of two against TRL's for each member alone."""
    import dataclasses

    import torch

    from benchmarks.packs import random_base, rows_of
    from lora_sweep.config.schema import Lora, Model, Quant, Train
    from lora_sweep.model.device import pick_device
    from lora_sweep.model.load import load_base
    from lora_sweep.model.tiny import make_tiny_tokenizer
    from lora_sweep.multi_lora.dequantize import dequantize_base
    from lora_sweep.multi_lora.peft_format import attach_adapter, create_adapter
    from lora_sweep.training.packed import PackMember, train_pack
    from lora_sweep.training.single import train_with_trl

    device = pick_device()
    if form == "fp32":
        device = dataclasses.replace(device, compute_dtype=torch.float32)
    quant = Quant(bits={"4bit": 4, "8bit": 8}.get(form))
    settings = Train(per_device_train_batch_size=ROWS, max_steps=STEPS)
    with tempfile.TemporaryDirectory() as folder:
        random_base("smollm2_135m", device).save_pretrained(folder)

        def load() -> Any:
            return load_base(Model(name="random", path=folder), quant, device)

        base = load()
        rows = rows_of(base.config.vocab_size, STEPS * ROWS)
        targets = [name for name, _ in base.named_modules() if name.endswith(("q_proj", "v_proj", "down_proj"))]
        lora = Lora(r=8, dropout=0.0)
        dequantize_base(base, quant, device)
        adapters = [create_adapter(base, lora, targets, seed)[0] for seed in (0, 1)]
        pack = [PackMember(adapter, rows, settings, seed) for seed, adapter in enumerate(adapters)]
        ours = train_pack(base, pack, device, Path(folder))
        worst = 0.0
        for seed, trained in enumerate(ours):
            if isinstance(trained, Exception):
                raise trained
            model = attach_adapter(load(), lora, targets, seed)
            theirs = train_with_trl(model, rows, make_tiny_tokenizer(), settings, seed, device, Path(folder) / "trl")
            pairs = zip(trained.losses, theirs.losses, strict=True)
            worst = max([worst, *(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in pairs)])
    words = f"losses differ by at most {worst:.1e} in {STEPS} steps (allowed {LIMITS[form]:.0e})"
    return [
        {"check": f"a pack of 2 against TRL, {form}", "passed": worst <= LIMITS[form], "result": words, "worst": worst}
    ]


def check_packs(model: str) -> list[Row]:
    """Tokens a second and memory of one training and of a pack of eight, and of the texts of the pack."""
    import torch

    from benchmarks import cost_model, packs
    from benchmarks.our_loop import machine, shape_of
    from lora_sweep.config.schema import Config, Lora, Train
    from lora_sweep.facts.memory import count_trainable_params, forecast_memory
    from lora_sweep.model.device import pick_device
    from lora_sweep.model.model_facts import describe_model

    device = pick_device()
    peak = machine(device)["peak"]  # operations a second of a large product in the compute dtype
    base = packs.random_base(model, device)
    shape = shape_of(base.config)
    rows = packs.rows_of(base.config.vocab_size, cost_model.ROWS * 8)
    adapters = [packs.adapter_of(base, seed) for seed in range(MEMBERS)]
    with torch.device("meta"):
        facts = describe_model(type(base)(base.config), base.config, "random")
    config = Config(lora=Lora(r=cost_model.RANK), train=Train(per_device_train_batch_size=cost_model.ROWS))
    adapted = [linear for linear in facts.linears if linear.name.rpartition(".")[2] in cost_model.TARGETS["all_linear"]]
    trainable = count_trainable_params(config.lora, adapted, facts)
    longest = max(len(row.input_ids) for row in rows)
    forecast = forecast_memory(config, facts, trainable, longest, 2 if device.compute_dtype == torch.bfloat16 else 4)
    table: list[Row] = []
    for members in (1, MEMBERS):
        spent = packs.training(base, rows, device, adapters[:members], members > 1)
        layout = cost_model.layout_of(cost_model.ROWS * members, True)  # what is computed: the prefix once
        parts = cost_model.train_operations(shape, cost_model.TARGETS["all_linear"], cost_model.RANK, layout)
        seconds = cost_model.ROWS * members * longest / spent["tokens_per_second"]  # of a step
        share = sum(parts.values()) / seconds / peak
        memory = spent["peak_gpu_memory_bytes"] or spent["peak_memory_bytes"]
        words = f"{spent['tokens_per_second']:,.0f} tokens/s, {share:.0%} of the product peak, {memory / 1e9:.2f} GB"
        if members == 1:
            words += f" (forecast {forecast.total / 1e9:.2f} GB)"
        passed = members == 1 or share >= TARGET_SHARE or device.type == "cpu"
        numbers = {"tokens_per_second": spent["tokens_per_second"], "share_of_peak": share, "memory_bytes": memory}
        numbers |= {"forecast_bytes": forecast.total, "members": members}
        table.append({"check": f"train {members} of {model}", "passed": passed, "result": words, **numbers})
    spent = packs.writing(base, rows, device, adapters, 14, 64)
    words = f"{spent['tokens_per_second']:,.0f} new tokens/s, {MEMBERS} adapters, 14 prompts each"
    table.append({"check": f"generate with {model}", "passed": True, "result": words, **spent})
    return table


def check_out_of_memory() -> list[Row]:
    """Memory that runs out in a training is told from other errors, and the next training works."""
    import torch

    from benchmarks import cost_model, packs
    from lora_sweep.model.device import is_out_of_memory, pick_device, read_free_memory

    device = pick_device()
    base = packs.random_base("smollm2_135m", device)
    rows = packs.rows_of(base.config.vocab_size, cost_model.ROWS * 3)
    free = read_free_memory(device)
    assert free is not None
    hog = torch.empty(int(free * 0.995) - (64 << 20), dtype=torch.uint8, device=device.type)
    try:
        packs.training(base, rows, device, [packs.adapter_of(base, 0)], False)
        words = "the training went through: nothing ran out"
        passed = False
    except Exception as error:  # noqa: BLE001 - which error it is, is what is checked
        passed = is_out_of_memory(error) or is_out_of_memory(error.__cause__ or error)
        words = f"{type(error).__name__} {'is' if passed else 'is not'} taken for memory that ran out"
    del hog
    torch.accelerator.empty_cache() if hasattr(torch.accelerator, "empty_cache") else torch.cuda.empty_cache()
    spent = packs.training(base, rows, device, [packs.adapter_of(base, 0)], False)
    words += f"; then {spent['tokens_per_second']:,.0f} tokens/s"
    return [{"check": "memory runs out", "passed": passed, "result": words}]


CHECKS: dict[str, Callable[[], list[Row]]] = {
    "smoke": check_smoke,
    **{f"equal-{form}": lambda form=form: check_equality(form) for form in LIMITS},  # type: ignore[misc]
    "small": lambda: check_packs("smollm2_135m"),
    "large": lambda: check_packs("openllama_3b_v2"),
    "memory": check_out_of_memory,
}
NEEDS_ACCELERATOR = ("large", "memory")


# --- the command ---------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("check_gpu.json"), help="a file for the table as JSON")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all checks together")
    parser.add_argument("--only", choices=CHECKS, help="one check, in this process")
    args = parser.parse_args()
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"missing packages: {', '.join(missing)} (PYTHON= names another Python, PACKAGES= a folder with packages)"
        )
        sys.exit(EXIT_MISSING)
    if args.only:
        args.to.write_text(json.dumps(CHECKS[args.only]()))
        return
    about = describe_machine()
    table = run_checks(time.monotonic() + args.minutes * 60, has_accelerator=about["device"] != "cpu")
    args.to.write_text(json.dumps({"machine": about, "checks": table}, indent=1) + "\n")
    print(write_table(about, table))
    print(f"written to {args.to}")
    sys.exit(any(not row["passed"] for row in table))


def describe_machine() -> Row:
    """The device, its name and the versions of the libraries, asked in a process of its own."""
    code = (
        "import json, torch, transformers, peft, trl, bitsandbytes; from lora_sweep.model.device import pick_device; "
        "d = pick_device(); print(json.dumps({'device': d.type, 'name': d.name, 'dtype': str(d.compute_dtype)[6:], "
        "'versions': {m.__name__: m.__version__ for m in (torch, transformers, peft, trl, bitsandbytes)}}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"the libraries cannot be imported: {done.stderr.strip().splitlines()[-1]}")
        sys.exit(EXIT_MISSING)
    about: Row = json.loads(done.stdout.splitlines()[-1])
    return about


def run_checks(deadline: float, has_accelerator: bool) -> list[Row]:
    """Run each check in a process of its own, until ``deadline`` (time.monotonic)."""
    table: list[Row] = []
    for name in CHECKS:
        if name in NEEDS_ACCELERATOR and not has_accelerator:
            table.append({"check": name, "passed": True, "result": "left out: there is no accelerator"})
            continue
        left = deadline - time.monotonic()
        if left < 10:
            table.append({"check": name, "passed": False, "result": "left out: no time is left"})
            continue
        begun = time.monotonic()
        print(f"{name} ...", flush=True)
        rows = run_check(name, left)
        for row in rows:
            row["seconds"] = round(time.monotonic() - begun, 1)
        table += rows
    return table


def run_check(name: str, seconds: float) -> list[Row]:
    """One check in a process of its own: its rows, or one row that says how it failed."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "rows.json"
        command = [sys.executable, str(Path(__file__)), "--only", name, "--to", str(answer)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return [{"check": name, "passed": False, "result": f"took more than {seconds:.0f} s"}]
        if done.returncode or not answer.exists():
            words = (done.stderr.strip().splitlines() or ["no word"])[-1]
            return [{"check": name, "passed": False, "result": words[:200], "log": done.stderr[-4000:]}]
        rows: list[Row] = json.loads(answer.read_text())
    return rows


def write_table(about: Row, table: list[Row]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    width = max(len(row["check"]) for row in table)
    lines = [f"{about['name']} ({about['device']}, {about['dtype']}); {versions}", ""]
    for row in table:
        seconds = f"{row['seconds']:6.1f} s" if "seconds" in row else " " * 8
        lines.append(f"{'ok  ' if row['passed'] else 'FAIL'}  {row['check']:<{width}}  {seconds}  {row['result']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""What plain_loop.py does, done by the parts of this project: a process, one JSON line.

    python benchmarks/our_loop.py machine
    python benchmarks/our_loop.py train WORK.json --steps 16 --members 4
    python benchmarks/our_loop.py write WORK.json --adapters FOLDER FOLDER --prompts 14

WORK.json is a trial as ``fast.py`` planned it: ``config`` and ``target_modules``. The seconds are those of the training
or of the writing alone, with whatever the first step has to warm up.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402 - its import is a part of what a process costs

from benchmarks.cost_model import Layout, Shape  # noqa: E402
from lora_sweep.config.schema import Config, config_from_json  # noqa: E402
from lora_sweep.data.prompts import choose_end_marker, tokenize_prompt  # noqa: E402
from lora_sweep.generation.packed import GenerationRequest, generate_pack  # noqa: E402
from lora_sweep.messages import Reporter  # noqa: E402
from lora_sweep.model.device import Device, pick_device, read_peak_memory, reset_peak_memory  # noqa: E402
from lora_sweep.model.load import silence_libraries  # noqa: E402
from lora_sweep.multi_lora.peft_format import create_adapter, load_adapter  # noqa: E402
from lora_sweep.training import pack_step  # noqa: E402
from lora_sweep.training.member import PackMember  # noqa: E402
from lora_sweep.training.packed import train_pack  # noqa: E402
from lora_sweep.training.progress import Trained  # noqa: E402
from lora_sweep.worker.resident import Resident  # noqa: E402

QUIET = Reporter(lambda event: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("machine", "train", "write"))
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--members", type=int, default=1, help="trainings in one pack, of adapters drawn anew")
    parser.add_argument("--adapters", type=Path, nargs="*", default=[])
    parser.add_argument("--prompts", type=int, default=14)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--float32", action="store_true")
    args = parser.parse_args()
    silence_libraries()
    device = pick_device()
    if args.float32:
        device = dataclasses.replace(device, compute_dtype=torch.float32)
    if args.what == "machine":
        print(json.dumps(machine(device)))
        return
    work = json.loads(args.work.read_text(encoding="utf-8"))
    config = config_from_json(work["config"])
    if args.what == "train":
        found = train(config, work["target_modules"], device, args.steps, args.members)
    else:
        found = write(config, args.adapters, device, args.prompts, args.max_new_tokens)
    print(json.dumps({**found, "whole_seconds": time.perf_counter() - STARTED}))


def train(config: Config, target_modules: list[str], device: Device, steps: int, members: int) -> dict[str, Any]:
    """Train a pack, and say what was computed."""
    resident = Resident(config, device)
    rows = resident.tokenize_rows("train", config.data, config.train.max_length)
    base = resident.provide_base(config.quant, QUIET)
    loaded = time.perf_counter() - STARTED
    settings = dataclasses.replace(config.train, max_steps=steps)
    pack = [
        PackMember(create_adapter(base, config.lora, target_modules, seed)[0], rows, settings, config.seed)
        for seed in range(members)
    ]
    reset_peak_memory(device)
    before = read_peak_memory(device)
    with tempfile.TemporaryDirectory() as scratch, layouts() as seen:
        begun = time.perf_counter()
        outcomes = train_pack(base, pack, device, Path(scratch))
        spent = time.perf_counter() - begun
    done = [outcome for outcome in outcomes if isinstance(outcome, Trained)]
    if len(done) != members:
        raise RuntimeError(f"a training ended early: {outcomes}")
    return {
        "seconds": {"load": loaded, "train": spent},
        "members": members,
        "tokens": sum(each.tokens for each in done),
        "row_tokens": [len(row.input_ids) for row in rows],
        "steps": steps,
        "losses": [step["loss"] for step in done[0].losses],
        "layouts": [dataclasses.astuple(layout) for layout in seen],
        "shape": dataclasses.asdict(shape_of(base.config)),
        "adapter_parameters": pack[0].adapter.numbers.numel(),
        "memory_before": before,
        **read_peak_memory(device),
    }


@contextlib.contextmanager
def layouts() -> Iterator[list[Layout]]:
    """The shapes of every forward that is made within this."""
    seen: list[Layout] = []
    own = pack_step.concatenate_rows

    def watched(*arguments: Any) -> Any:
        batch = own(*arguments)
        seen.append(layout_of(batch))
        return batch

    pack_step.concatenate_rows = watched
    try:
        yield seen
    finally:
        pack_step.concatenate_rows = own


def layout_of(batch: Any) -> Layout:
    if batch.padded is None:
        pairs = sum(length * (shared + length) for _, length, _, shared in batch.spans)
    else:
        pairs = batch.padded.queries.numel() * batch.padded.keys.shape[1]
    return Layout(batch.input_ids.shape[1], pairs, len(batch.logit_positions))


def shape_of(config: Any) -> Shape:
    """Of a model whose config has Llama's names."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        config.hidden_size,
        config.num_hidden_layers,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        size,
        config.vocab_size,
    )


def write(config: Config, adapters: list[Path], device: Device, prompts: int, max_new_tokens: int) -> dict[str, Any]:
    """Write the texts of a pack of adapters, all of them for the same prompts."""
    resident = Resident(config, device)
    settings = dataclasses.replace(config.eval, max_new_tokens=max_new_tokens)
    held_out = [(row.product, row.category) for row in resident.splits.validation[: settings.prompts]]
    asked = [*held_out, *((prompt.product, prompt.category) for prompt in settings.fixed_prompts)][:prompts]
    ids = [tokenize_prompt(config.data.template, *pair, resident.tokenizer) for pair in asked]
    base = resident.provide_base(config.quant, QUIET)
    loaded = time.perf_counter() - STARTED
    pack = [load_adapter(folder, device.type) for folder in adapters]
    marker = choose_end_marker(config.data, config.data.template)
    requests = [GenerationRequest(adapter, ids, marker) for adapter in pack]
    begun = time.perf_counter()
    written, _ = generate_pack(base, resident.tokenizer, requests, settings, device)
    spent = time.perf_counter() - begun
    return {
        "seconds": {"load": loaded, "write": spent},
        "prompt_tokens": [len(each) for each in ids],
        "new_tokens": [[text.new_tokens for text in of_one] for of_one in written],
        **read_peak_memory(device),
    }


# --- the machine itself -----------------------------------------------------------------------------------------------


def machine(device: Device) -> dict[str, Any]:
    """What it is, and the best that it does: large products, a copy, and a call that computes nothing."""
    one = torch.ones(2048, 2048, dtype=device.compute_dtype, device=device.type)
    many = torch.zeros(1 << 26, dtype=torch.float32, device=device.type)
    other = torch.empty_like(many)
    tiny = torch.zeros(1, device=device.type)
    return {
        "name": cpu_name() if device.type == "cpu" else device.name,
        "device": device.type,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "dtype": str(device.compute_dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "allocator": "tcmalloc" if "tcmalloc" in os.environ.get("LD_PRELOAD", "") else "the C library's",
        "peak": 2 * 2048**3 / best(lambda: one @ one, device, 12),
        "bandwidth": 2 * many.numel() * 4 / best(lambda: other.copy_(many), device, 6),
        "call_seconds": best(lambda: [tiny.add_(1) for _ in range(1000)], device, 6) / 1000,
    }


def best(action: Callable[[], object], device: Device, times: int) -> float:
    """The shortest of so many runs, in seconds; the first warms up."""
    found = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        action()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        found.append(time.perf_counter() - begun)
    return min(found[1:])


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()

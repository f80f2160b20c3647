"""Packs on a base with the shape of a model that is not at hand, and random weights: what packing gives on a device.

    python benchmarks/packs.py openllama_3b_v2                    # a GPU
    python benchmarks/packs.py smollm2_135m --members 1 2 --steps 4

Rows have the lengths that cost_model.py takes: four of 133 tokens a micro-batch, 33 of them common to all. A training
of k members is made twice, with forwards for several members at once and for one after another. Prints a Markdown
table, and writes what it found where ``--to`` says.
"""

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig  # noqa: E402

from benchmarks import cost_model  # noqa: E402
from benchmarks.our_loop import machine, shape_of  # noqa: E402
from lora_sweep.config.schema import Eval, Lora, Train  # noqa: E402
from lora_sweep.data.prompts import Example  # noqa: E402
from lora_sweep.generation.packed import GenerationRequest, generate_pack  # noqa: E402
from lora_sweep.model.device import Device, pick_device, read_peak_memory, reset_peak_memory  # noqa: E402
from lora_sweep.model.load import silence_libraries  # noqa: E402
from lora_sweep.multi_lora.adapter import Adapter  # noqa: E402
from lora_sweep.multi_lora.peft_format import create_adapter  # noqa: E402
from lora_sweep.training.member import PackMember  # noqa: E402
from lora_sweep.training.packed import train_pack  # noqa: E402
from lora_sweep.training.progress import Trained  # noqa: E402


class NoWords:
    """A tokenizer whose texts are empty and never end."""

    pad_token_id, eos_token_id = 0, -1

    def decode(self, tokens: list[int], **named: Any) -> str:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a file of conf/model/ that says the architecture")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=8, help="the first two warm up")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--to", type=Path, help="a file for what was measured")
    args = parser.parse_args()
    silence_libraries()
    device = pick_device()
    base = random_base(args.model, device)
    rows = rows_of(base.config.vocab_size, 4 * args.steps)
    found: dict[str, Any] = {
        "of": f"{args.model}, all_linear, r={cost_model.RANK}",
        "machine": machine(device),
        "shape": dataclasses.asdict(shape_of(base.config)),
        "train": [],
        "texts": [],
    }
    adapters = [adapter_of(base, seed) for seed in range(max(args.members))]  # trained on, from one pack to the next
    for members in args.members:
        for together in (True, False) if members > 1 else (False,):
            spent = training(base, rows, device, adapters[:members], together)
            found["train"].append({"members": members, "together": together, **spent})
    for authors, prompts in ((1, 1), *((members, cost_model.PROMPTS) for members in args.members)):
        spent = writing(base, rows, device, adapters[:authors], prompts, args.new_tokens)
        found["texts"].append({"authors": authors, "prompts": prompts, **spent})
    if args.to:
        args.to.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(found))


def random_base(name: str, device: Device) -> Any:
    """A frozen base of the model's shape on ``device``."""
    model = OmegaConf.load(ROOT / "conf" / "model" / f"{name}.yaml")
    fields: Any = OmegaConf.to_container(model.architecture)
    with torch.device(device.type):
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        base = AutoModelForCausalLM.from_config(config, dtype=device.compute_dtype)
    base.generation_config = GenerationConfig()
    return base.eval().requires_grad_(False)


def rows_of(vocab: int, count: int) -> list[Example]:
    """Rows of random tokens that begin alike."""
    draw = random.Random(0)
    prefix = [draw.randrange(10, vocab) for _ in range(cost_model.PREFIX)]
    prompt = cost_model.PREFIX + cost_model.SUFFIX - cost_model.RESPONSE
    own = [[draw.randrange(10, vocab) for _ in range(cost_model.SUFFIX)] for _ in range(count)]
    return [Example(prefix + tokens, prompt, False) for tokens in own]


def adapter_of(base: Any, seed: int) -> Adapter:
    targets = [name for name, _ in base.named_modules() if name.rpartition(".")[2] in cost_model.TARGETS["all_linear"]]
    return create_adapter(base, Lora(r=cost_model.RANK), targets, seed)[0]


def training(base: Any, rows: list[Example], device: Device, adapters: list[Adapter], together: bool) -> dict[str, Any]:
    """Tokens a second of all members, in the median step, and the peak of memory."""
    settings = Train(per_device_train_batch_size=cost_model.ROWS, max_steps=len(rows) // cost_model.ROWS)
    marks: list[float] = []
    pack = []
    for seed, adapter in enumerate(adapters):
        last = seed == len(adapters) - 1
        on_step = (lambda *seen: marks.append(time.perf_counter())) if last else (lambda *seen: None)
        pack.append(PackMember(adapter, rows, settings, seed, on_step))
    reset_peak_memory(device)
    with tempfile.TemporaryDirectory() as scratch:
        ended = train_pack(base, pack, device, Path(scratch), "batched" if together else "sequential")
    if not all(isinstance(each, Trained) for each in ended):
        raise RuntimeError(f"a training ended early: {ended}")
    step = statistics.median(after - before for before, after in itertools.pairwise(marks[1:]))
    tokens = len(adapters) * cost_model.ROWS * (cost_model.PREFIX + cost_model.SUFFIX)
    adapter_bytes = adapters[0].numbers.numel() * 4
    return {"tokens_per_second": tokens / step, "adapter_bytes": adapter_bytes, **read_peak_memory(device)}


def writing(
    base: Any, rows: list[Example], device: Device, adapters: list[Adapter], prompts: int, new_tokens: int
) -> dict[str, Any]:
    """New tokens a second of texts that all have the same length; the first time warms up."""
    asked = [rows[number % len(rows)].input_ids[: cost_model.PROMPT] for number in range(prompts)]
    pack = [GenerationRequest(adapter, asked, "") for adapter in adapters]
    for length in (2, new_tokens):
        begun = time.perf_counter()
        generate_pack(base, NoWords(), pack, Eval(max_new_tokens=length, batch_size=64), device)
        spent = time.perf_counter() - begun
    return {"tokens_per_second": len(adapters) * prompts * new_tokens / spent, **read_peak_memory(device)}


def as_markdown(found: dict[str, Any]) -> str:
    machine, members = found["machine"], sorted({one["members"] for one in found["train"]})
    alone = next(one for one in found["train"] if one["members"] == 1)
    gpu = alone["peak_gpu_memory_bytes"] is not None
    memory = "peak_gpu_memory_bytes" if gpu else "peak_memory_bytes"
    lines = [
        f"{found['of']}; random weights, {machine['dtype']}, on {machine['name']}, torch {machine['torch']}:",
        "",
        "| trained together | " + " | ".join(map(str, members)) + " |",
        "|---|" + "--:|" * len(members),
    ]

    def row(name: str, values: list[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(values) + " |")

    for together, name in ((True, "rows of all members in a forward"), (False, "one member after another")):
        pace = {one["members"]: one for one in found["train"] if one["together"] == together}
        row(f"tokens/s, {name}", [f"{pace[k]['tokens_per_second']:,.0f}" if k in pace else "–" for k in members])
        row(f"peak memory, {name}", [f"{pace[k][memory] / 1e9:.2f} GB" if k in pace else "–" for k in members])
    single = found["texts"][0]["tokens_per_second"]
    several = {one["authors"]: one["tokens_per_second"] / single for one in found["texts"][1:]}
    row("texts of 14 prompts each, against one prompt after another", [f"{several[k]:.0f}x" for k in members])
    return "\n".join(lines)


if __name__ == "__main__":
    main()

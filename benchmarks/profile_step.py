"""Where the time of a training step goes: `make profile`.

    python benchmarks/profile_step.py quant=4bit lora.targets=all_linear lora.r=8

The overrides are those of a trial. Two steps are watched by torch's profiler, after two that warm up.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from torch.profiler import ProfilerActivity, profile  # noqa: E402

from benchmarks.fast import planned  # noqa: E402
from lora_sweep.messages import Reporter  # noqa: E402
from lora_sweep.model.device import pick_device  # noqa: E402
from lora_sweep.model.load import silence_libraries  # noqa: E402
from lora_sweep.multi_lora.peft_format import create_adapter  # noqa: E402
from lora_sweep.training.member import PackMember  # noqa: E402
from lora_sweep.training.packed import train_pack  # noqa: E402
from lora_sweep.worker.resident import Resident  # noqa: E402

PARTS = (  # what torch calls it, and what it is
    ("products", ("aten::mm", "aten::addmm", "aten::addmm_", "aten::_int_mm", "aten::linear")),
    ("attention's products", ("aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product")),
    ("softmax and loss", ("aten::_softmax", "aten::_log_softmax", "aten::exp", "aten::scatter", "aten::gather")),
    ("draws and masks of dropout", ("aten::random_", "aten::randint", "aten::poisson", "aten::index_fill",
        "aten::bitwise")),
    ("copies and other dtypes", ("aten::copy_", "aten::clone", "aten::cat", "aten::index")),
    ("sums, products and roots by element", ("aten::mul", "aten::add", "aten::sub", "aten::pow", "aten::div",
        "aten::neg", "aten::sum", "aten::mean", "aten::rsqrt", "aten::silu", "aten::round", "aten::abs", "aten::amax")),
)  # fmt: skip
OTHER = "calls, memory and the rest"


def main(overrides: list[str]) -> None:
    plan = planned([[*overrides, "tracking=none"]])
    trial = next(trial for trial in plan.trials if trial.kind == "trial")
    config, device = trial.config, pick_device()
    silence_libraries()
    resident = Resident(config, device)
    base = resident.provide_base(config.quant, Reporter(lambda event: None))
    rows = resident.tokenize_rows("train", config.data, config.train.max_length)
    adapter, _ = create_adapter(base, config.lora, trial.target_modules, config.seed)
    member = PackMember(adapter, rows, dataclasses.replace(config.train, max_steps=2), config.seed)
    with tempfile.TemporaryDirectory() as scratch:
        train_pack(base, [member], device, Path(scratch))
        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        with profile(activities=kinds) as seen:
            train_pack(base, [member], device, Path(scratch))
    spent: dict[str, float] = {}
    for event in seen.key_averages():
        own = event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total
        spent[part_of(event.key)] = spent.get(part_of(event.key), 0.0) + own / 1e6
    total = sum(spent.values())
    print(f"{trial.label} on {device.name}, {device.compute_dtype}: two steps, {total:.2f} s under the profiler")
    for part, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"{part:40} {seconds:8.3f} s  {seconds / total:4.0%}")


def part_of(call: str) -> str:
    """What a call belongs to."""
    return next((part for part, names in PARTS if call.startswith(names)), OTHER)


if __name__ == "__main__":
    main(sys.argv[1:])

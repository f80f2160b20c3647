"""Measure each kernel of lora_sweep/multi_lora alone, against the library's own path.

    python benchmarks/kernels.py                  # a table of ratios, in under three minutes on two cores
    python benchmarks/kernels.py --json FILE      # the same numbers in a file

Shapes are those of SmolLM2-135M, with eight adapters of rank 8 and, for each, a micro-batch of four rows that share a
prompt's first 33 tokens. A time covers forward and backward, unless a line says otherwise. The two sides take turns,
and the shortest time of each counts. They must agree in their numbers, or the script fails.
"""

import argparse
import copy
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)  # not this folder: bitsandbytes would take this file for the package "kernels"

import torch  # noqa: E402
from torch.nn import functional  # noqa: E402
from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402
from transformers.loss.loss_utils import ForCausalLMLoss  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402

from benchmarks.kernel_models import (  # noqa: E402
    HEAD_SIZE,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    RANK,
    SHAPES,
    VOCAB,
    Projections,
    make_adapters,
    make_small_model,
    quantize_layer,
)  # fmt: skip
from benchmarks.our_loop import machine  # noqa: E402
from lora_sweep.config.schema import Lora, Quant, Train  # noqa: E402
from lora_sweep.data.prompts import Example  # noqa: E402
from lora_sweep.model.device import Device, pick_device, wait_for_device  # noqa: E402
from lora_sweep.model.load import quiet_libraries  # noqa: E402
from lora_sweep.multi_lora.attention import attend_layout, use_layout  # noqa: E402
from lora_sweep.multi_lora.dequantize import dequantize_base  # noqa: E402
from lora_sweep.multi_lora.dropout import draw_dropped, zero_dropped  # noqa: E402
from lora_sweep.multi_lora.head_loss import compute_head_loss  # noqa: E402
from lora_sweep.multi_lora.layout import MemberRows, concatenate_rows  # noqa: E402
from lora_sweep.multi_lora.linear import attach_pack  # noqa: E402
from lora_sweep.multi_lora.peft_format import create_adapter  # noqa: E402
from lora_sweep.multi_lora.rms_norm import fuse_norms  # noqa: E402
from lora_sweep.training.member import PackMember  # noqa: E402
from lora_sweep.training.packed import train_pack  # noqa: E402
from lora_sweep.training.step_modes import StepMode  # noqa: E402
from sweep.engines.local.worker_process import ENVIRONMENT  # noqa: E402
from sweep.resources.machine import choose_allocator  # noqa: E402

MEMBERS, ROWS, PREFIX, DROPOUT = 8, 4, 33, 0.05
MIN_TOKENS, MAX_TOKENS = 80, 190  # of a row: a prompt of about 52 tokens and a response
TOLERANCES = {torch.bfloat16: 0.03, torch.float32: 1e-4}  # of the norm of what is compared

ROW = "| {kernel} | {library} | {library_ms:.1f} | {ours_ms:.1f} | {gain:.2f} |"  # of the table

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Kernel:
    """One of our kernels and the library's way to the same numbers.

    Attributes:
        theirs, ours: compute once, and return numbers to compare.
        repeats: how often each is timed.
    """

    name: str
    library: str
    theirs: Callable[[], Tensors]
    ours: Callable[[], Tensors]
    repeats: int = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    parser.add_argument("--only", default="", help="measure the kernels with this text in their name")
    args = parser.parse_args()
    environment = {**ENVIRONMENT, **choose_allocator()}
    if not environment.keys() <= os.environ.keys():  # a worker's: the allocator reads it when the process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment})
    quiet_libraries()
    torch.manual_seed(0)
    device = pick_device()
    timings = []
    print(f"On {device.name}, {device.compute_dtype}\n")
    print("| kernel | library's path | library, ms | ours, ms | gain |\n|---|---|---|---|---|")
    for kernel in list_kernels(device):
        if args.only in kernel.name:
            timing = measure_kernel(kernel, device)
            print(ROW.format_map(timing), flush=True)
            timings.append(timing)
    if args.json is not None:
        record = {"machine": machine(device), "kernels": timings}
        args.json.write_text(json.dumps(record, indent=2) + "\n")


def measure_kernel(kernel: Kernel, device: Device) -> dict[str, str | float]:
    """Check that both sides agree, then time them in turns: the shortest milliseconds of each, and their ratio."""
    for theirs, ours in zip(kernel.theirs(), kernel.ours(), strict=True):
        expected = theirs.detach().float()
        error = torch.linalg.vector_norm(ours.detach().float() - expected) / torch.linalg.vector_norm(expected)
        if not float(error) <= TOLERANCES[device.compute_dtype]:
            raise SystemExit(f"{kernel.name}: the two sides differ by {float(error):.1%}")
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(kernel.repeats):
        for side, compute in zip(seconds, (kernel.theirs, kernel.ours), strict=True):
            begun = time.perf_counter()
            compute()
            wait_for_device(device)
            side.append(time.perf_counter() - begun)
    theirs, ours = (1e3 * min(side) for side in seconds)
    names = {"kernel": kernel.name, "library": kernel.library}
    return {**names, "library_ms": theirs, "ours_ms": ours, "gain": theirs / ours}


def list_kernels(device: Device) -> Iterator[Kernel]:
    """All kernels, each made when it is about to be measured."""
    members = [draw_rows(member) for member in range(MEMBERS)]
    yield from make_linear_kernels(device, members)
    yield make_attention_kernel(device, members)
    yield from make_head_kernels(device, members[0])
    yield from make_norm_kernels(device, members[0])
    yield from make_dropout_kernels(device, members[0])
    yield from make_quantized_kernels(device, members[0])
    if device.type == "cpu":
        yield make_thread_kernel(device, members)


def draw_rows(seed: int) -> list[Example]:
    """A member's micro-batch of uneven rows."""
    generator = random.Random(seed)
    prefix = list(range(PREFIX))
    lengths = [generator.randint(MIN_TOKENS, MAX_TOKENS) for _ in range(ROWS)]
    return [
        Example([*prefix, *(generator.randrange(VOCAB) for _ in range(length - PREFIX))], 52, False)
        for length in lengths
    ]


def count_tokens(rows: list[Example]) -> int:
    """Tokens of a micro-batch without padding, with its prefix once."""
    return PREFIX + sum(len(row.input_ids) - PREFIX for row in rows)


# --- linear layers ---------------------------------------------------------------------------------------------------


def make_linear_kernels(device: Device, members: list[list[Example]]) -> Iterator[Kernel]:
    """A training step of all members, and a token of all members' texts."""
    base = Projections(device)
    models, adapters = make_adapters(base, MEMBERS, device)
    sizes = [count_tokens(rows) for rows in members]
    x = torch.randn(1, sum(sizes), HIDDEN, device=device.type, dtype=device.compute_dtype, requires_grad=True)
    texts = torch.randn(MEMBERS * ROWS, 1, HIDDEN, device=device.type, dtype=device.compute_dtype)
    grad = torch.randn_like(base(x))
    parameters = [[p for p in model.parameters() if p.requires_grad] for model in models]

    def train_theirs() -> Tensors:
        ys, grad_xs, grad_adapters = [], [], []
        parts = x.detach().split(sizes, 1), grad.split(sizes, 1)
        for model, own, member_x, member_grad in zip(models, parameters, *parts, strict=True):
            member_x = member_x.clone().requires_grad_()
            y = model(member_x)
            grad_x, *gradients = torch.autograd.grad(y, [member_x, *own], member_grad)
            ys.append(y)
            grad_xs.append(grad_x)
            grad_adapters += [gradient.flatten() for gradient in gradients]
        return [torch.cat(ys, 1), torch.cat(grad_xs, 1), torch.cat(grad_adapters)]

    def train_ours() -> Tensors:
        adapter_map.segment_sizes = sizes
        gradients = [adapter.gradient for adapter in adapters if adapter.gradient is not None]
        for gradient in gradients:
            gradient.zero_()
        y = base(x)
        (grad_x,) = torch.autograd.grad(y, x, grad)
        return [y, grad_x, torch.cat(gradients)]

    @torch.no_grad()
    def write_theirs() -> Tensors:
        return [torch.cat([model(own) for model, own in zip(models, texts.split(ROWS), strict=True)])]

    @torch.no_grad()
    def write_ours() -> Tensors:
        adapter_map.segment_sizes = [ROWS] * MEMBERS
        adapter_map.forget_input()
        return [base(texts)]

    library = "PEFT, one adapter after another"
    with attach_pack(base, adapters) as adapter_map:
        yield Kernel(f"linear layers, {MEMBERS} adapters, {sum(sizes)} tokens", library, train_theirs, train_ours)
        yield Kernel(f"linear layers, a token of {len(texts)} texts, forward", library, write_theirs, write_ours, 50)


# --- attention, head, norm, dropout ----------------------------------------------------------------------------------


def make_attention_kernel(device: Device, members: list[list[Example]]) -> Kernel:
    """One layer's attention of all members' micro-batches."""
    dtype = device.compute_dtype
    prefixes = [MemberRows(rows, PREFIX, 1.0) for rows in members]
    batch = concatenate_rows(prefixes, ["response"] * MEMBERS, device.type, dtype)
    tokens = batch.input_ids.shape[1]
    states = [
        torch.randn(1, heads, tokens, HEAD_SIZE, device=device.type, dtype=dtype, requires_grad=True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    grad = torch.randn(1, tokens, HEADS, HEAD_SIZE, device=device.type, dtype=dtype)
    module: Any = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, is_causal=True)
    rows = [span for span in batch.spans if span.prefix_length]  # in order, four of each member
    padded = [pad_rows(rows[begin : begin + ROWS], states, grad) for begin in range(0, len(rows), ROWS)]

    def compute_theirs() -> Tensors:
        outputs = []
        for own_states, mask, own_grad in padded:
            out, _ = sdpa_attention_forward(module, *own_states, mask)
            torch.autograd.grad(out, own_states, own_grad)
            outputs.append([out[number, PREFIX : int(mask[number, 0, -1].sum())] for number in range(ROWS)])
        return [torch.cat([row for member in outputs for row in member])]

    def compute_ours() -> Tensors:
        with use_layout(batch):
            out, _ = attend_layout(torch.nn.Module(), *states, None)
            torch.autograd.grad(out, states, grad)
        return [torch.cat([out[0, span.start : span.start + span.length] for span in rows])]

    library = "SDPA of padded rows, a micro-batch at a time"
    return Kernel(f"attention, {len(rows)} rows", library, compute_theirs, compute_ours)


def pad_rows(rows: Sequence[Any], states: Tensors, grad: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor, Any]:
    """A micro-batch as transformers has it: each row with its prefix and padding, and a mask [rows, 1, L, L]."""
    longest = max(row.prefix_length + row.length for row in rows)
    index = torch.zeros(len(rows), longest, dtype=torch.long)
    is_token = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        prefix = range(row.prefix_start, row.prefix_start + row.prefix_length)
        tokens = [*prefix, *range(row.start, row.start + row.length)]
        index[number, : len(tokens)] = torch.tensor(tokens)
        is_token[number, : len(tokens)] = True
    index, is_token = index.to(grad.device), is_token.to(grad.device)
    mask = is_token[:, None, None, :] & torch.ones(longest, longest, dtype=torch.bool, device=grad.device).tril()
    own_states = [state[0][:, index].transpose(0, 1).detach().requires_grad_() for state in states]
    return own_states, mask, grad[0][index] * is_token[:, :, None, None]


def make_head_kernels(device: Device, rows: list[Example]) -> Iterator[Kernel]:
    """The loss of one member's micro-batch under the output head, with labels on the responses or on all tokens."""
    head = torch.nn.Linear(HIDDEN, VOCAB, bias=False).to(device.type, device.compute_dtype).requires_grad_(False)
    tokens = sum(len(row.input_ids) for row in rows)
    states = torch.randn(tokens, HIDDEN, device=device.type, dtype=device.compute_dtype, requires_grad=True)
    ids = torch.randint(VOCAB, (tokens,), device=device.type)
    is_response = torch.cat([torch.arange(len(row.input_ids)) >= row.prompt_length for row in rows]).to(device.type)
    masks = {"labels on responses": is_response, "labels on all tokens": torch.ones_like(is_response)}
    for name, is_labelled in masks.items():
        labels = torch.where(is_labelled, ids, -100)
        positions = is_labelled.nonzero()[:, 0]

        def compute_theirs(labels: torch.Tensor = labels) -> Tensors:
            loss = ForCausalLMLoss(head(states), None, VOCAB, shift_labels=labels)
            return [loss[None], *torch.autograd.grad(loss, states)]

        def compute_ours(positions: torch.Tensor = positions) -> Tensors:
            weights = torch.full((len(positions),), 1 / len(positions), device=device.type)
            loss, _ = compute_head_loss(states.index_select(0, positions), head, ids[positions], weights)
            return [loss[None], *torch.autograd.grad(loss, states)]

        yield Kernel(f"head and loss, {name}", "transformers' loss of all logits", compute_theirs, compute_ours, 5)


def make_norm_kernels(device: Device, rows: list[Example]) -> Iterator[Kernel]:
    norm = LlamaRMSNorm(HIDDEN).to(device.type, device.compute_dtype).requires_grad_(False)
    fused = copy.deepcopy(norm)
    x = torch.randn(1, count_tokens(rows), HIDDEN, device=device.type, dtype=device.compute_dtype, requires_grad=True)
    grad = torch.randn_like(x)

    def compute(module: torch.nn.Module) -> Tensors:
        y = module(x)
        return [y, *torch.autograd.grad(y, x, grad)]

    with fuse_norms(fused):
        library = "transformers' LlamaRMSNorm"
        yield Kernel(f"RMS norm, {x.shape[1]} tokens", library, lambda: compute(norm), lambda: compute(fused), 100)


def make_dropout_kernels(device: Device, rows: list[Example]) -> Iterator[Kernel]:
    """Dropout of one layer's input; what is compared is the share that is dropped."""
    x = torch.ones(count_tokens(rows), HIDDEN, device=device.type, dtype=device.compute_dtype, requires_grad=True)
    grad = torch.randn_like(x)
    for rate in (DROPOUT, 0.3):

        def compute_theirs(rate: float = rate) -> Tensors:
            y = functional.dropout(x, rate)
            (grad_x,) = torch.autograd.grad(y, x, grad)
            return [(y != 0).float().mean()[None], (grad_x != 0).float().mean()[None]]

        def compute_ours(rate: float = rate) -> Tensors:
            with torch.no_grad():
                mask = draw_dropped(x, rate, 0)
                y, grad_x = zero_dropped(x, mask), zero_dropped(grad, mask)
            return [(y != 0).float().mean()[None], (grad_x != 0).float().mean()[None]]

        yield Kernel(f"dropout of {rate}", "torch's dropout", compute_theirs, compute_ours, 50)


# --- quantized weights, member threads -------------------------------------------------------------------------------


def make_quantized_kernels(device: Device, rows: list[Example]) -> Iterator[Kernel]:
    """One layer from the hidden to the intermediate size, at 4 and at 8 bits."""
    weight = 0.02 * torch.randn(INTERMEDIATE, HIDDEN)
    x = torch.randn(count_tokens(rows), HIDDEN, device=device.type, dtype=device.compute_dtype)
    x[:, :4] *= 8  # columns with outliers, which LLM.int8 multiplies without rounding
    x.requires_grad_()
    grad = torch.randn(len(x), INTERMEDIATE, device=device.type, dtype=device.compute_dtype)
    for bits in (4, 8):
        theirs, ours = (torch.nn.Sequential(quantize_layer(weight, bits, device)) for _ in range(2))
        dequantize_base(ours, Quant(bits, materialize="always"), device)

        def compute(model: torch.nn.Module) -> Tensors:
            y = model(x)
            return [y, *torch.autograd.grad(y, x, grad)]

        yield Kernel(
            f"{bits}-bit layer, {len(x)} tokens",
            "bitsandbytes' own layer",
            lambda model=theirs: compute(model),  # type: ignore[misc]
            lambda model=ours: compute(model),  # type: ignore[misc]
            50,
        )


def make_thread_kernel(device: Device, members: list[list[Example]]) -> Kernel:
    """Training steps of eight members on a model of four SmolLM2 layers: in turns, and in two threads."""
    base = make_small_model(device)
    train = Train(max_steps=3, per_device_train_batch_size=ROWS)
    lora = Lora(r=RANK, dropout=DROPOUT)
    adapters = [create_adapter(base, lora, list(SHAPES), seed)[0] for seed in range(MEMBERS)]
    starts = [adapter.numbers.clone() for adapter in adapters]

    def train_members(mode: StepMode) -> Tensors:
        for adapter, start in zip(adapters, starts, strict=True):
            adapter.numbers.copy_(start)
        pairs = zip(adapters, members, strict=True)
        pack = [PackMember(adapter, rows, train, seed) for seed, (adapter, rows) in enumerate(pairs)]
        with tempfile.TemporaryDirectory() as scratch:
            train_pack(base, pack, device, Path(scratch), mode)
        return [torch.cat([adapter.numbers for adapter in adapters])]

    return Kernel(
        f"three steps of {MEMBERS} members, four layers",
        "one member after another",
        lambda: train_members("sequential"),
        lambda: train_members("parallel"),
        3,
    )


if __name__ == "__main__":
    main()

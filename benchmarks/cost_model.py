"""What a step should cost: operations, bytes and calls, counted from shapes. Pure: it measures nothing itself.

    python benchmarks/cost_model.py

prints, as a Markdown table, what packing, prefix sharing and loading once should give on a machine that is not at
hand. The same functions are held against measurements by tests/test_cost_model.py: results.json, of a CPU, and
packs_h200.json, of packs.py on a GPU.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")

# What does not depend on the number of rows, for one layer, in units of Machine.call_seconds, the cheapest call there
# is: a step's calls with autograd's and Python's part in them. Fitted to packs_h200.json, where little else counts.
TRAIN_CALLS = 875  # forward, backward and the updates of q's and v's adapters
TARGET_CALLS = 8  # of each further adapted matrix
MEMBER_CALLS = 89  # of each further member of a forward: its draws of dropout, its gradients
DECODE_CALLS = 230
# Numbers a token that a layer writes and reads again besides its products, in units of its width: norms, positions,
# residuals and the activation, forward and backward.
TRAIN_TRAFFIC = 120
LOGIT_TRAFFIC = 8  # passes over the logits of a chunk in fp32: softmax, exponential, minus one, to bf16; a GPU's


@dataclass(frozen=True)
class Shape:
    """A model of Llama's form."""

    hidden: int
    layers: int
    mlp: int
    heads: int
    key_heads: int
    head_size: int
    vocab: int

    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each matrix of a layer."""
        wide, narrow = self.heads * self.head_size, self.key_heads * self.head_size
        return {
            "q_proj": (self.hidden, wide),
            "k_proj": (self.hidden, narrow),
            "v_proj": (self.hidden, narrow),
            "o_proj": (wide, self.hidden),
            "gate_proj": (self.hidden, self.mlp),
            "up_proj": (self.hidden, self.mlp),
            "down_proj": (self.mlp, self.hidden),
        }

    @property
    def layer_params(self) -> int:
        return sum(inputs * outputs for inputs, outputs in self.linears().values())

    @property
    def head_params(self) -> int:
        return self.hidden * self.vocab

    @property
    def product_params(self) -> int:
        """Numbers that are multiplied with each token: the matrices and the output head."""
        return self.layers * self.layer_params + self.head_params


TARGETS = {
    "attn": ("q_proj", "v_proj"),
    "all_linear": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
SMOLLM2 = Shape(hidden=576, layers=30, mlp=1536, heads=9, key_heads=3, head_size=64, vocab=49152)
OPENLLAMA = Shape(hidden=3200, layers=26, mlp=8640, heads=32, key_heads=32, head_size=100, vocab=32000)


@dataclass(frozen=True)
class Layout:
    """One forward of a training.

    Attributes:
        tokens: all that are computed.
        pairs: of a query and a key, whose score the attention computes.
        kept: positions whose logits are made.
    """

    tokens: int
    pairs: int
    kept: int


@dataclass(frozen=True)
class Machine:
    """What a machine can do, and how much of it products reach.

    Attributes:
        peak: operations a second of a large matrix product, in the dtype that is trained in.
        bandwidth: bytes a second to and from memory.
        call_seconds: of one call of the library, whatever it computes.
        efficiency: of the training's products, against ``peak``.
        overlapped: the calls are made while the last ones compute, as on a GPU.
    """

    peak: float
    bandwidth: float
    call_seconds: float
    efficiency: float
    overlapped: bool = False
    number_bytes: int = 2


# --- counting ---------------------------------------------------------------------------------------------------------


def train_operations(shape: Shape, adapted: Sequence[str], r: int, layout: Layout) -> dict[str, int]:
    """Multiplications and additions that a forward and its backward execute, by part.

    The base's matrices have a gradient of their inputs alone; an adapter also one of its own two matrices.
    """
    linears = shape.linears()
    adapter_params = sum(r * sum(linears[name]) for name in adapted)
    scores = layout.pairs * shape.heads * shape.head_size
    return {
        "base": 2 * 2 * layout.tokens * shape.layers * shape.layer_params,
        "adapters": 3 * 2 * layout.tokens * shape.layers * adapter_params,
        "attention": 3 * 2 * 2 * scores * shape.layers,
        "head": 2 * 2 * layout.kept * shape.head_params,
    }


def train_bytes(shape: Shape, layout: Layout, number_bytes: int) -> int:
    """Bytes that a forward and its backward move besides what a product's efficiency already has in it."""
    weights = 2 * shape.product_params * number_bytes
    states = TRAIN_TRAFFIC * layout.tokens * shape.layers * shape.hidden * number_bytes
    logits = LOGIT_TRAFFIC * layout.kept * shape.vocab * 4
    return weights + states + logits


def seconds(machine: Machine, operations: float, moved: float, calls: float) -> float:
    """Of work whose parts follow one another."""
    work = operations / (machine.peak * machine.efficiency) + moved / machine.bandwidth
    waiting = calls * machine.call_seconds
    return max(work, waiting) if machine.overlapped else work + waiting


def train_seconds(machine: Machine, shape: Shape, targets: str, r: int, layout: Layout, members: int = 1) -> float:
    """Of a forward for so many members and its backward."""
    operations = sum(train_operations(shape, TARGETS[targets], r, layout).values())
    more = TARGET_CALLS * (len(TARGETS[targets]) - len(TARGETS["attn"])) + MEMBER_CALLS * (members - 1)
    calls = shape.layers * (TRAIN_CALLS + more)
    return seconds(machine, operations, train_bytes(shape, layout, machine.number_bytes), calls)


def decode_seconds(machine: Machine, shape: Shape, rows: int, context: float) -> float:
    """Of one token for each of ``rows`` texts, whose prompts and texts so far have ``context`` tokens."""
    cache = 2 * rows * context * shape.layers * shape.key_heads * shape.head_size
    moved = (shape.product_params + cache) * machine.number_bytes + 2 * rows * shape.vocab * 4
    operations = 2 * rows * (shape.product_params + 2 * context * shape.layers * shape.heads * shape.head_size)
    return seconds(machine, operations, moved, shape.layers * DECODE_CALLS)


# --- held against what was measured ----------------------------------------------------------------------------------


def calibrated(results: dict[str, Any], key: str = "none/all_linear") -> Machine:
    """The machine of ``results``, with the efficiency at which one measured training comes out as it did."""
    found = results["machine"]
    machine = Machine(found["peak"], found["bandwidth"], found["call_seconds"], 1.0, number_bytes=number_bytes(found))
    layouts, measured = training(results, key)
    operations = sum(
        sum(train_operations(SMOLLM2, TARGETS[key.partition("/")[2]], RANK, layout).values()) for layout in layouts
    )
    others = sum(train_seconds(machine, SMOLLM2, key.partition("/")[2], RANK, layout) for layout in layouts)
    others -= operations / machine.peak
    return dataclasses.replace(machine, efficiency=operations / machine.peak / (measured - others))


def training(results: dict[str, Any], key: str) -> tuple[list[Layout], float]:
    """The forwards of a measured training of ours, and its seconds: the median round's."""
    rounds = sorted((found["ours"][key] for found in results["rounds"]), key=lambda one: one["seconds"]["train"])
    middle = rounds[len(rounds) // 2]
    return [Layout(*layout) for layout in middle["layouts"]], middle["seconds"]["train"]


def number_bytes(machine: dict[str, Any]) -> int:
    return {"bfloat16": 2, "float16": 2, "float32": 4}[machine["dtype"]]


def writing_seconds(machine: Machine, shape: Shape, prompts: Sequence[int], new_tokens: Sequence[int]) -> float:
    """Of texts that are written together, token by token; those that have ended are left out."""
    read = sum(prompts)
    total = decode_seconds(machine, shape, read, sum(prompts) / len(prompts) / 2)
    for token in range(1, max(new_tokens)):
        going = [length for length, made in zip(prompts, new_tokens, strict=True) if made > token]
        total += decode_seconds(machine, shape, len(going), sum(going) / len(going) + token)
    return total


# --- a machine that is not at hand -----------------------------------------------------------------------------------

RANK = 8
# 312 TFLOP/s in bf16 and 2.0 TB/s: NVIDIA's data sheet of the A100 80 GB SXM. Half of the peak is what well-made
# training reaches there (arXiv 2104.04473 has 44 to 52 %); a call costs what the middle one of three H200s' hosts took
# for it (6.6, 7.4 and 10.6 microseconds; packs_h200.json is of the last).
A100 = Machine(peak=312e12, bandwidth=2.0e12, call_seconds=7.4e-6, efficiency=0.5, overlapped=True)
ROWS, PREFIX, SUFFIX, RESPONSE = 4, 33, 100, 80  # of a micro-batch; tokens: the catalogue's means
PROMPTS, PROMPT, NEW = 14, 52, 128
IMPORT_SECONDS, DISK = 6.0, 2.0e9  # of a process; bytes a second


def layout_of(rows: int, shared: bool) -> Layout:
    """A forward of micro-batches of equal rows, with the template's prefix once each, or in every row."""
    batches = rows // ROWS
    if shared:
        tokens = batches * PREFIX + rows * SUFFIX
        return Layout(tokens, (rows + batches) * SUFFIX * (PREFIX + SUFFIX), rows * RESPONSE)
    return Layout(rows * (PREFIX + SUFFIX), rows * (PREFIX + SUFFIX) ** 2, rows * RESPONSE)


HEAD = (
    "OpenLLaMA-3B-v2 in bf16 on an A100 80 GB, all_linear, r=8, micro-batches of 4 catalogue rows. "
    "**A model, not a measurement.**"
)


def table(machine: Machine = A100, shape: Shape = OPENLLAMA) -> str:
    """What packing, prefix sharing and loading once should give, as Markdown."""
    lines = [
        HEAD,
        "",
        "| trained together | 1 | 2 | 4 | 8 |",
        "|---|--:|--:|--:|--:|",
    ]
    own = ROWS * (PREFIX + SUFFIX)
    for shared in (False, True):
        paces = []
        for members in (1, 2, 4, 8):
            layout = layout_of(ROWS * members, shared)
            spent = train_seconds(machine, shape, "all_linear", RANK, layout, members)
            paces.append(f"{own * members / spent:,.0f}")
        name = "the prefix computed once" if shared else "the prefix computed for every row"
        lines.append(f"| tokens/s, {name} | " + " | ".join(paces) + " |")
    alone = writing_seconds(machine, shape, [PROMPT], [NEW])
    paces = []
    for members in (1, 2, 4, 8):
        texts = PROMPTS * members
        spent = writing_seconds(machine, shape, [PROMPT] * texts, [NEW] * texts)
        paces.append(f"{texts * alone / spent:.0f}x")
    lines.append("| texts of 14 prompts each, against one prompt after another | " + " | ".join(paces) + " |")
    read = shape_bytes(shape, machine) / DISK
    started, alone, once = IMPORT_SECONDS, 8 * (IMPORT_SECONDS + read), IMPORT_SECONDS + 2 * read
    loading = (
        f"A process starts in about {started:.0f} s and reads the base in {read:.0f} s. For the eight trials of the "
        f"main command this takes {alone:.0f} s with one process per trial, and {once:.0f} s in one worker, which "
        "reads the base once for each number of bits."
    )
    return "\n".join([*lines, "", loading])


def shape_bytes(shape: Shape, machine: Machine) -> int:
    """Of the weights, the embedding included."""
    return (shape.product_params + shape.vocab * shape.hidden) * machine.number_bytes


if __name__ == "__main__":
    print(table())

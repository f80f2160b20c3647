"""The size of a trial, computed from shapes: the exact number of trainable parameters, and a forecast of memory."""

from dataclasses import dataclass

from lora_sweep.config.schema import Config, Lora
from lora_sweep.facts.facts import Linear, ModelFacts

# By (bits, double quantization). NF4 takes 4 bits a weight and stores a constant for each block of 64 weights: 0.127
# bits a weight with double quantization, 0.5 without it (arXiv 2305.14314, section 3). LLM.int8's one fp32 scale for
# each output row is too small to count.
BYTES_PER_QUANTIZED_PARAM = {(4, True): 4.127 / 8, (4, False): 4.5 / 8, (8, True): 1.0, (8, False): 1.0}

ADAPTER_BYTES_PER_PARAM = 16  # fp32: weight, gradient, and the two moments of Adam
NUMBERS_PER_HIDDEN_UNIT = 24  # activations of one layer (see forecast_memory)


def count_trainable_params(lora: Lora, linears: list[Linear], model: ModelFacts) -> int:
    """The number of parameters that the adapter trains: r·(in+out) for each matrix (arXiv 2106.09685), plus options.

    DoRA adds one magnitude for each output row (arXiv 2402.09353). ``bias=lora_only`` trains the biases of the adapted
    matrices, ``bias=all`` every bias of the model, as PEFT does.
    """
    params = sum(lora.r * (linear.in_features + linear.out_features) for linear in linears)
    if lora.use_dora:
        params += sum(linear.out_features for linear in linears)
    if lora.bias == "lora_only":
        params += sum(linear.out_features for linear in linears if linear.bias)
    return params + (model.bias_params if lora.bias == "all" else 0)


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes that training is expected to hold at once.

    Attributes:
        materialized: the copies of quantized weights that ``quant.materialize`` may keep in the compute dtype.
        always: whether the copies are kept even if memory is short. If not, they do not count in the total.
    """

    weights: int
    adapter: int
    activations: int
    logits: int
    materialized: int = 0
    always: bool = False

    @property
    def base(self) -> int:
        """Bytes that a pack needs once, for any number of trials."""
        return self.weights + (self.materialized if self.always else 0)

    @property
    def total(self) -> int:
        """Bytes that a trial needs when it trains alone."""
        return self.base + self.adapter + self.activations + self.logits


def forecast_memory(
    config: Config, model: ModelFacts, trainable: int, longest_row: int | None, compute_bytes: int
) -> MemoryForecast:
    """The memory of the tensors of one training step, to decide what fits: an estimate, not a bound.

    On a CPU, the libraries take about 1 GiB more, and the C library may keep freed memory.

    Activations follow arXiv 2205.05198, equation 1, without its dropout masks and attention matrices, which a fused
    kernel does not keep: about 24·s·b·h numbers a layer (tokens of a row, rows, hidden size), or 1·s·b·h with gradient
    checkpointing.

    Args:
        trainable: number of parameters of the adapter.
        longest_row: tokens of the longest row before cutting to ``train.max_length``; None when unknown.
        compute_bytes: bytes of a number in the compute dtype: 4 for fp32, 2 for bf16.
    """
    quantized = sum(linear.in_features * linear.out_features for linear in model.linears if linear.name != model.head)
    copies = quantized * compute_bytes
    if config.quant.bits is None:
        weights, copies = model.total_params * compute_bytes, 0
    else:
        per_param = BYTES_PER_QUANTIZED_PARAM[config.quant.bits, config.quant.double_quant]
        weights = int(quantized * per_param) + (model.total_params - quantized) * compute_bytes
    length = min(longest_row or config.train.max_length, config.train.max_length)
    tokens = length * config.train.per_device_train_batch_size
    per_layer = 1 if config.train.gradient_checkpointing else NUMBERS_PER_HIDDEN_UNIT
    activations = tokens * model.hidden_size * model.layers * per_layer * compute_bytes
    logits = 3 * tokens * model.vocab_size * 4  # in fp32: the logits, their softmax and their gradient
    mode = config.quant.materialize
    return MemoryForecast(
        weights=weights,
        adapter=trainable * ADAPTER_BYTES_PER_PARAM,
        activations=activations,
        logits=logits,
        materialized=copies if mode != "never" else 0,
        always=mode == "always",
    )

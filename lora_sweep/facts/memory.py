"""How large a trial is, from shapes alone: exact trainable parameters, and a forecast of its memory. Pure."""

from dataclasses import dataclass

from lora_sweep.config.schema import Config, Lora
from lora_sweep.facts.facts import Linear, ModelFacts

# NF4 with double quantization, arXiv 2305.14314 section 3: 4 bits, and 0.127 for the constants of blocks of 64;
# without double quantization the constants take 0.5. LLM.int8 keeps one fp32 scale per output row: noise.
BYTES_PER_QUANTIZED_PARAM = {(4, True): 4.127 / 8, (4, False): 4.5 / 8, (8, True): 1.0, (8, False): 1.0}


def count_trainable_params(lora: Lora, linears: list[Linear], model: ModelFacts) -> int:
    """Numbers that the adapter trains: r·(in+out) a matrix (arXiv 2106.09685), and what the options add.

    DoRA adds one magnitude an output row (arXiv 2402.09353). ``bias=lora_only`` trains the biases of the adapted
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
        materialized: of the copies of quantized weights that ``quant.materialize`` may keep in the compute dtype.
        always: whether it keeps them whatever the memory; else they are no part of the total.
    """

    weights: int
    adapter: int
    activations: int
    logits: int
    materialized: int = 0
    always: bool = False

    @property
    def base(self) -> int:
        """What the trials of one base need once, however many there are."""
        return self.weights + (self.materialized if self.always else 0)

    @property
    def total(self) -> int:
        return self.base + self.adapter + self.activations + self.logits


def forecast_memory(
    config: Config, model: ModelFacts, trainable: int, longest_row: int | None, compute_bytes: int
) -> MemoryForecast:
    """Memory of one training step's tensors, to tell what fits from what does not: an estimate, not a bound.

    On a CPU the process holds about 1 GiB of libraries beside them, and whatever the C library keeps.

    Args:
        trainable: parameters of the adapter.
        longest_row: tokens of the longest row, or None when unknown; cut to ``train.max_length``.
        compute_bytes: bytes of a number in the compute dtype: 4 for fp32, 2 for bf16.

    The adapter counts 16 bytes a parameter: fp32 weight, gradient and Adam's two moments. Activations follow
    arXiv 2205.05198 equation 1 without its dropout masks and attention matrices (a fused kernel keeps none):
    about 24·s·b·h numbers a layer, or 1 with gradient checkpointing.
    """
    quantized = sum(x.in_features * x.out_features for x in model.linears if x.name != model.head)
    copies = quantized * compute_bytes
    if config.quant.bits is None:
        weights, copies = model.total_params * compute_bytes, 0
    else:
        per_param = BYTES_PER_QUANTIZED_PARAM[config.quant.bits, config.quant.double_quant]
        weights = int(quantized * per_param) + (model.total_params - quantized) * compute_bytes
    length = min(longest_row or config.train.max_length, config.train.max_length)
    tokens = length * config.train.per_device_train_batch_size
    per_layer = 1 if config.train.gradient_checkpointing else 24
    activations = tokens * model.hidden_size * model.layers * per_layer * compute_bytes
    logits = 3 * tokens * model.vocab_size * 4  # fp32 logits, their softmax, their gradient
    how = config.quant.materialize
    materialized = copies if how != "never" else 0
    return MemoryForecast(weights, trainable * 16, activations, logits, materialized, always=how == "always")

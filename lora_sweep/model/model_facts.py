"""Finds the facts about a base model: builds its architecture on torch's meta device, which holds only shapes."""

from collections.abc import Sequence
from typing import Any

from lora_sweep.config.schema import Config
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import Linear, ModelFacts


def inspect_model(config: Config) -> ModelFacts:
    """The facts about the base model of ``config``.

    Raises:
        Refused: transformers knows no causal language model of this architecture.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from lora_sweep.model.load import fingerprint_model, load_config, take_first_line

    architecture = load_config(config.model)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(architecture, trust_remote_code=False)
    except ValueError as error:
        fault = f"is no causal language model that transformers knows ({take_first_line(error)})"
        raise Refused(f"model {config.model.name}", fault) from error
    return describe_model(model, architecture.get_text_config(), fingerprint_model(config.model))


def describe_model(model: Any, architecture: Any, fingerprint: str) -> ModelFacts:
    """The facts about a transformers model, which can be on any device.

    Args:
        architecture: the text config of the model.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    head_name = next((name for name, module in model.named_modules() if module is head), None)
    linears = list_linears(model)
    attn: list[str] = []
    in_attention: set[str] = set()
    for block in list_attention_blocks(model):
        block_linears = [linear for linear in linears if linear.name.startswith(f"{block}.")]
        attn += [linear.name for linear in find_query_and_value(block_linears)]
        in_attention |= {linear.name for linear in block_linears}
    names = [linear.name for linear in linears if linear.name not in in_attention and linear.name != head_name]
    return ModelFacts(
        fingerprint=fingerprint,
        model_type=architecture.model_type,
        linears=linears,
        attn=attn,
        mlp=[name for name in names if is_in_layer(name)],
        head=head_name if any(linear.name == head_name for linear in linears) else None,
        tied_head=head is not None and head.weight is embedding.weight,
        total_params=sum(parameter.numel() for parameter in model.parameters()),
        bias_params=sum(parameter.numel() for name, parameter in model.named_parameters() if name.endswith(".bias")),
        hidden_size=architecture.hidden_size,
        layers=architecture.num_hidden_layers,
        vocab_size=architecture.vocab_size,
        max_positions=getattr(architecture, "max_position_embeddings", None),
    )


def list_linears(model: Any) -> list[Linear]:
    """The matrices that LoRA can adapt, in the model's order."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linears = []
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):  # GPT-2's linear layer, with the weight transposed
            linears.append(Linear(name, module.nx, module.nf, True))
        elif isinstance(module, nn.Linear):
            linears.append(Linear(name, module.in_features, module.out_features, module.bias is not None))
    return linears


def list_attention_blocks(model: Any) -> list[str]:
    """The names of the outermost attention blocks.

    Their class names all end in Attention or MLA: LlamaAttention, GPT2Attention, LongcatFlashMLA.
    """
    blocks: list[str] = []
    for name, module in model.named_modules():
        is_attention = type(module).__name__.endswith(("Attention", "MLA"))
        if is_attention and not any(name.startswith(f"{outer}.") for outer in blocks):
            blocks.append(name)
    return blocks


def is_in_layer(name: str) -> bool:
    """Whether the module ``name`` is in a numbered layer, such as ``model.layers.0.mlp.up_proj``."""
    return any(part.isdigit() for part in name.split("."))


def find_query_and_value(linears: Sequence[Linear]) -> list[Linear]:
    """The query and value projections of one attention block, or the one projection that contains both.

    A block of one or two matrices has a fused projection, whose output is wider than its input, and an output
    projection: GPT-2's c_attn, GPT-NeoX's query_key_value, Phi-3's qkv_proj. In blocks of more matrices, the names
    start with q and v in nearly all models of transformers, or with kv if one matrix makes keys and values. If several
    names match, the last matrix makes the heads: DeepSeek's low-rank pairs are q_a_proj and q_b_proj. If no name
    matches, four matrices are taken as query, key, value and output, in this order.
    """
    wide = [linear for linear in linears if linear.out_features > linear.in_features]
    if len(linears) <= 2:
        return wide[:1]
    query = [linear for linear in linears if linear.leaf.startswith("q")]
    value = [linear for linear in linears if linear.leaf.startswith(("v", "kv"))]
    if query and value:
        return [query[-1], value[-1]]
    if len(linears) == 4 and not query and not value:
        return [linears[0], linears[2]]
    return wide[:1]

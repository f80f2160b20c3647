"""What a base model and a data set look like, without loading a weight: makes ``facts``.

Runs in a process of its own, so that the orchestrator never imports torch: ``python -m lora_sweep.model.inspect
REQUESTS.json ANSWERS.json``. An answer is ``{"facts": ...}`` or ``{"refused": ...}``; facts are cached by everything
they depend on. Its standard output is for people, its standard error for what libraries have to say.
"""

import dataclasses
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from lora_sweep.config.schema import Config, Train, config_from_json
from lora_sweep.data.prompts import count_tokens, make_examples, tokenize_prompt
from lora_sweep.data.rows import Row
from lora_sweep.data.sources import source_fingerprint
from lora_sweep.data.splits import Splits, load_splits
from lora_sweep.errors import Refused
from lora_sweep.facts.facts import DataFacts, Facts, Linear, ModelFacts, facts_file, is_lasting, read_cached_facts
from lora_sweep.runs.files import write_json
from lora_sweep.scoring.scorers import check_references


def inspect_trial(config: Config, strict: bool) -> Facts:
    """Look at the data, the scorer, the trainer's settings and the model, and remember what data and model are like.

    Args:
        strict: everything that training needs must be at hand. Otherwise what only a hub can give stays unknown.

    Raises:
        Refused: the data, the scorer, the settings or the model cannot be used; nothing is remembered.
    """
    check_model_path(config.model.path)
    known = read_cached_facts(config, strict)
    split = None if known else _split_or_none(config, strict)  # first: rows are judged without importing torch
    if not known:
        check_references(config.eval, list_prompts(config, split))
    check_settings(config.train)
    if known:
        return known
    data = inspect_data(config, split, strict)
    from lora_sweep.model.device import pick_device

    facts = Facts(inspect_model(config), data, pick_device().compute_bytes)
    if is_lasting(config) and data.longest_row is not None:
        write_json(facts_file(config, strict), facts.to_json())
    return facts


def check_model_path(path: str | None) -> None:
    """Refuse a ``model.path`` that is no folder in transformers' format; needs no torch, so it answers at once."""
    if path is not None and not (Path(path).expanduser() / "config.json").is_file():
        what = "holds no config.json" if Path(path).expanduser().is_dir() else "is no folder"
        raise Refused(f"model.path = {path}", f"{what}; it must be a folder in transformers' format")


def select_held_out_rows(config: Config, split: Splits) -> list[Row]:
    """The split that the prompts are of, in hash order.

    Raises:
        Refused: it has no row.
    """
    name, data = config.eval.split, config.data
    rows: list[Row] = getattr(split, name)
    if not rows:
        share = "" if data.columns.split else f" (data.{name}_fraction={getattr(data, f'{name}_fraction')})"
        raise Refused(f"eval.split = {name}", f"no row of {data.path or data.name} is in the {name} split{share}")
    return rows


def list_prompts(config: Config, split: Splits | None) -> list[dict[str, Any]]:
    """The prompts as an evaluation will list them, without a text; without ``split``, the fixed ones."""
    rows = select_held_out_rows(config, split)[: config.eval.prompts] if split else []
    held_out = [(row.product, row.category, row.description) for row in rows]
    asked = [*held_out, *((prompt.product, prompt.category, None) for prompt in config.eval.fixed_prompts)]
    return [
        {"prompt_id": repr(product), "product": product, "category": category, "reference": reference}
        for product, category, reference in asked
    ]


def check_settings(train: Train) -> None:
    """Refuse names that transformers and TRL would refuse, or pass over, only once training starts."""
    from transformers import SchedulerType, TrainingArguments
    from transformers.training_args import OptimizerNames

    sampling = TrainingArguments.__dataclass_fields__["train_sampling_strategy"]
    allowed = {
        "lr_scheduler_type": [name.value for name in SchedulerType],
        "optim": [name.value for name in OptimizerNames],
        "train_sampling_strategy": sampling.metadata["choices"],
    }
    for key, names in allowed.items():
        value = getattr(train, key)
        if value not in names:
            raise Refused(f"train.{key} = {value}", "is unknown", names, value)
    if train.sft:  # importing TRL takes seconds
        from lora_sweep.model.device import pick_device
        from lora_sweep.model.sft_settings import make_sft_config

        with tempfile.TemporaryDirectory() as scratch:
            make_sft_config(train, 0, pick_device(), Path(scratch))


def _split_or_none(config: Config, strict: bool) -> Splits | None:
    try:
        return load_splits(config.data)
    except Refused:
        if strict or not config.data.hub_id or config.data.path:
            raise
        return None


def inspect_data(config: Config, split: Splits | None, strict: bool) -> DataFacts:
    """Counts and lengths of the data under the trial's template and tokenizer."""
    source = source_fingerprint(config.data)
    tokenizer = _tokenizer_or_none(config, strict)
    if split is None:
        return DataFacts(source)
    if not is_lasting(config) and config.data.hub_id and not config.data.path:
        source = f"{config.data.hub_id}@rows:{split.compute_fingerprint()}"
    counts: dict[str, Any] = {
        "rows_fingerprint": split.compute_fingerprint(),
        "rows_read": split.rows_read,
        "dropped": split.dropped,
        "train_rows": len(split.train),
        "validation_rows": len(split.validation),
        "test_rows": len(split.test),
    }
    if tokenizer is None:
        return DataFacts(source, **counts)
    max_length = config.train.max_length
    train = make_examples(split.train, config.data, tokenizer, max_length)
    rows = select_held_out_rows(config, split)
    held_out = rows[: max(config.eval.validation_rows, config.eval.prompts)]
    prompts: list[int] = []
    for template in (config.data.template, *config.eval.baseline_templates):
        data = dataclasses.replace(config.data, template=template)
        prompts += [example.prompt_length for example in make_examples(held_out, data, tokenizer, max_length)]
        for fixed in config.eval.fixed_prompts:
            prompts.append(len(tokenize_prompt(template, fixed.product, fixed.category, tokenizer)))
    validation = make_examples(rows[: config.eval.validation_rows], config.data, tokenizer, max_length)
    whole = make_examples(split.train, config.data, tokenizer, 1 << 30)
    return DataFacts(
        source,
        **counts,
        cut_rows=sum(example.is_cut for example in train),
        cut_validation_rows=sum(example.is_cut for example in validation),
        longest_prompt=max(prompts),
        train_tokens=count_tokens(train),
        longest_row=max(len(example.input_ids) for example in whole),
    )


def _tokenizer_or_none(config: Config, strict: bool) -> Any:
    from lora_sweep.model.load import load_tokenizer

    try:
        return load_tokenizer(config.model)
    except Refused:
        if strict or not config.model.hub_id or config.model.path:
            raise
        return None


def inspect_model(config: Config) -> ModelFacts:
    """The architecture's matrices, built on the meta device: shapes, no numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    from lora_sweep.model.load import fingerprint_model, load_config

    architecture = load_config(config.model)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(architecture, trust_remote_code=False)
    except ValueError as error:
        what = f"is no causal language model that transformers knows ({str(error).splitlines()[0][:200]})"
        raise Refused(f"model {config.model.name}", what) from error
    return describe_model(model, architecture.get_text_config(), fingerprint_model(config.model))


def describe_model(model: Any, architecture: Any, fingerprint: str) -> ModelFacts:
    """Facts of a built model, on whatever device it is."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    linears: list[Linear] = []
    blocks: list[str] = []
    head_name = None
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            linears.append(Linear(name, module.nx, module.nf, True))
        elif isinstance(module, nn.Linear):
            linears.append(Linear(name, module.in_features, module.out_features, module.bias is not None))
        elif _is_attention(module) and not any(name.startswith(f"{outer}.") for outer in blocks):
            blocks.append(name)
        if module is head:
            head_name = name
    attn: list[str] = []
    inside: set[str] = set()
    for block in blocks:
        within = [linear for linear in linears if linear.name.startswith(f"{block}.")]
        attn += [linear.name for linear in find_query_and_value(within)]
        inside |= {linear.name for linear in within}
    return ModelFacts(
        fingerprint=fingerprint,
        model_type=architecture.model_type,
        linears=linears,
        attn=attn,
        mlp=[x.name for x in linears if x.name not in inside and x.name != head_name and _in_a_layer(x.name)],
        head=head_name if any(x.name == head_name for x in linears) else None,
        tied_head=head is not None and head.weight is embedding.weight,
        total_params=sum(parameter.numel() for parameter in model.parameters()),
        bias_params=sum(p.numel() for name, p in model.named_parameters() if name.endswith(".bias")),
        hidden_size=architecture.hidden_size,
        layers=architecture.num_hidden_layers,
        vocab_size=architecture.vocab_size,
        max_positions=getattr(architecture, "max_position_embeddings", None),
    )


def _is_attention(module: Any) -> bool:
    """transformers names every attention block so: LlamaAttention, GPT2Attention, MptAttention, LongcatFlashMLA."""
    return type(module).__name__.endswith(("Attention", "MLA"))


def _in_a_layer(name: str) -> bool:
    """Whether the module is one of a numbered stack, as ``model.layers.0.mlp.up_proj``."""
    return any(part.isdigit() for part in name.split("."))


def find_query_and_value(linears: list[Linear]) -> list[Linear]:
    """The query and value projections of one attention block, or the one projection that holds them both.

    One or two matrices are a fused projection, wider than its input, and the output: GPT-2's c_attn, GPT-NeoX's
    query_key_value, Phi-3's qkv_proj. Among more, names begin with q and v in nearly all of transformers' models, or
    with kv where one matrix makes both; of several, as in DeepSeek's low-rank pairs q_a_proj and q_b_proj, the last
    makes the heads. Where no name tells, the order of definition does: query, key, value, output.
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


def main() -> None:
    """Answer the requests in the file argv[1], ``[{"config": ..., "strict": bool}]``, into the file argv[2]."""
    gc.disable()  # it lives for seconds, in which it imports: see worker.straight_line
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    answers: list[dict[str, Any]] = []
    for request in json.loads(Path(sys.argv[1]).read_text()):
        try:
            facts = inspect_trial(config_from_json(request["config"]), request["strict"])
            answers.append({"facts": facts.to_json()})
        except Refused as error:
            answers.append({"refused": str(error)})
    Path(sys.argv[2]).write_text(json.dumps(answers))
    gc.freeze()


if __name__ == "__main__":
    main()

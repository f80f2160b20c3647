"""One configuration as a competent user would write it from TRL's documentation: what the sweep is measured against.

    python benchmarks/plain_loop.py ROWS.json --model FOLDER --r 8 --targets all-linear --bits 4

Load, quantize, tokenize, train with SFTTrainer, then write one text after another with `generate`: a process a
configuration, and no import from lora_sweep. ROWS.json holds ``train``, a list of {prompt, completion},
``prompts``, a list of texts, and ``end``, what ends a text. Prints one JSON line: seconds of each part, tokens, losses,
peak memory. With ``--max-new-tokens 0`` it only trains.

Kinder than TRL's defaults in two ways: gradient checkpointing is off, and no metrics beyond TRL's own are asked for.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

STARTED = time.perf_counter()

import torch  # noqa: E402 - its import is a part of what a process a configuration costs
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--bits", type=int, choices=(4, 8))
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--targets", default="all-linear", help="all-linear, or names with commas")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=-1)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--float32", action="store_true", help="no bf16 autocast")
    parser.add_argument("--save", type=Path, help="keep the adapter in this folder")
    args = parser.parse_args()
    rows = json.loads(args.rows.read_text(encoding="utf-8"))
    marks = {"import": time.perf_counter() - STARTED}

    begun = time.perf_counter()
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32 if args.float32 else torch.bfloat16, quantization_config=quantization(args)
    )
    marks["load"] = time.perf_counter() - begun

    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                max_steps=args.steps,
                num_train_epochs=1,
                per_device_train_batch_size=args.batch,
                learning_rate=args.learning_rate,
                max_length=256,
                gradient_checkpointing=False,
                bf16=not args.float32,
                seed=0,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=not torch.accelerator.is_available(),
            ),
            train_dataset=Dataset.from_list(rows["train"]),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=args.r,
                lora_alpha=16,
                lora_dropout=args.dropout,
                target_modules=args.targets if args.targets == "all-linear" else args.targets.split(","),
                task_type="CAUSAL_LM",
            ),
        )
        marks["prepare"] = time.perf_counter() - begun
        begun = time.perf_counter()
        trainer.train()
        marks["train"] = time.perf_counter() - begun
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    train_peak = peak_memory_bytes()
    gpu_peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    if args.save:
        trainer.save_model(str(args.save))

    begun = time.perf_counter()
    tuned = trainer.model.eval()
    new_tokens = []
    for prompt in rows["prompts"] if args.max_new_tokens else []:
        inputs = tokenizer(prompt, return_tensors="pt").to(tuned.device)
        with torch.no_grad():
            output = tuned.generate(
                **inputs,
                max_new_tokens=args.max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                stop_strings=[rows["end"]],
                tokenizer=tokenizer,
            )
        new_tokens.append(output.shape[1] - inputs["input_ids"].shape[1])
    marks["generate"] = time.perf_counter() - begun
    print(
        json.dumps(
            {
                "seconds": marks,
                "whole_seconds": time.perf_counter() - STARTED,
                "row_tokens": [len(row["input_ids"]) for row in trainer.train_dataset],
                "steps": len(losses),
                "losses": losses,
                "new_tokens": new_tokens,
                "train_peak_memory_bytes": train_peak,
                "peak_gpu_memory_bytes": gpu_peak,
                "peak_memory_bytes": peak_memory_bytes(),
            }
        )
    )


def peak_memory_bytes() -> int:
    """Of this process, in the machine's memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def quantization(args: argparse.Namespace) -> BitsAndBytesConfig | None:
    if args.bits is None:
        return None
    if args.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if args.float32 else torch.bfloat16,
    )


if __name__ == "__main__":
    main()

"""One trial: fine-tune one LoRA configuration of one base model, generate, score."""

"""The keys of TRL's SFTConfig that lora-sweep sets itself, so that ``train.sft`` must not hold them."""

OWNED_SFT_KEYS = {  # key of SFTConfig: what to use instead
    key: instead
    for instead, keys in {
        "runs_dir": "output_dir",
        "seed": "seed data_seed",
        "train.gradient_checkpointing": "activation_checkpointing",
        "train.loss_on": "completion_only_loss assistant_only_loss",
        "data.*": "dataset_kwargs",
        "data.columns.*": "dataset_text_field",
        "data.template": "chat_template_path",
        "model.* and quant.*": "model_init_kwargs",
        "eval.*": "eval_strategy",
        "tracking": "report_to run_name",
        "nothing: a row is a sequence": "packing padding_free",
        "nothing: the tokenizer's own": "eos_token pad_token",
        "nothing: every step is logged": "logging_steps logging_strategy logging_first_step disable_tqdm",
        "nothing: the loss is the mean negative log-likelihood": "loss_type label_smoothing_factor use_liger_kernel",
        "nothing: a non-finite loss ends the trial": "logging_nan_inf_filter",
        "train.checkpoint_steps": "save_strategy save_steps save_total_limit save_only_model enable_jit_checkpoint",
        "nothing: the dtype follows the device": "bf16 fp16",
        "nothing: the device is chosen by what is there": "use_cpu dataloader_pin_memory",
        "nothing: code from a model folder is never run": "trust_remote_code",
        "nothing: the same command resumes": "resume_from_checkpoint ignore_data_skip",
        "launch.on_oom": "auto_find_batch_size",
        "nothing: a trial stays on this machine": "push_to_hub hub_token push_to_hub_token hub_model_id",
    }.items()
    for key in keys.split()
}

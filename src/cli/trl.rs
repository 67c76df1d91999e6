//! Settings of TRL's that are not settings here.

/// Those that cannot change the result: accepted, with one notice.
const IGNORED: &[&str] = &[
    "attn_implementation",
    "average_tokens_across_devices",
    "bf16_full_eval",
    "cache_implementation",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "dataset_num_proc",
    "ddp_backend",
    "ddp_find_unused_parameters",
    "ddp_timeout",
    "disable_tqdm",
    "do_eval",
    "do_train",
    "ds3_gather_for_generation",
    "exp_name",
    "fp16_full_eval",
    "gradient_checkpointing_kwargs",
    "hub_model_id",
    "hub_private_repo",
    "hub_strategy",
    "hub_token",
    "include_num_input_tokens_seen",
    "include_tokens_per_second",
    "label_pad_token_id",
    "local_rollout_forward_batch_size",
    "log_completions",
    "log_level",
    "log_multimodal",
    "log_unique_prompts",
    "logging_dir",
    "logging_strategy",
    "lora_alpha",
    "lora_dropout",
    "lora_r",
    "lora_target_modules",
    "low_cpu_mem_usage",
    "model_revision",
    "num_completions_to_print",
    "num_sample_generations",
    "pad_to_multiple_of",
    "pad_token",
    "padding_value",
    "remove_unused_columns",
    "report_to",
    "run_name",
    "save_only_model",
    "save_safetensors",
    "save_strategy",
    "skip_memory_metrics",
    "torch_compile",
    "trackio_space_id",
    "trust_remote_code",
    "use_cache",
    "use_cpu",
    "use_liger_kernel",
    "use_logits_to_keep",
];

/// Those that would change the result, with the value that says what happens anyway.
const REFUSED: &[(&str, &str)] = &[
    ("assistant_only_loss", "false"),
    ("bf16", "false"),
    ("dataset_test_split", "test"),
    ("dataset_train_split", "train"),
    ("deepspeed", "null"),
    ("delta", "null"),
    ("disable_dropout", "true"),
    ("entropy_coef", "0.0"),
    ("epsilon_high", "null"),
    ("eval_packing", "false"),
    ("fp16", "false"),
    ("fp16_opt_level", "O1"),
    ("fsdp", ""),
    ("full_determinism", "true"),
    ("generation_batch_size", "null"),
    ("generation_kwargs", "null"),
    ("group_by_length", "false"),
    ("importance_sampling_level", "token"),
    ("label_smoothing_factor", "0.0"),
    ("ld_alpha", "null"),
    ("load_best_model_at_end", "false"),
    ("load_in_4bit", "false"),
    ("load_in_8bit", "false"),
    ("logging_first_step", "false"),
    ("mask_truncated_completions", "false"),
    ("max_completion_length", "null"),
    ("max_prompt_length", "null"),
    ("min_p", "null"),
    ("neftune_noise_alpha", "null"),
    ("num_generations_eval", "null"),
    ("optim", "adamw_torch"),
    ("packing", "false"),
    ("padding_free", "true"),
    ("push_to_hub", "false"),
    ("repetition_penalty", "1.0"),
    ("reward_clip_range", "null"),
    ("reward_weights", "null"),
    ("rpo_alpha", "null"),
    ("sft_model_path", "null"),
    ("steps_per_generation", "null"),
    ("sync_ref_model", "false"),
    ("tf32", "false"),
    ("top_entropy_quantile", "1.0"),
    ("top_k", "0"),
    ("top_p", "1.0"),
    ("train_on_inputs", "false"),
    ("use_peft", "false"),
    ("use_vllm", "false"),
    ("use_weighting", "false"),
];

/// What TRL's name means here.
pub enum Known {
    /// Nothing: the result is the same.
    NoEffect,
    /// What happens anyway.
    Same,
    /// Something that is not there; only this value may be given.
    Refused(&'static str),
}

/// Looks a setting up that is not one of ours.
pub fn known(key: &str, value: &str) -> Option<Known> {
    if IGNORED.contains(&key) {
        return Some(Known::NoEffect);
    }
    let (_, same) = REFUSED.iter().find(|(name, _)| *name == key)?;
    let (value, none) = (value.to_ascii_lowercase(), ["null", "none", ""]);
    let agrees = value == same.to_ascii_lowercase() || none.contains(&value.as_str());
    Some(if agrees { Known::Same } else { Known::Refused(same) })
}

/// The message of [`Known::Refused`].
pub fn refusal(same: &str, value: &str) -> String {
    match same {
        "null" | "" => format!("expected no such setting, got {value}"),
        same => format!("expected {same} or no such setting, got {value}"),
    }
}

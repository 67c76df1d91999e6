//! The table: what becomes of each key of TRL's that is not a setting here.
//!
//! Its keys are those of TRL 1.16, transformers 5.24 and accelerate 1.15 (tests/fixtures/trl_keys.json), with
//! those of earlier releases that public recipes still have.

/// What becomes of a key with one of a group's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It says what happens anyway: nothing is said.
    Same,
    /// The result stays what it is: accepted, and told in one line for the whole group.
    Notice(&'static str),
    /// It is this flag of ours.
    Becomes(&'static str),
}

/// Keys that share a fate.
pub struct Group {
    /// What they are about, for docs/trl.md.
    #[cfg_attr(not(test), allow(dead_code))]
    pub about: &'static str,
    /// What becomes of them.
    pub fate: Fate,
    /// The values that the fate is for; empty: any.
    pub values: &'static [&'static str],
    /// Their names; one that ends in `*` is a beginning.
    pub keys: &'static [&'static str],
    /// The commands that this is about; empty: every one.
    pub commands: &'static [&'static str],
}

const NO_EFFECT: Fate = Fate::Notice("no effect here");

const fn any(about: &'static str, fate: Fate, keys: &'static [&'static str]) -> Group {
    Group { about, fate, values: &[], keys, commands: &[] }
}

const fn of(
    about: &'static str,
    fate: Fate,
    values: &'static [&'static str],
    keys: &'static [&'static str],
) -> Group {
    Group { about, fate, values, keys, commands: &[] }
}

const SAMPLING: &[&str] = &["grpo", "rloo", "online-dpo", "ppo"];

/// The groups, the first that has a key with a value wins.
#[rustfmt::skip]
pub const GROUPS: &[Group] = &[
    // Settings of ours under another name.
    of("The order of rows", Fate::Becomes("--shuffle=true"), &["random"], &["train_sampling_strategy"]),
    of("The order of rows", Fate::Becomes("--shuffle=false"), &["sequential"], &["train_sampling_strategy"]),
    Group {
        about: "The order of rows", fate: Fate::Becomes("--shuffle=true"), values: &["true"],
        keys: &["shuffle_dataset"], commands: SAMPLING,
    },
    Group {
        about: "The order of rows", fate: Fate::Becomes("--shuffle=false"), values: &["false"],
        keys: &["shuffle_dataset"], commands: SAMPLING,
    },
    of("The device", Fate::Becomes("--device=cpu"), &["true"], &["use_cpu", "no_cuda", "cpu"]),
    of("The element type", Fate::Becomes("--bf16=true"), &["bf16"], &["mixed_precision"]),
    of("The element type", Fate::Becomes("--fp16=true"), &["fp16"], &["mixed_precision"]),
    of("The element type", Fate::Same, &["no"], &["mixed_precision"]),
    // What happens anyway.
    of("Off, as here", Fate::Same, &["false"], &[
        "assistant_only_loss", "cast_lm_head_to_fp32", "cpu", "dataloader_drop_last",
        "eval_packing", "force_use_ref_model", "group_by_length", "ignore_data_skip", "load_in_4bit",
        "load_in_8bit", "mask_truncated_completions", "no_cuda", "packing", "precompute_ref_log_probs", "push_to_hub",
        "sync_ref_model", "train_on_inputs", "use_adaptive_entropy", "use_cpu",
        "use_dora", "use_deepspeed", "use_fsdp", "use_megatron_lm", "multi_gpu",
        "is_encoder_decoder", "generate_during_eval",
    ]),
    of("Off, as here", Fate::Same, &["0", "0.0"], &["entropy_coef", "label_smoothing_factor", "min_p", "neftune_noise_alpha", "sft_weight", "top_k"]),
    of("Off, as here", Fate::Same, &["1", "1.0"], &["repetition_penalty", "top_entropy_quantile", "top_p"]),
    of("Off, as here", Fate::Same, &["no", "none", "false"], &["fsdp"]),
    of("On, as here", Fate::Same, &["true"], &["full_determinism"]),
    of("TRL's default, as here", Fate::Same, &["adamw_torch", "adamw"], &["optim"]),
    of("Ways to compute AdamW", Fate::Notice("the optimiser is AdamW in float32"), &[
        "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision",
        "adamw_torch_4bit", "adamw_torch_8bit", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw", "paged_adamw_32bit", "paged_adamw_8bit",
    ], &["optim"]),
    Group {
        about: "Packing", values: &["true"], keys: &["packing", "eval_packing"], commands: &["sft"],
        fate: Fate::Notice("a step has per_device_train_batch_size rows, one behind the other without padding; TRL packs as many as fit max_length"),
    },
    of("TRL's default, as here", Fate::Same, &["token"], &["importance_sampling_level"]),
    of("TRL's default, as here", Fate::Same, &["text"], &["dataset_text_field"]),
    Group { about: "TRL's default, as here", fate: Fate::Same, values: &["nll"], keys: &["loss_type"], commands: &["sft"] },
    Group { about: "TRL's default, as here", fate: Fate::Same, values: &["kto"], keys: &["loss_type"], commands: &["kto"] },
    // What cannot change the result.
    any("Speed, memory and machines", NO_EFFECT, &[
        "accelerator_config", "activation_checkpointing", "activation_checkpointing_kwargs", "activation_offloading", "attn_implementation",
        "auto_find_batch_size", "average_tokens_across_devices", "bf16_full_eval", "cache_implementation",
        "dataloader_in_order", "dataloader_multiprocessing_context", "dataloader_num_workers", "dataloader_persistent_workers",
        "dataloader_pin_memory", "dataloader_prefetch_factor", "dataset_batch_size", "dataset_num_proc", "dataset_streaming", "streaming",
        "ds3_gather_for_generation", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object",
        "fp16_full_eval", "fp16_backend", "fp16_opt_level", "gradient_checkpointing_kwargs", "half_precision_backend", "jit_mode_eval",
        "ignore_bias_buffers", "liger_kernel_config", "local_rollout_forward_batch_size", "low_cpu_mem_usage",
        "pad_to_multiple_of", "precompute_ref_batch_size", "preprocessing_num_workers", "ref_adapter_name", "model_adapter_name",
        "torch_compile", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps", "torchdynamo",
        "use_cache", "use_flash_attention_2", "use_ipex", "use_liger", "use_liger_kernel", "use_liger_loss", "use_logits_to_keep", "use_mps_device", "use_num_logits_to_keep",
        "tf32", "use_reentrant",
        "use_transformers_continuous_batching", "transformers_continuous_batching_config", "use_transformers_paged",
    ]),
    any("Logs and names", NO_EFFECT, &[
        "batch_eval_metrics", "debug", "disable_tqdm", "do_eval", "do_predict", "do_train", "exp_name", "include_for_metrics",
        "include_inputs_for_metrics", "include_num_input_tokens_seen", "include_tokens_per_second", "label_names", "length_column_name",
        "log_completions", "log_completions_hub_repo", "log_level", "log_level_replica", "log_multimodal", "log_on_each_node",
        "log_unique_prompts", "logging_dir", "logging_nan_inf_filter", "num_completions_to_print", "num_sample_generations",
        "prediction_loss_only", "project", "log_with", "ray_scope", "run_name", "skip_memory_metrics", "trackio_bucket_id", "trackio_space_id",
        "trackio_static_space_id", "wandb_project", "wandb_entity", "wandb_run_group", "trainer_type",
    ]),
    any("Files", NO_EFFECT, &[
        "enable_jit_checkpoint", "model_revision", "reward_model_revision", "restore_callback_states_from_checkpoint", "save_on_each_node",
        "save_safetensors", "trust_remote_code", "remove_unused_columns", "use_auth_token",
    ]),
    any("Padding, of which there is none", NO_EFFECT, &["label_pad_token_id", "padding_free", "pad_token", "padding_value", "padding_side"]),
    any("Mixtures of experts, several rewards, words for what is off", NO_EFFECT, &[
        "bnb_4bit_quant_storage", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "use_bnb_nested_quant",
        "entropy_coef_delta", "entropy_coef_max", "entropy_coef_min", "entropy_target",
        "lora_task_type",
        "multi_objective_aggregation", "packing_strategy", "router_aux_loss_coef", "sapo_temperature_neg", "sapo_temperature_pos",
        "vespo_k_neg", "vespo_k_pos", "vespo_lambda_neg", "vespo_lambda_pos",
    ]),
    Group {
        about: "The reference that follows the policy, which these commands have off", fate: NO_EFFECT, values: &[],
        keys: &["ref_model_mixup_alpha", "ref_model_sync_steps"],
        commands: &["sft", "kto", "reward", "grpo", "rloo", "online-dpo", "ppo", "spin"],
    },
    of("Shuffling before an epoch's own order", NO_EFFECT, &["true", "false"], &["shuffle_dataset"]),
    of("A set of random numbers", NO_EFFECT, &["false"], &["full_determinism"]),
    any("Trackers", Fate::Notice("metrics go to the terminal and to metrics.jsonl"), &["report_to"]),
    of("The hub", Fate::Notice("nothing is pushed to a hub: the model is in the output folder"), &["true"], &["push_to_hub"]),
    any("The hub", NO_EFFECT, &[
        "hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_token",
        "hub_model_revision", "benchmarks", "overwrite_hub_revision", "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token", "push_to_hub_revision",
    ]),
    of("The hub", NO_EFFECT, &["push_to_hub_revision"], &["callbacks"]),
    of("Sampling by another engine", Fate::Notice("completions are sampled by the policy itself"), &["true", "false"], &["use_vllm"]),
    any("Sampling by another engine", NO_EFFECT, &[
        "vllm_enable_sleep_mode", "vllm_gpu_memory_utilization", "vllm_group_port", "vllm_importance_sampling_cap",
        "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min", "vllm_importance_sampling_correction",
        "vllm_importance_sampling_mode", "vllm_max_model_len", "vllm_max_model_length", "vllm_mode", "vllm_model_impl",
        "vllm_device", "vllm_dtype",
        "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_tensor_parallel_size",
    ]),
    any("Launchers", Fate::Notice("one process trains on one device"), &[
        "accelerate_config", "config_file", "ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters",
        "ddp_static_graph", "ddp_timeout", "deepspeed", "downcast_bf16", "enable_cpu_affinity", "env", "fsdp", "gpu_ids", "local_rank",
        "log_dir", "machine_rank", "main_process_ip", "main_process_port", "main_training_function", "max_restarts", "module",
        "monitor_interval", "mpirun_hostfile", "multi_gpu", "no_python", "no_tpu_cluster", "num_cpu_threads_per_process",
        "num_machines", "num_processes", "offload_optimizer_device", "offload_optimizer_nvme_path", "offload_param_device",
        "offload_param_nvme_path", "parallelism_config", "quiet", "rdzv_backend", "rdzv_conf", "role", "same_network", "tee", "tpu",
        "tpu_cluster", "tpu_use_sudo", "use_deepspeed", "use_fsdp", "use_megatron_lm", "use_parallelism_config", "vm", "zero_stage",
        "zero3_init_flag", "zero3_save_16bit_model", "aws_access_key_id", "aws_secret_access_key", "deepspeed_*", "dynamo_*", "fp8_*",
        "fsdp_*", "megatron_lm_*", "parallelism_config_*",
    ]),
];

/// What to do in the place of a key whose value is refused.
#[rustfmt::skip]
pub const REMEDIES: &[(&str, &[&str])] = &[
    ("adapters are LoRA, with use_rslora where it is wanted: leave it out", &["use_dora"]),
    ("adapters are on linear modules: leave it out", &["lora_target_parameters"]),
    ("weights are not quantised: leave it out", &["load_in_4bit", "load_in_8bit"]),
    ("AdamW is the optimiser: leave it out", &["optim", "optim_args", "optim_target_modules"]),
    ("one seed draws everything: set seed", &["data_seed"]),
    ("set max_grad_norm", &["gradient_clipping"]),
    ("the last batch of an epoch is kept: leave it out", &["dataloader_drop_last"]),
    ("a resumed run goes on in its data: leave it out", &["ignore_data_skip"]),
    ("leave it out, or compute everything in float32 with dtype: float32", &["cast_lm_head_to_fp32"]),
    ("rows come in random order or in the file's: leave it out, or shuffle: false", &["group_by_length", "train_sampling_strategy", "shuffle_dataset"]),
    ("smoothing is that of the loss: label_smoothing", &["label_smoothing_factor"]),
    ("embeddings get no noise: leave it out", &["neftune_noise_alpha"]),
    ("bf16, fp16 or no", &["mixed_precision"]),
    ("sequences lie one behind the other without packing: leave it out", &["packing", "eval_packing", "dataset_kwargs"]),
    ("texts are learnt by sft alone: leave it out", &["dataset_text_field"]),
    ("put it into the rows, as a message of the system, or into the chat template", &["system_prompt"]),
    ("name the column with columns: prompt=NAME", &["dataset_prompt_column"]),
    ("there are no callbacks: leave it out", &["callbacks"]),
    ("a program of rewards has its own settings: leave it out", &["code_language", "max_completion_len", "soft_punish_cache", "code_eval_test_batch_size"]),
    ("use completion_only_loss: false", &["train_on_inputs"]),
    ("edit the chat template itself", &["chat_template_kwargs", "chat_template_name"]),
    ("name a file or folder with dataset_name", &["dataset_configs", "dataset_id_or_path"]),
    ("give a tokenizer with the model's folder", &["tokenizer_name_or_path", "tokenizer_name"]),
    ("the reference is the initial model: leave it out, or train from it", &[
        "sft_model_path", "ref_model_init_kwargs", "force_use_ref_model", "ref_model_revision",
    ]),
    ("set dtype on its own; what else changes the model is not there", &["model_init_kwargs", "reward_model_init_kwargs"]),
    ("the reference follows the policy in dpo alone: leave it out", &["sync_ref_model"]),
    ("the reference is scored as it is needed: leave it out", &["precompute_ref_log_probs"]),
    ("add a weight to a loss list: loss_type: [sigmoid, sft], loss_weights: [1.0, 0.2]", &["rpo_alpha", "sft_weight"]),
    ("use loss_type of this command's own, or another command", &["loss_type"]),
    ("a sampled token is drawn from the whole distribution, as the gradient assumes: leave it out", &[
        "generation_kwargs", "min_p", "repetition_penalty", "top_k", "top_p", "vllm_structured_outputs_regex", "vllm_guided_decoding_regex",
    ]),
    ("a batch is sampled for each step: leave it out and set gradient_accumulation_steps", &["generation_batch_size", "steps_per_generation"]),
    ("held-out prompts get num_generations completions too: leave it out", &["num_generations_eval"]),
    ("clip with epsilon on both sides: leave it out", &["delta", "epsilon_high"]),
    ("tokens have their own ratios: leave it out", &["importance_sampling_level", "off_policy_mask_threshold"]),
    ("there is no entropy term: leave it out", &["entropy_coef", "top_entropy_quantile", "use_adaptive_entropy"]),
    ("completions that did not end count: leave it out, or see missing_eos_penalty", &["mask_truncated_completions"]),
    ("score with reward_command, a program that reads prompts and completions, or reward_model_path", &["reward_funcs", "judge_name"]),
    ("one source gives the reward, which may weigh in itself: leave it out", &["reward_weights", "reward_clip_range"]),
    ("completions call no tools: leave it out", &["max_tool_calling_iterations", "tools", "environment"]),
    ("models decode alone: give a causal language model", &["is_encoder_decoder"]),
    ("use collimate generate behind the run", &["generate_during_eval"]),
    ("use collimate sft's assistant_only_loss", &["assistant_only_loss"]),
    ("prompts are cut with their completions: set max_length", &["max_prompt_length"]),
    ("set max_length", &["max_completion_length", "max_target_length"]),
];

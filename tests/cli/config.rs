//! Flags, YAML, help.

use std::fs;

use super::{Fixture, collimate};

#[test]
fn a_file_says_what_flags_say() {
    let fixture = Fixture::new();
    let psi = fixture.write("psi", "0 -3\n0.5 0\n1 3\n");
    let flags = format!(
        "--loss-type psi_po,sft --loss-weights 1,0.25 --psi {psi} --beta 0.2 --warmup-ratio 0.5 \
         --weight-decay 0.1 --lr-scheduler-type cosine --share-prompts false --adam-beta2 0.99 \
         --max-grad-norm 0.5 --gradient-accumulation-steps 2 --save-steps 2 --max-length 60"
    );
    fixture.train("dpo", "flags", &flags);
    let yaml = format!(
        "loss_type: [psi_po, sft]\nloss_weights: [1, 0.25]\npsi: {psi}\nbeta: 0.2\n\
         warmup_ratio: 0.5\nweight_decay: 0.1\nlr_scheduler_type: cosine\nshare-prompts: false\n\
         adam_beta2: 0.99\nmax_grad_norm: 5e-1\ngradient_accumulation_steps: 2\nsave_steps: 2\n\
         max_length: 60\nmodel_name_or_path: {}\ndataset_name: {}\nmax_steps: 3\n\
         learning_rate: 1.0e-2\nper_device_train_batch_size: 4\nlogging_steps: 1\n\
         eval_dataset: null\n",
        fixture.at("model"),
        fixture.at("pairs.jsonl"),
    );
    let path = fixture.write("config.yaml", yaml);
    let run = collimate(&format!("dpo --config {path} --output-dir {}", fixture.at("yaml")));
    assert!(run.ok(), "{run:?}");
    let same = |a: &str, b: &str| {
        super::assert_same(&fixture.path(a), &fixture.path(b), |name| name == "config.yaml");
    };
    same("flags", "yaml");
    // Underscores, aliases, `=`, Python's words.
    let mut odd = flags.replace("--save-steps 2", "--save_steps=2").replace("--max-l", "--max_l");
    odd = odd.replace("prompts false", "prompts=False").replace("--adam-beta2", "--adam_beta2");
    fixture.train("dpo", "odd", &odd);
    same("flags", "odd");
    // What is written reproduces the run.
    for out in ["flags", "yaml"] {
        let (config, again) = (format!("{}/config.yaml", fixture.at(out)), format!("{out}-again"));
        let run = collimate(&format!("dpo --config {config} --output-dir {}", fixture.at(&again)));
        assert!(run.ok(), "{run:?}");
        same("flags", &again);
        assert_eq!(
            fs::read_to_string(&config).unwrap().replace(&fixture.at(out), ""),
            fs::read_to_string(fixture.path(&again).join("config.yaml"))
                .unwrap()
                .replace(&fixture.at(&again), "")
        );
    }
    // Flags come first, wherever they stand.
    for (i, flags) in [
        format!("--beta 0.3 --loss-weights 1,0.5 --config {path}"),
        format!("--config={path} --beta 0.3 --loss_weights=1,0.5"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("over-{i}");
        let run = collimate(&format!("dpo --output-dir {} {flags}", fixture.at(&out)));
        assert!(run.ok(), "{run:?}");
        let config = fs::read_to_string(fixture.path(&out).join("config.yaml")).unwrap();
        assert!(config.contains("beta: 0.3\n") && config.contains("loss_weights: 1,0.5\n"));
        assert_ne!(fixture.weights(&out), fixture.weights("flags"));
    }
}

#[test]
fn a_folder_may_be_called_007() {
    let fixture = Fixture::new();
    fixture.train("sft", "007", "");
    let rename = fixture.path("1e3");
    fs::rename(fixture.path("model"), &rename).unwrap();
    let words = format!("sft --config 007/config.yaml --model 1e3 --output-dir {}", "0x10");
    let run = super::finish(
        std::process::Command::new(env!("CARGO_BIN_EXE_collimate"))
            .args(words.split(' '))
            .current_dir(fixture.dir.path()),
    );
    assert!(run.ok(), "{run:?}");
    let config = fs::read_to_string(fixture.path("0x10").join("config.yaml")).unwrap();
    let run = super::finish(
        std::process::Command::new(env!("CARGO_BIN_EXE_collimate"))
            .args(["sft", "--config", "0x10/config.yaml", "--output-dir", "true"])
            .current_dir(fixture.dir.path()),
    );
    assert!(run.ok(), "{config} {run:?}");
    assert_eq!(fixture.weights("007"), fixture.weights("true"));
}

#[test]
fn wrong_files_are_named() {
    let fixture = Fixture::new();
    let base = format!(
        "model_name_or_path: {}\ndataset_name: {}\n",
        fixture.at("model"),
        fixture.at("pairs.jsonl")
    );
    for (yaml, says) in [
        ("learning_rte: 1", "field `learning_rte`: unknown; did you mean `learning_rate`?"),
        ("zzz: 1", "field `zzz`: unknown"),
        ("beta: -1", "--beta: expected a finite number above 0"),
        ("beta: many", "field `beta`: invalid value"),
        ("beta: {a: 1}", "field `beta`: invalid value '{\"a\":1}'"),
        ("seed: 1.5", "field `seed`"),
        ("config: other.yaml", "a file cannot name another"),
        ("3: 4", "expected a name"),
        ("beta: 1\nbeta: 2", "duplicate"),
        ("[1, 2]", "invalid type"),
        ("beta: [", "config.yaml"),
        ("use_dora: true", "field `use_dora`: true (adapters are LoRA"),
        ("packing: true", "field `packing`: true (sequences lie one behind the other"),
        ("load_in_4bit: true", "load_in_4bit"),
        ("optim: sgd", "field `optim`: sgd (AdamW is the optimiser"),
        ("rpo_alpha: 1.0", "field `rpo_alpha`: 1.0 (add a weight to a loss list"),
        ("ld_alpha: -0.5", "--ld-alpha: expected a number from 0 to 1"),
        ("model_init_kwargs: {num_hidden_layers: 2}", "field `model_init_kwargs`"),
        ("allow_commands: true", "field `allow_commands`: expected on the command line alone"),
    ] {
        let text = if yaml.starts_with('[') { yaml.into() } else { format!("{base}{yaml}\n") };
        let path = fixture.write("config.yaml", text);
        collimate(&format!("dpo --config {path} --output-dir {}", fixture.at("out")))
            .fails(&[says]);
    }
    fixture.write("config.yaml", b"beta: \xff\n");
    let path = fixture.at("config.yaml");
    collimate(&format!("dpo --config {path}")).fails(&["config.yaml", "UTF-8"]);
    collimate("dpo --config /dev/zero").fails(&["/dev/zero"]);
    collimate("dpo --config /no/such.yaml").fails(&["/no/such.yaml"]);
    // A chain of references that doubles at every link.
    let mut bomb = "a0: &a0 [x, x]\n".to_string();
    for i in 1..40 {
        bomb += &format!("a{i}: &a{i} [*a{0}, *a{0}]\n", i - 1);
    }
    let path = fixture.write("config.yaml", bomb);
    super::collimate_within(2_000_000, &format!("dpo --config {path}")).fails(&["config.yaml"]);
}

#[test]
fn what_trl_knows() {
    let fixture = Fixture::new();
    let yaml = "report_to: [wandb, none]\nattn_implementation: flash_attention_2\nbf16: true\n\
        gradient_checkpointing_kwargs: {use_reentrant: false}\npacking: false\noptim: adamw_bnb_8bit\n\
        dataset_num_proc: 4\nlora_r: 16\nuse_peft: False\nmax_prompt_length: null\nfsdp: ''\n\
        deepspeed: {stage: 3}\nnum_processes: 8\npush_to_hub: true\nno_remove_unused_columns: true\n\
        model_init_kwargs: {use_cache: false}\n";
    let path = fixture.write("config.yaml", yaml);
    fixture.train("dpo", "plain", "");
    for (out, more, notices) in [
        (
            "yaml",
            format!("--config {path}"),
            &[
                "no effect here: attn_implementation, gradient_checkpointing_kwargs, \
                 dataset_num_proc, remove_unused_columns, model_init_kwargs",
                "no effect without use_peft: lora_r",
                "metrics go to the terminal and to metrics.jsonl: report_to",
                "one process trains on one device: deepspeed, num_processes",
                "nothing is pushed to a hub: the model is in the output folder: push_to_hub",
                "the optimiser is AdamW in float32: optim",
                "weights are widened to float32: the CPU computes in nothing else",
            ][..],
        ),
        (
            "flags",
            "--report_to none --bf16 False --use-cpu --log_level=info --use_peft false \
             --lora_target_modules q_proj v_proj --no_bf16_full_eval"
                .into(),
            &[
                "no effect here: log_level, bf16_full_eval",
                "no effect without use_peft: lora_target_modules",
            ],
        ),
        (
            "narrow",
            "--dtype bf16 --fp16".into(),
            &["weights are widened to float32: the CPU computes in nothing else"],
        ),
    ] {
        let run = fixture.run("dpo", out, &more);
        assert!(run.ok(), "{run:?}");
        for notice in notices {
            assert_eq!(run.err.matches(&format!("note: {notice}\n")).count(), 1, "{run:?}");
        }
        let idle = 2 * usize::from(out != "narrow");
        assert_eq!(run.err.matches("no effect").count(), idle, "{run:?}");
        assert_eq!(fixture.weights("plain"), fixture.weights(out));
    }
    let run = fixture.run("dpo", "out", "--use-dora --packing=True --load_in_4bit true --seed 3");
    run.fails(&[
        "not supported: --use-dora: true (",
        "--packing: True (",
        "--load-in-4bit: true (",
    ]);
    assert!(!fixture.path("out").exists());
}

/// A file from elsewhere cannot name a program.
#[test]
fn a_file_names_a_program_only_where_it_may() {
    let fixture = Fixture::new();
    // The reward is the length of what it is asked.
    let reward = "reward_command: 'while read -r asked; do echo ${#asked}; done'\nresponse_length: 8\nnum_generations: 2\n";
    let path = fixture.write("config.yaml", reward);
    let run = fixture.run("rloo", "out", &format!("--config {path}"));
    run.fails(&["config.yaml: field `reward_command`", "only with --allow-commands"]);
    let more = format!("--config {path} --allow-commands --gradient-accumulation-steps 1");
    fixture.train("rloo", "out", &more);
    // What the run wrote says what it takes to run it again.
    let config = fs::read_to_string(fixture.path("out/config.yaml")).unwrap();
    assert!(config.starts_with("# collimate rloo --config config.yaml --allow-commands\n"));
    assert!(!config.contains("allow_commands:"), "{config}");
}

#[test]
fn help_states_every_default() {
    let version = collimate("--version");
    assert!(version.ok() && version.out.starts_with("collimate "), "{version:?}");
    let all = collimate("--help");
    assert!(all.ok());
    for (command, rate, epochs) in
        [("sft", "2e-5", "3"), ("dpo", "1e-6", "3"), ("kto", "1e-6", "3"), ("generate", "", "")]
    {
        assert!(all.out.contains(&format!("  {command} ")), "{}", all.out);
        let help = collimate(&format!("{command} --help"));
        assert!(help.ok() && help.err.is_empty());
        let mut options = help.out.split("\n      --").skip(1);
        let state = |option: &str| option.contains("[default: ");
        let needs_none = [
            "model-name-or-path",
            "config",
            "dataset-name",
            "eval-dataset",
            "resume-from-checkpoint",
            "prompt ",
            "prompts",
            "output ",
        ];
        assert!(options.clone().count() > 10);
        let silent = options.find(|option| {
            !state(option) && !needs_none.iter().any(|name| option.starts_with(name))
        });
        assert_eq!(silent, None, "{command}");
        if !rate.is_empty() {
            let default = format!("[default: {rate}; of a model less than 1024 wide {rate} x");
            assert!(help.out.contains(&default), "{}", help.out);
            let (_, after) = help.out.split_once("--num-train-epochs").unwrap();
            let default = after.split("[default: ").nth(1).unwrap();
            assert!(default.starts_with(&format!("{epochs}]")), "{default}");
        }
    }
    let none = collimate("");
    assert_eq!(none.code, Some(2));
    assert!(none.err.contains("Usage"));
}

/// What the recipes of other projects have beside TRL's keys, and keys that become flags of ours.
#[test]
fn recipes_of_other_projects() {
    let fixture = Fixture::new();
    let yaml = "use_flash_attention_2: true\nuse_liger: true\nhub_model_revision: v01.00\n\
        benchmarks: [maths, code]\ncallbacks:\n- push_to_hub_revision\nlog_with: wandb\n\
        loss_type: simpo\nbeta: 2.0\ngamma_beta_ratio: 0.5\n";
    let path = fixture.write("recipe.yaml", yaml);
    fixture.train("dpo", "ratio", &format!("--config {path}"));
    fixture.train("dpo", "margin", "--loss-type simpo --beta 2 --simpo-gamma 1");
    assert_eq!(fixture.weights("ratio"), fixture.weights("margin"));
    fixture.train("dpo", "half", "--loss-type simpo --beta 2 --simpo-gamma 0.5");
    assert_ne!(fixture.weights("half"), fixture.weights("margin"));
    let both = "--loss-type simpo --gamma-beta-ratio 0.5 --simpo-gamma 1";
    fixture.run("dpo", "out", both).fails(&["cannot be used with"]);
    for (yaml, says) in [
        ("callbacks: [mine]", "field `callbacks`: mine (there are no callbacks"),
        ("system_prompt: Be kind.", "field `system_prompt`: Be kind. (put it into the rows"),
        ("dataset_prompt_column: problem", "name the column with columns: prompt=NAME"),
    ] {
        let path = fixture.write("recipe.yaml", format!("{yaml}\n"));
        fixture.run("grpo", "out", &format!("--config {path}")).fails(&[says]);
    }
}

#[test]
fn a_column_of_texts_by_its_name() {
    let fixture = Fixture::new();
    let rows = |field: &str, other: &str| -> Vec<serde_json::Value> {
        let texts = (0..24).map(|i| format!("The sea {i} is wide and calm."));
        texts.map(|text| serde_json::json!({ field: text, other: "unread" })).collect()
    };
    let named = fixture.rows("named.jsonl", &rows("content", "source"));
    let plain = fixture.rows("plain.jsonl", &rows("text", "source"));
    fixture.train("sft", "plain", &format!("--dataset {plain}"));
    let field = "--dataset-text-field content";
    fixture.train("sft", "named", &format!("--dataset {named} {field}"));
    assert_eq!(fixture.weights("plain"), fixture.weights("named"));
    // It stands before a column that is called text.
    let both = fixture.rows("both.jsonl", &rows("content", "text"));
    fixture.train("sft", "both", &format!("--dataset {both} {field}"));
    assert_eq!(fixture.weights("plain"), fixture.weights("both"));
    // Rows with a prompt and an answer are not texts.
    fixture.train("sft", "pairs", "");
    fixture.train("sft", "pairs-too", field);
    assert_eq!(fixture.weights("pairs"), fixture.weights("pairs-too"));
    let missing = format!("--dataset {named} --dataset-text-field contents");
    fixture.run("sft", "out", &missing).fails(&["named.jsonl:1", "got content, source"]);
}

#[test]
fn a_reward_function_that_is_a_models_folder() {
    let fixture = Fixture::new();
    fixture.train("reward", "scorer", "");
    let scorer = fixture.at("scorer");
    let few = "--response-length 8 --gradient-accumulation-steps 1";
    let ours = format!("{few} --reward-model-path {scorer} --num-generations 4");
    fixture.train("rloo", "ours", &ours);
    fixture.train("rloo", "theirs", &format!("{few} --reward-funcs {scorer} --rloo-k 4"));
    assert_eq!(fixture.weights("ours"), fixture.weights("theirs"));
    let path = fixture.write("recipe.yaml", format!("reward_funcs:\n- {scorer}\n"));
    fixture.train("rloo", "file", &format!("{few} --config {path} --num-generations 4"));
    assert_eq!(fixture.weights("ours"), fixture.weights("file"));
    let run = fixture.run("grpo", "out", "--reward-funcs accuracy_reward");
    run.fails(&["--reward-funcs: accuracy_reward (score with reward_command"]);
}

#[test]
fn the_end_token_is_the_models_own() {
    let fixture = Fixture::new();
    fixture.train("sft", "plain", "");
    fixture.train("sft", "own", "--eos-token </s>");
    assert_eq!(fixture.weights("plain"), fixture.weights("own"));
    let run = fixture.run("reward", "out", "--eos-token <|im_end|>");
    run.fails(&["eos_token: expected the end token of the model's folder, </s>", "<|im_end|>"]);
}

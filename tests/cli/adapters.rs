//! Low-rank adapters: trained by every method, saved, gone on from, merged, read as models.

use std::fs;
use std::path::Path;

use collimate::models::{ModelFolder, TensorFile};
use collimate::nn::Decoder;
use collimate::{Device, Tensor};
use serde_json::{Value, json};

use super::{Fixture, assert_same, collimate};

const LORA: &str = "--use-peft --lora-r 4 --lora-target-modules all-linear";

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn every_method_trains_adapters_and_saves_them_alone() {
    let fixture = Fixture::new();
    fixture.train("reward", "rm", "--max-steps 6");
    let rollouts = format!(
        "--reward-model-path {} --response-length 6 --max-steps 2 --per-device-train-batch-size 2 \
         --gradient-accumulation-steps 4",
        fixture.at("rm")
    );
    let base = fs::read(fixture.path("model").join("model.safetensors")).unwrap();
    for (method, more) in [
        ("sft", ""),
        ("dpo", ""),
        ("kto", ""),
        ("reward", "--lora_task_type SEQ_CLS"),
        ("ppo", &*rollouts),
        ("rloo", &*rollouts),
        ("grpo", &format!("{rollouts} --beta 0.1")),
        ("online-dpo", &*rollouts),
        ("spin", "--max-new-tokens 4 --num-iterations 2"),
    ] {
        let out = format!("lora-{method}");
        let run = fixture.run(method, &out, &format!("{LORA} {more}"));
        assert!(run.ok() || run.error().contains("nothing was learnt"), "{method}: {run:?}");
        assert!(run.err.contains("parameters are trained"), "{method}: {run:?}");
        let dir = fixture.path(&out);
        assert!(!dir.join("model.safetensors").exists() && !dir.join("config.json").exists());
        let config = config(&dir);
        let task = if method == "reward" { "SEQ_CLS" } else { "CAUSAL_LM" };
        assert_eq!((&config["task_type"], &config["r"]), (&json!(task), &json!(4)), "{method}");
        let file = TensorFile::open(dir.join("adapter_model.safetensors")).unwrap();
        let modules = 2 * 7 * 2 + usize::from(method == "reward");
        assert_eq!(file.tensors().len(), modules, "{method}");
        let prefix = "base_model.model.model.layers.";
        let own = |name: &str| name.starts_with(prefix) || name == "base_model.model.score.weight";
        assert!(file.tensors().iter().all(|t| own(&t.name)), "{method}");
        // Something was learnt: B starts at 0.
        let moved = file.tensors().iter().filter(|t| t.name.contains("lora_B")).any(|t| {
            let mut values = vec![0.0f32; t.values()];
            file.read(&t.name, &mut values).unwrap();
            values.iter().any(|&x| x != 0.0)
        });
        assert!(moved, "{method}");
    }
    assert_eq!(base, fs::read(fixture.path("model").join("model.safetensors")).unwrap());
}

/// Dropout, accumulation and checkpoints that fall apart.
#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let fixture = Fixture::new();
    let settings = format!(
        "{LORA} --lora-dropout 0.2 --max-steps 14 --per-device-train-batch-size 2 --save-steps 3 \
         --gradient-accumulation-steps 2 --logging-steps 2 --threads 1"
    );
    fixture.kill_and_go_on("sft", &settings, 5, 3, 1.0);
}

#[test]
fn dropout_is_the_same_on_any_number_of_threads_and_decides_the_result() {
    let fixture = Fixture::new();
    let adapters =
        |out: &str| fs::read(fixture.path(out).join("adapter_model.safetensors")).unwrap();
    for (out, more) in [
        ("one", "--threads 1 --lora-dropout 0.3"),
        ("four", "--threads 4 --lora-dropout 0.3"),
        ("recomputed", "--gradient-checkpointing --lora-dropout 0.3"),
        ("none", "--lora-dropout 0"),
        ("off", "--lora-dropout 0.3 --disable-dropout true"),
    ] {
        fixture.train("sft", out, &format!("{LORA} {more}"));
    }
    assert!(adapters("one") == adapters("four") && adapters("one") == adapters("recomputed"));
    assert!(adapters("one") != adapters("none") && adapters("off") == adapters("none"));
    // As in TRL dpo leaves nothing out unless it is told to.
    fixture.train("dpo", "dpo", &format!("{LORA} --lora-dropout 0.3"));
    fixture.train("dpo", "dpo-none", &format!("{LORA} --lora-dropout 0"));
    fixture.train("dpo", "dpo-some", &format!("{LORA} --lora-dropout 0.3 --disable-dropout=false"));
    assert!(adapters("dpo") == adapters("dpo-none") && adapters("dpo") != adapters("dpo-some"));
}

/// Logits of a text by the folder's model.
fn logps(dir: &Path) -> Vec<f64> {
    let folder = ModelFolder::open(dir).unwrap();
    let (decoder, table) = Decoder::new(folder.config.clone()).unwrap();
    let weights = folder.load_weights::<f32>(&table, &Device::Cpu).unwrap();
    let mut layout = collimate::nn::LayoutBuilder::new();
    layout.push(&[1], &[5, 17, 30, 44, 51, 2]);
    let batch = decoder.batch::<f32>(&Device::Cpu, layout.finish().unwrap()).unwrap();
    let (hidden, _) = decoder.forward(&weights, &batch, collimate::nn::Keep::Nothing).unwrap();
    let rows: Vec<i32> = (0..6).collect();
    let logits = collimate::nn::LmHead::logits_of(&decoder, &weights, &hidden, &rows);
    let logits: Tensor<f32> = logits.unwrap();
    logits.to_vec().unwrap().into_iter().map(f64::from).collect()
}

#[test]
fn a_folder_of_adapters_is_a_model_and_merges_into_one() {
    let fixture = Fixture::new();
    fixture.train("dpo", "out", &format!("{LORA} --merge"));
    let [base, out, merged] = ["model", "out", "out/merged"].map(|name| fixture.path(name));
    assert_eq!(logps(&out), logps(&merged));
    let (before, after) = (logps(&base), logps(&out));
    let moved = before.iter().zip(after).map(|(a, b)| (a - b).abs());
    assert!(moved.fold(0.0, f64::max) > 1e-3);
    let run = collimate(&format!(
        "merge --adapter {} --output-dir {}",
        fixture.at("out"),
        fixture.at("again")
    ));
    assert!(run.ok(), "{run:?}");
    assert_same(&merged, &fixture.path("again"), |_| false);
    let ask = |model: &str| {
        let words = format!(
            "generate --model {} --prompt rain --max-new-tokens 8 --temperature 0",
            fixture.at(model)
        );
        let run = collimate(&words);
        assert!(run.ok(), "{run:?}");
        run.out
    };
    assert_eq!(ask("out"), ask("out/merged"));
    // What is evaluated is the base with its adapters too.
    let eval = |model: &str| {
        let words = format!(
            "eval --model {} --dataset {} --json",
            fixture.at(model),
            fixture.at("pairs.jsonl")
        );
        let run = collimate(&words);
        assert!(run.ok(), "{run:?}");
        run.out.replace(&fixture.at(model), "MODEL")
    };
    assert_eq!(eval("out"), eval("out/merged"));
    // The folder may hold the adapters alone, and the base may have moved.
    for name in ["tokenizer.json", "config.yaml", "metrics.jsonl"] {
        fs::remove_file(out.join(name)).unwrap();
    }
    assert_eq!(ask("out"), ask("out/merged"));
    fs::rename(&base, fixture.path("moved")).unwrap();
    let words = format!("generate --model {} --prompt rain", fixture.at("out"));
    collimate(&words).fails(&[
        "adapter_config.json",
        "base_model_name_or_path",
        "no folder with a config.json",
    ]);
    let words = format!(
        "merge --adapter {} --model {} --output-dir {}",
        fixture.at("out"),
        fixture.at("moved"),
        fixture.at("third")
    );
    assert!(collimate(&words).ok());
    assert_eq!(logps(&fixture.path("third")), logps(&merged));
    // Adapters on adapters would leave the lower ones out.
    let words = format!(
        "merge --adapter {} --model {} --output-dir {}",
        fixture.at("out"),
        fixture.at("out"),
        fixture.at("fourth")
    );
    fs::rename(fixture.path("moved"), &base).unwrap();
    collimate(&words).fails(&["expected the base model of adapters, got adapters too"]);
}

#[test]
fn a_reward_model_of_adapters_gives_rewards() {
    let fixture = Fixture::new();
    fixture.train("reward", "rm", &format!("{LORA} --merge --max-steps 6"));
    let eval = |model: &str| {
        let words = format!(
            "eval --reward-model {} --dataset {} --json",
            fixture.at(model),
            fixture.at("pairs.jsonl")
        );
        let run = collimate(&words);
        assert!(run.ok(), "{run:?}");
        run.out.replace(&fixture.at(model), "MODEL")
    };
    assert_eq!(eval("rm"), eval("rm/merged"));
    let rollouts = "--response-length 6 --max-steps 1 --per-device-train-batch-size 4";
    for (out, model) in [("a", "rm"), ("b", "rm/merged")] {
        let more = format!("{rollouts} --reward-model-path {}", fixture.at(model));
        fixture.steps("rloo", out, &more);
    }
    let reward = |out: &str| fixture.metrics(out)[0]["objective/scores"].as_f64().unwrap();
    assert_eq!(reward("a"), reward("b"));
}

/// What is gone on from is the reference too, as in TRL; the model alone where that is asked for.
#[test]
fn adapters_go_on_from_adapters() {
    let fixture = Fixture::new();
    fixture.train("dpo", "first", LORA);
    let from = format!("--adapter {}", fixture.at("first"));
    let margin = |metrics: &[Value]| metrics[0]["rewards/margins"].as_f64().unwrap();
    assert_eq!(margin(&fixture.train("dpo", "second", &from)), 0.0);
    let base = format!("{from} --ref-adapter none");
    assert!(margin(&fixture.train("dpo", "base", &base)).abs() > 1e-3);
    let own = format!("{from} --ref-adapter {}", fixture.at("first"));
    assert_eq!(margin(&fixture.train("dpo", "own", &own)), 0.0);
    let other = format!("{from} --ref-adapter {}", fixture.at("second"));
    assert!(margin(&fixture.train("dpo", "other", &other)).abs() > 1e-3);
    // They have settings of their own.
    assert_eq!(config(&fixture.path("second"))["r"], json!(4));
    // New adapters on the merged model begin with log-ratios of 0.
    let words =
        format!("merge --adapter {} --output-dir {}", fixture.at("first"), fixture.at("merged"));
    assert!(collimate(&words).ok());
    let on_merged = format!("{LORA} --model {}", fixture.at("merged"));
    assert_eq!(margin(&fixture.train("dpo", "on-merged", &on_merged)), 0.0);
}

#[test]
fn settings_of_peft_are_honoured() {
    let fixture = Fixture::new();
    let shapes = |out: &str| -> Vec<(String, Vec<usize>)> {
        let file = TensorFile::open(fixture.path(out).join("adapter_model.safetensors")).unwrap();
        let short =
            |name: &str| name.trim_start_matches("base_model.model.model.layers.").to_string();
        file.tensors().iter().map(|t| (short(&t.name), t.shape.clone())).collect()
    };
    let a = |out: &str| -> Vec<(String, usize)> {
        let of = |(name, shape): (String, Vec<usize>)| {
            Some((name.strip_suffix(".lora_A.weight")?.to_string(), shape[0]))
        };
        let mut all: Vec<_> = shapes(out).into_iter().filter_map(of).collect();
        all.sort();
        all
    };
    let named = |name: &str, rank: usize| (name.to_string(), rank);
    fixture.train("sft", "usual", "--use_peft true");
    let usual =
        ["0.self_attn.q_proj", "0.self_attn.v_proj", "1.self_attn.q_proj", "1.self_attn.v_proj"];
    assert_eq!(a("usual"), usual.map(|name| named(name, 16)));
    let more = "--use_peft --lora_r 2 --lora_target_modules q_proj down_proj --lora_layers 1 \
                --lora_rank_pattern {\"down_proj\":3}";
    fixture.train("sft", "some", more);
    assert_eq!(a("some"), [named("1.mlp.down_proj", 3), named("1.self_attn.q_proj", 2)]);
    fixture.train("sft", "regex", r"--use_peft --lora_target_modules .*\.0\.mlp\.(gate|up)_proj");
    assert_eq!(a("regex"), [named("0.mlp.gate_proj", 16), named("0.mlp.up_proj", 16)]);
    // Twice the alpha and twice the rank under rsLoRA: another number to multiply by.
    let scaled = "--use_peft --lora_r 4 --lora_dropout 0";
    let metrics = |out: &str, more: &str| fixture.train("sft", out, &format!("{scaled} {more}"));
    let [plain, twice, root] = [
        ("plain", "--lora_alpha 8"),
        ("twice", "--lora_alpha 16"),
        ("root", "--lora_alpha 8 --use_rslora"),
    ]
    .map(|(out, more)| metrics(out, more).last().unwrap()["loss"].as_f64().unwrap());
    assert!(plain != twice && root != plain);
    assert!((twice - root).abs() < 1e-6, "8 / sqrt(4) is 16 / 4: {twice} {root}");
}

#[test]
fn what_cannot_be_is_said() {
    let fixture = Fixture::new();
    fixture.train("dpo", "out", LORA);
    let fails =
        |method: &str, more: &str, says: &[&str]| fixture.run(method, "no", more).fails(says);
    fails(
        "dpo",
        "--use-peft --lora-target-modules q_prj",
        &["lora_target_modules", "q_proj", "q_prj"],
    );
    fails("dpo", "--use-peft --lora-target-modules lm_head", &["lora_target_modules", "lm_head"]);
    fails(
        "dpo",
        "--use-peft --lora-target-modules (",
        &["lora_target_modules", "regular expression"],
    );
    fails("dpo", "--use-peft --lora-layers 7", &["lora_target_modules", "none that matches"]);
    fails("dpo", "--use-peft --lora-r 0", &["lora_r"]);
    fails("dpo", "--use-peft --lora-dropout 1", &["lora_dropout"]);
    fails(
        "dpo",
        "--use-peft --lora-modules-to-save lm_head",
        &["lora_modules_to_save", "tie_word_embeddings"],
    );
    fails("dpo", "--use-peft --lora-modules-to-save head", &["lora_modules_to_save"]);
    fails("dpo", "--use-peft --use_dora true", &["--use-dora", "LoRA"]);
    fails("dpo", "--merge", &["merge", "--use-peft"]);
    let out = fixture.at("out");
    fails("dpo", &format!("--ref-adapter {out}"), &["ref_adapter", "--use-peft"]);
    fails(
        "dpo",
        &format!("--model {out}"),
        &["expected a model, got adapters", "--adapter", "collimate merge"],
    );
    fails(
        "reward",
        &format!("--adapter {out}"),
        &["adapters of a reward model", "a language model"],
    );
    fails("dpo", &format!("--adapter {}", fixture.at("model")), &["adapter_config.json"]);
    // Of other shapes than those that are trained.
    fails("dpo", &format!("--use-peft --ref-adapter {out}"), &["adapter_model.safetensors"]);
    let path = fixture.path("out").join("adapter_config.json");
    let good = config(&fixture.path("out"));
    for (key, value, says) in [
        ("peft_type", json!("IA3"), "peft_type IA3"),
        ("use_dora", json!(true), "use_dora"),
        ("init_lora_weights", json!("pissa"), "pissa"),
        ("r", json!(3), "adapter_model.safetensors"),
        ("r", json!("x"), "`r`"),
        ("lora_dropout", json!(2), "`lora_dropout`"),
        ("target_modules", json!(["nothing"]), "nothing"),
        ("rank_pattern", json!({"q_proj": 0}), "`q_proj`"),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        fs::write(&path, bad.to_string()).unwrap();
        fails("dpo", &format!("--adapter {out}"), &[says]);
    }
}

#[test]
fn another_runs_adapters_do_not_go_on() {
    let fixture = Fixture::new();
    let settings = format!("{LORA} --save-steps 1");
    fixture.train("dpo", "out", &settings);
    let other = "--use-peft --lora-r 8 --lora-target-modules all-linear --max-steps 5 \
                 --resume-from-checkpoint auto";
    fixture.run("dpo", "out", other).fails(&["lora_r", "4", "8"]);
}

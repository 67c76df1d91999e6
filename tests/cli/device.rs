//! Training on a GPU, every kernel executed on the host.

use serde_json::{Value, json};

use super::{Fixture, Running, assert_same, collimate, pairs};

const CUDA: &str = "--device cuda --dtype f32";

/// Asserts that two runs logged the same numbers, but for the speed: each within `tolerance` of its
/// size, or of 1 where it is smaller. `skip` says which are not compared.
fn assert_near(
    got: &[Value],
    want: &[Value],
    tolerance: f64,
    what: &str,
    skip: impl Fn(&str) -> bool,
) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        for (name, want) in want.as_object().unwrap() {
            if name == "tokens_per_second" || skip(name) {
                continue;
            }
            let [got, want] = [&got[name], want].map(|value| value.as_f64().unwrap());
            let error = (got - want).abs() / want.abs().max(1.0);
            assert!(error <= tolerance, "{what}: {name}: {got}, expected {want}");
        }
    }
}

#[test]
fn every_method_is_the_cpus() {
    let fixture = Fixture::new();
    let all = format!("--learning-rate 1e-3 --eval-dataset {}", fixture.at("pairs.jsonl"));
    for (i, more) in [
        "sft --gradient-accumulation-steps 2",
        "kto",
        "kto --precompute-ref-log-probs",
        "dpo --gradient-accumulation-steps 2 --weight-decay 0.1 --max-grad-norm 0.1",
        "dpo --precompute-ref-log-probs --share-prompts false",
        "dpo --loss-type ipo,sft:0.2 --gradient-checkpointing false",
        "dpo --loss-type aot,discopop,kto_paired --f-divergence-type reverse_kl",
        "dpo --f-divergence-type js_divergence --batch-invariant",
        "dpo --loss-type simpo",
        "dpo --loss-type slic_hf --slic-target sampled --slic-max-new-tokens 9",
        "dpo --sync-ref-model --ref-model-sync-steps 1 --ref-model-mixup-alpha 0.5",
        "reward --center-rewards-coefficient 0.1 --gradient-accumulation-steps 2",
    ]
    .into_iter()
    .enumerate()
    {
        let (method, flags) = more.split_once(' ').unwrap_or((more, ""));
        let (cpu, cuda) = (format!("cpu-{i}"), format!("cuda-{i}"));
        let want = fixture.train(method, &cpu, &format!("{all} {flags}"));
        let got = fixture.train(method, &cuda, &format!("{all} {CUDA} {flags}"));
        assert_near(&got, &want, 1e-4, more, |_| false);
    }
}

#[test]
fn tables_margins_and_ranks_are_the_cpus() {
    let fixture = Fixture::new();
    let responses = [" is wide and calm", " who knows", " go away now"];
    let prompt = |i: usize| format!("Tell me {i}.");
    let probabilities = json!([[0.5, 0.9, 0.6], [0.1, 0.5, 0.3], [0.4, 0.7, 0.5]]);
    let tables: Vec<Value> = (0..6)
        .map(|i| json!({ "prompt": prompt(i), "responses": responses, "probabilities": probabilities }))
        .collect();
    let ranks: Vec<Value> = (0..6)
        .map(|i| json!({ "prompt": prompt(i), "responses": responses, "ranks": [0, 1, i % 2] }))
        .collect();
    let mut led = pairs(8);
    for (i, row) in led.iter_mut().enumerate() {
        row["weight"] = json!(0.5 + i as f64);
        row[if i % 2 == 0 { "margin" } else { "target_prob" }] = json!(0.7);
    }
    for (name, rows, method) in [
        ("tables", tables, "dpo --loss-type psi_po"),
        ("ranks", ranks, "reward --center-rewards-coefficient 0.2"),
        ("led", led, "reward"),
    ] {
        let data = fixture.rows(&format!("{name}.jsonl"), &rows);
        let (method, flags) = method.split_once(' ').unwrap_or((method, ""));
        let more = format!("{flags} --dataset {data} --learning-rate 1e-3");
        let want = fixture.train(method, &format!("{name}-cpu"), &more);
        let got = fixture.train(method, &format!("{name}-cuda"), &format!("{more} {CUDA}"));
        assert_near(&got, &want, 1e-4, name, |_| false);
    }
}

/// Rollouts, rewards and all passes: completions are the CPU's token by token.
#[test]
fn what_is_learnt_from_samples_is_the_cpus() {
    let fixture = Fixture::new();
    fixture.train("reward", "rm", "--max-steps 6");
    let model = format!("--reward-model-path {}", fixture.at("rm"));
    let shape = "--gradient-accumulation-steps 2 --response-length 8 --learning-rate 1e-3 \
                 --num-ppo-epochs 2 --num-mini-batches 2 --max-steps 2";
    let texts = format!("--pretrain-dataset {} --ptx-coef 0.5", fixture.at("pairs.jsonl"));
    for (i, (method, flags)) in [
        ("ppo", format!("{texts} --whiten-rewards --adaptive-kl --kl-target 0.01")),
        ("rloo", "--normalize-advantages --weight-decay 0.1".into()),
        // So long that some end by themselves: of the others nothing is learnt.
        (
            "grpo",
            "--beta 0.1 --use-bias-correction-kl false --loss-type dr_grpo --mask-truncated-completions --response-length 100"
                .into(),
        ),
        ("grpo", format!("--eval-dataset {}", fixture.at("pairs.jsonl"))),
        ("online-dpo", "--loss-type ipo".into()),
        ("ppo", "--skip-nonfinite --missing-eos-penalty 1".into()),
    ]
    .into_iter()
    .enumerate()
    {
        let all = format!("{shape} {model} {flags}");
        let want = fixture.train(method, &format!("cpu-{i}"), &all);
        let got = fixture.train(method, &format!("cuda-{i}"), &format!("{all} {CUDA}"));
        assert_near(&got, &want, 1e-4, &format!("{method} {flags}"), |_| false);
    }
}

#[test]
fn learning_from_samples_in_bf16() {
    let fixture = Fixture::new();
    let all = "--gradient-accumulation-steps 2 --response-length 8 --learning-rate 1e-3 \
               --reward brevity --num-ppo-epochs 1 --device cuda --max-steps 3 --save-steps 2";
    for method in ["ppo", "online-dpo"] {
        let [once, again] = ["once", "again"].map(|name| format!("{method}-{name}"));
        let metrics = fixture.train(method, &once, all);
        if method == "ppo" {
            let first = [&metrics[0]["val/ratio"], &metrics[0]["policy/approxkl_avg"]];
            assert_eq!(first.map(|x| x.as_f64().unwrap()), [1.0, 0.0], "of the first pass");
        }
        fixture.train(method, &again, all);
        std::fs::remove_file(fixture.path(&again).join("model.safetensors")).unwrap();
        fixture.train(method, &again, &format!("{all} --resume-from-checkpoint auto"));
        assert_same(&fixture.path(&once), &fixture.path(&again), |_| false);
    }
}

#[test]
fn a_reference_in_bf16_follows_in_float32() {
    let fixture = Fixture::new();
    // A share that bf16 would round away.
    let all = "--device cuda --sync-ref-model --ref-model-sync-steps 1 --learning-rate 1e-2 \
               --ref-model-mixup-alpha 1e-3 --max-steps 4 --save-steps 2";
    fixture.train("dpo", "once", all);
    let hard = all.replace("1e-3", "1");
    let metrics = fixture.train("dpo", "hard", &hard);
    // Every step begins where policy and reference agree.
    for line in &metrics {
        assert!((line["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-6, "{line}");
    }
    let reference = |out: &str| {
        let path = fixture.path(out).join("checkpoint-4/optimizer.safetensors");
        let file = collimate::models::TensorFile::open(path).unwrap();
        let info = file.info("reference").unwrap();
        let mut values = vec![0f32; info.shape[0]];
        file.read("reference", &mut values).unwrap();
        values
    };
    let (soft, hard) = (reference("once"), reference("hard"));
    let start: f32 = soft.iter().zip(&hard).map(|(a, b)| (a - b).abs()).sum();
    assert!(start > 0.0);
    let whole = soft.iter().filter(|x| x.to_bits() & 0xffff != 0).count();
    assert!(whole > soft.len() / 8, "{whole} of {} are no bf16", soft.len());
    // And a resumed run goes on from it.
    fixture.train("dpo", "again", all);
    std::fs::remove_dir_all(fixture.path("again").join("checkpoint-4")).unwrap();
    fixture.train("dpo", "again", &format!("{all} --resume-from-checkpoint auto"));
    assert_same(&fixture.path("once"), &fixture.path("again"), |_| false);
}

/// bf16 has 8 bits: a rounding is 0.4%, and a log-prob of some sixty nats is the sum of as many.
#[test]
fn bf16_is_near_and_keeps_what_the_file_had() {
    let fixture = Fixture::new();
    for method in ["sft", "dpo", "kto"] {
        let (cpu, cuda) = (format!("{method}-cpu"), format!("{method}-cuda"));
        let want = fixture.train(method, &cpu, "--learning-rate 1e-3");
        let got = fixture.train(method, &cuda, "--learning-rate 1e-3 --device cuda");
        // A single token or pair makes an accuracy jump.
        assert_near(&got, &want, 5e-2, method, |name| name.contains("accurac"));
        // The file is float32, so the masters are saved whole: most are no bf16.
        let bytes = fixture.weights(&cuda);
        assert_eq!(bytes.len(), fixture.weights(&cpu).len());
        let tail = &bytes[bytes.len() / 4 * 2..];
        let whole = tail.chunks_exact(4).filter(|x| x[0] != 0 || x[1] != 0).count();
        assert!(whole > tail.len() / 8, "{whole} of {}", tail.len() / 4);
    }
}

#[test]
fn two_runs_are_the_same_and_a_resumed_one_too() {
    let fixture = Fixture::new();
    for (method, dtype) in [("dpo", "bf16"), ("kto", "f32")] {
        let settings = format!(
            "--device cuda --dtype {dtype} --max-steps 5 --save-steps 2 --logging-steps 2 \
             --per-device-train-batch-size 2"
        );
        let [once, again, resumed] =
            ["once", "again", "resumed"].map(|name| format!("{method}-{name}"));
        fixture.train(method, &once, &settings);
        fixture.train(method, &again, &settings);
        assert_same(&fixture.path(&once), &fixture.path(&again), |_| false);
        fixture.train(method, &resumed, &settings);
        // As if it had been killed after step 2 and a bit.
        std::fs::remove_dir_all(fixture.path(&resumed).join("checkpoint-4")).unwrap();
        std::fs::remove_file(fixture.path(&resumed).join("model.safetensors")).unwrap();
        fixture.train(method, &resumed, &format!("{settings} --resume-from-checkpoint auto"));
        assert_same(&fixture.path(&once), &fixture.path(&resumed), |_| false);
    }
}

#[test]
fn what_is_not_finite_is_named_or_skipped() {
    let fixture = Fixture::new();
    let path = fixture.path("model/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 64..].copy_from_slice(&3e38f32.to_le_bytes().repeat(16));
    std::fs::write(&path, bytes).unwrap();
    for dtype in ["f32", "bf16"] {
        let device = format!("--device cuda --dtype {dtype} --logging-steps 3");
        let run = fixture.run("dpo", "out", &device);
        run.fails(&["step 1", "rows: line ", "finite", "there is no checkpoint"]);
        std::fs::remove_dir_all(fixture.path("out")).unwrap();
        let out = format!("skipped-{dtype}");
        let run = fixture.run("dpo", &out, &format!("{device} --skip-nonfinite"));
        assert!(run.err.contains("(3 skipped)"), "{run:?}");
        run.fails(&["nothing was learnt in 3 steps: 3 were skipped"]);
        assert_eq!(fixture.metrics(&out)[0]["skipped_steps"], 3);
    }
}

#[test]
fn a_device_without_room_says_what_lowers_it() {
    let fixture = Fixture::new();
    let command = fixture.command("dpo", "out", CUDA);
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_collimate"));
    child.args(command.split_whitespace()).env("COLLIMATE_EMULATE_MEMORY", "300000");
    let run = Running::start(&mut child).finish();
    run.fails(&["out of memory: asked for", "in use and", "free", "--per-device-train-batch-size"]);
}

#[test]
fn a_device_is_chosen_by_its_number_and_named() {
    let fixture = Fixture::new();
    let generate = |device: &str| {
        let model = fixture.at("model");
        let words = format!("generate --model {model} --prompt Tell --max-new-tokens 2");
        collimate(&format!("{words} --device {device}"))
    };
    for device in ["cuda", "cuda:0"] {
        let run = generate(device);
        assert!(run.ok() && run.err.starts_with("note: computing on cuda:0, "), "{run:?}");
    }
    generate("cuda:1").fails(&["there is 1 emulated device, no number 1"]);
    assert!(!generate("cpu").err.contains("computing on"));
    for wrong in ["gpu", "cuda:", "cuda:x", "cuda:-1"] {
        generate(wrong).fails(&["--device", "expected auto, cpu, cuda or cuda:N"]);
    }
}

#[test]
fn a_gpu_generates_what_the_cpu_does() {
    let fixture = Fixture::new();
    let generate = |more: &str| {
        let run = collimate(&format!(
            "generate --model {} --prompt Tell --max-new-tokens 12 --num-return-sequences 3 {more}",
            fixture.at("model")
        ));
        assert!(run.ok(), "{run:?}");
        run.out
    };
    for sampling in ["--temperature 0", "--temperature 1 --top-k 20"] {
        assert_eq!(generate(sampling), generate(&format!("{CUDA} {sampling}")));
    }
    assert!(!generate("--device cuda").is_empty());
}

//! Settings that are wrong, and folders that are taken.

use std::fs;

use super::{Fixture, Running, collimate};

#[test]
fn settings_outside_their_range() {
    let fixture = Fixture::new();
    for (more, says) in [
        ("dpo --beta 0", "--beta: expected a finite number above 0, got 0"),
        ("dpo --beta -1", "--beta"),
        ("dpo --beta nan", "--beta"),
        ("dpo --beta inf", "--beta"),
        ("dpo --beta=", "--beta"),
        ("dpo --per-device-train-batch-size 0", "per_device_train_batch_size: expected at least 1"),
        ("dpo --per-device-train-batch-size -1", "--per-device-train-batch-size"),
        ("dpo --gradient-accumulation-steps 0", "gradient_accumulation_steps"),
        ("dpo --learning-rate -1e-5", "learning_rate: expected a number >= 0"),
        ("dpo --learning-rate nan", "learning_rate"),
        ("dpo --max-steps 0", "max_steps: expected at least 1, got 0"),
        ("dpo --max-steps -7", "max_steps: expected at least 1, got -7"),
        ("dpo --num-train-epochs 0 --max-steps -1", "num_train_epochs"),
        ("dpo --logging-steps 0", "logging_steps"),
        ("dpo --save-total-limit 0", "save_total_limit"),
        ("dpo --warmup-ratio 1.5", "warmup_ratio"),
        ("dpo --weight-decay -1", "weight_decay"),
        ("dpo --adam-beta1 1", "adam_beta1"),
        ("dpo --adam-epsilon 0", "adam_epsilon"),
        ("dpo --max-grad-norm -1", "max_grad_norm"),
        ("dpo --max-length 1", "max_length"),
        ("dpo --seed -1", "--seed"),
        ("dpo --threads 0", "--threads"),
        ("dpo --shuffle maybe", "expected true or false"),
        ("dpo --lr-scheduler-type polinomial", "lr_scheduler_type: expected one of linear, cosine"),
        ("dpo --loss-type sigmod", "did you mean `sigmoid`?"),
        ("dpo --ld-alpha 1.5", "--ld-alpha: expected a number from 0 to 1"),
        ("dpo --ld-alpha 0.5 --loss-type sigmoid,sft", "--ld-alpha: expected no loss that it has"),
        ("dpo --use-weighting --loss-type aot", "--use-weighting: expected no loss that it has"),
        ("dpo --use-weighting --loss-type sigmoid,sft", "--use-weighting: expected no loss"),
        ("dpo --eval-delay -1", "eval_delay: expected a number >= 0"),
        ("dpo --save-strategy best", "eval_strategy: expected evaluations for save_strategy best"),
        ("dpo --loss-type sft", "at least one paired loss"),
        ("dpo --loss-type sigmoid,sigmoid", "each loss once"),
        ("dpo --loss-type sigmoid:-1", "weights above 0"),
        ("dpo --loss-type sigmoid,sft --loss-weights 1", "loss_weights"),
        ("dpo --loss-type sigmoid,sft --loss-weights 1,-2", "weights above 0"),
        ("dpo --loss-type hinge --label-smoothing 0.1", "--label-smoothing"),
        ("dpo --label-smoothing 0.5", "--label-smoothing"),
        ("dpo --loss-type simpo --f-divergence-type forward_kl", "--f-divergence-type"),
        ("dpo --loss-type psi_po --psi nothing", "psi: expected identity"),
        ("dpo --device cpu --dtype bf15", "--dtype"),
        ("dpo --lerning-rate 1", "'--learning-rate'"),
        ("dpo --beta", "--beta"),
        ("dpo extra", "unexpected argument 'extra'"),
        ("kto --per-device-train-batch-size 1", "per_device_train_batch_size: expected at least 2"),
        ("kto --beta 0", "--beta"),
        ("kto --desirable-weight -1", "--desirable-weight"),
        ("kto --loss-type apo_zero_unpaired", "--loss-type: apo_zero_unpaired ("),
        ("sft --beta 0.1", "--beta"),
    ] {
        let (method, flags) = more.split_once(' ').unwrap();
        // Behind the others, to override them.
        fixture.run(method, "out", flags).fails(&[says]);
        assert!(!fixture.path("out").exists(), "{more}");
    }
    if cfg!(not(any(feature = "cuda", feature = "emulate"))) {
        fixture.run("dpo", "out", "--device cuda").fails(&["no kernels", "--features cuda"]);
    }
    collimate("dpp --beta 1").fails(&["dpp"]);
    collimate("dpo").fails(&["--model-name-or-path", "--dataset-name"]);
    // Without smoothing is what every loss is.
    fixture.train("dpo", "hinge", "--loss-type hinge --label-smoothing 0.0");
}

#[test]
fn columns_that_a_loss_cannot_hear() {
    let fixture = Fixture::new();
    let mut rows = super::pairs(8);
    rows[3]["target_prob"] = serde_json::json!(0.7);
    let path = fixture.rows("rows.jsonl", &rows);
    let run = fixture.run("dpo", "out", &format!("--dataset {path} --loss-type hinge"));
    run.fails(&["rows.jsonl:4", "`target_prob`", "hinge"]);
}

#[test]
fn output_folders_that_are_taken() {
    let fixture = Fixture::new();
    fixture.write("file", "");
    fixture.run("dpo", "file", "").fails(&["file"]);
    fixture.run("dpo", "file/below", "").fails(&["file"]);
    for more in ["", "--overwrite-output-dir"] {
        fixture.run("dpo", "model", more).fails(&["model: holds what --model-name-or-path names"]);
    }
    fixture.train("dpo", "out", "--save-steps 1");
    fixture.run("dpo", "out", "").fails(&["holds a run already", "--overwrite-output-dir"]);
    // Its own checkpoint is not deleted to make room for what is trained from it.
    let own = format!("--model {}/checkpoint-2 --overwrite-output-dir", fixture.at("out"));
    fixture.run("dpo", "out", &own).fails(&["holds what --model-name-or-path names"]);
    assert!(fixture.path("out/checkpoint-2").exists());
    fs::write(fixture.path("out/notes.txt"), "mine").unwrap();
    fixture.train("dpo", "out", "--overwrite-output-dir --seed 3");
    assert!(!fixture.path("out/checkpoint-2").exists());
    assert_eq!(fs::read_to_string(fixture.path("out/notes.txt")).unwrap(), "mine");
    fixture.train("dpo", "fresh", "--seed 3");
    assert_eq!(fixture.weights("out"), fixture.weights("fresh"));
    // A folder that holds other things is no run.
    fs::create_dir(fixture.path("shared")).unwrap();
    fs::write(fixture.path("shared/notes.txt"), "mine").unwrap();
    fixture.train("dpo", "shared", "");
}

#[test]
fn what_a_run_reads_is_not_written_over() {
    let fixture = Fixture::new();
    fixture.train("reward", "rm", "");
    fixture.train("dpo", "adapters", "--use-peft");
    let rm = fs::read(fixture.path("rm/model.safetensors")).unwrap();
    let rollouts = format!("--reward-model-path {} --response-length 4", fixture.at("rm"));
    for more in ["", "--overwrite-output-dir"] {
        let more = format!("{rollouts} {more}");
        fixture.run("rloo", "rm", &more).fails(&["rm: holds what --reward-model-path names"]);
        let more = format!("--adapter {} {more}", fixture.at("adapters")).replace(&rollouts, "");
        fixture.run("dpo", "adapters", &more).fails(&["adapters: holds what --adapter names"]);
    }
    assert_eq!(rm, fs::read(fixture.path("rm/model.safetensors")).unwrap());
    // A model that is no run's is not taken for one, and goes where that is asked for.
    fs::create_dir(fixture.path("other")).unwrap();
    fs::copy(fixture.path("model/config.json"), fixture.path("other/config.json")).unwrap();
    fixture.run("dpo", "other", "").fails(&["other: holds a model that is not of a run"]);
    fixture.train("dpo", "other", "--overwrite-output-dir");
    // The file of settings, and data that is called like what a run writes.
    fs::create_dir(fixture.path("mine")).unwrap();
    let yaml = fixture.write("mine/config.yaml", "seed: 3\n");
    fixture.run("dpo", "mine", &format!("--config {yaml}")).fails(&["holds what --config names"]);
    assert_eq!(fs::read_to_string(&yaml).unwrap(), "seed: 3\n");
    fs::remove_file(&yaml).unwrap();
    let data = fixture.at("mine/metrics.jsonl");
    fs::copy(fixture.path("pairs.jsonl"), &data).unwrap();
    for more in ["", "--overwrite-output-dir"] {
        let more = format!("--dataset {data} {more}");
        fixture.run("dpo", "mine", &more).fails(&["holds what --dataset-name names"]);
    }
    // Its own settings are those that a run goes on with.
    fixture.train("dpo", "out", "--save-steps 1");
    let own = format!("--config {}/config.yaml --resume-from-checkpoint auto", fixture.at("out"));
    let run = collimate(&format!("dpo {own} --output-dir {}", fixture.at("out")));
    assert!(run.ok(), "{run:?}");
}

#[test]
fn two_runs_do_not_write_to_one_folder() {
    let fixture = Fixture::new();
    let first = Running::of(&fixture.command("dpo", "out", "--max-steps 4000 --logging-steps 1"));
    let started = fixture.path("out/metrics.jsonl");
    while !fs::read(&started).is_ok_and(|text| !text.is_empty()) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for more in ["", "--overwrite-output-dir", "--resume-from-checkpoint auto"] {
        fixture.run("dpo", "out", more).fails(&["out: another run is writing to it"]);
    }
    // A dead process holds nothing.
    first.signal("KILL");
    first.finish();
    fixture.train("dpo", "out", "--overwrite-output-dir");
}

#[test]
fn the_trained_model_is_a_model() {
    let fixture = Fixture::new();
    fixture.train("sft", "first", "");
    let more = format!("--model {}", fixture.at("first"));
    fixture.train("dpo", "second", &more);
    for name in ["config.json", "tokenizer.json"] {
        let [a, b] = ["model", "second"].map(|dir| fs::read(fixture.path(dir).join(name)).unwrap());
        assert!(a == b, "{name}");
    }
    let run = collimate(&format!("generate --model {} --prompt rain", fixture.at("second")));
    assert!(run.ok() && run.out.starts_with("rain"), "{run:?}");
}

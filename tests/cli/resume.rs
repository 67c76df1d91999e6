//! Runs that end early, and how they go on.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Fixture, Running, assert_same};

/// Steps, accumulation, checkpoints, logged lines and evaluations that fall apart.
const SETTINGS: &str = "--max-steps 20 --per-device-train-batch-size 2 --save-steps 3 \
    --gradient-accumulation-steps 2 --logging-steps 2 --eval-steps 7 --warmup-steps 3 --threads 1";

fn settings(fixture: &Fixture) -> String {
    format!("{SETTINGS} --eval-dataset {}", fixture.at("pairs.jsonl"))
}

const AUTO: &str = "--resume-from-checkpoint auto";

#[test]
fn killed_at_any_moment() {
    let fixture = Fixture::new();
    let settings = settings(&fixture);
    fixture.kill_and_go_on("dpo", &settings, 10, 11, 1.0);
}

#[test]
fn a_run_that_ended_ends_the_same_again() {
    let fixture = Fixture::new();
    for steps in ["20", "21"] {
        let settings = format!("{} --max-steps {steps}", settings(&fixture));
        let out = format!("out-{steps}");
        fixture.train("dpo", &out, &settings);
        let copy = fixture.path(&format!("copy-{steps}"));
        copy_dir(&fixture.path(&out), &copy);
        fixture.train("dpo", &out, &format!("{settings} {AUTO}"));
        assert_same(&fixture.path(&out), &copy, |name| name == "config.yaml");
    }
}

#[test]
fn torn_checkpoints_are_skipped() {
    let fixture = Fixture::new();
    let settings = settings(&fixture);
    fixture.train("dpo", "whole", &settings);
    let tears: [&dyn Fn(&Path); 5] = [
        &|dir| fs::remove_file(dir.join("manifest.json")).unwrap(),
        &|dir| fs::write(dir.join("manifest.json"), "{").unwrap(),
        &|dir| fs::remove_file(dir.join("optimizer.safetensors")).unwrap(),
        &|dir| {
            let bytes = fs::read(dir.join("model.safetensors")).unwrap();
            fs::write(dir.join("model.safetensors"), &bytes[..bytes.len() - 5]).unwrap();
        },
        &|dir| {
            let mut bytes = fs::read(dir.join("trainer_state.json")).unwrap();
            bytes[20] ^= 1;
            fs::write(dir.join("trainer_state.json"), bytes).unwrap();
        },
    ];
    for (i, tear) in tears.iter().enumerate() {
        let out = format!("torn-{i}");
        copy_dir(&fixture.path("whole"), &fixture.path(&out));
        let checkpoint = fixture.path(&out).join("checkpoint-18");
        tear(&checkpoint);
        let run = fixture.run("dpo", &out, &format!("{settings} {AUTO}"));
        assert!(run.ok(), "{run:?}");
        assert!(run.err.contains("note: skipped a torn checkpoint: "), "{run:?}");
        assert!(run.err.contains("checkpoint-15 after step 15"), "{run:?}");
        assert_same(&fixture.path("whole"), &fixture.path(&out), |_| false);
        // Asked for by name it is an error.
        tear(&checkpoint);
        let more = format!("{settings} --resume-from-checkpoint {}", checkpoint.display());
        fixture.run("dpo", &out, &more).fails(&["checkpoint-18"]);
    }
    // All torn: from the start.
    for step in (3..=18).step_by(3) {
        let checkpoint = fixture.path("torn-0").join(format!("checkpoint-{step}"));
        let _ = fs::remove_file(checkpoint.join("manifest.json"));
    }
    fixture.train("dpo", "torn-0", &format!("{settings} {AUTO}"));
    assert_same(&fixture.path("whole"), &fixture.path("torn-0"), |_| false);
}

#[test]
fn left_overs_of_a_kill_go_away() {
    let fixture = Fixture::new();
    let settings = settings(&fixture);
    fixture.train("dpo", "whole", &settings);
    let out = fixture.path("out");
    copy_dir(&fixture.path("whole"), &out);
    for step in [3, 19, 400] {
        let aside = out.join(format!("checkpoint-{step}.tmp"));
        fs::create_dir(&aside).unwrap();
        fs::write(aside.join("model.safetensors"), "half").unwrap();
    }
    for name in [".model.safetensors.tmp", ".config.json.tmp", ".config.yaml.tmp"] {
        fs::write(out.join(name), "half").unwrap();
    }
    // A line that was cut while it was written.
    let metrics = fs::read(out.join("metrics.jsonl")).unwrap();
    fs::write(out.join("metrics.jsonl"), &metrics[..metrics.len() - 9]).unwrap();
    fixture.train("dpo", "out", &format!("{settings} {AUTO}"));
    assert_same(&fixture.path("whole"), &out, |_| false);
}

#[test]
fn signals_save_and_say_how_to_go_on() {
    let fixture = Fixture::new();
    let settings = format!("{} --max-steps 400 --save-steps 150", settings(&fixture));
    fixture.train("dpo", "whole", &settings);
    for (i, signal) in ["INT", "TERM"].into_iter().enumerate() {
        let out = format!("out-{i}");
        let run = Running::of(&fixture.command("dpo", &out, &settings));
        let metrics = fixture.path(&out).join("metrics.jsonl");
        let begun = || fs::metadata(&metrics).is_ok_and(|about| about.len() > 0);
        while !begun() {
            std::thread::sleep(Duration::from_millis(2));
        }
        run.signal(signal);
        let run = run.finish();
        assert_eq!(run.code, Some(130), "{run:?}");
        let last = run.err.lines().last().unwrap();
        assert!(last.starts_with("stopped: interrupted after step "), "{run:?}");
        let how = format!("--output-dir {} {AUTO}", fixture.at(&out));
        assert!(last.contains(&how), "{run:?}");
        let step = last.split_whitespace().nth(4).unwrap();
        let extra = format!("checkpoint-{step}/");
        assert!(fixture.path(&out).join(&extra).is_dir());
        assert!(!fixture.path(&out).join("model.safetensors").exists());
        fixture.train("dpo", &out, &format!("{settings} {AUTO}"));
        let skip = |name: &str| name.starts_with(&extra);
        assert_same(&fixture.path("whole"), &fixture.path(&out), skip);
    }
}

#[test]
fn another_run_cannot_be_resumed() {
    let fixture = Fixture::new();
    let settings = settings(&fixture);
    fixture.train("dpo", "out", &settings);
    for (more, says) in [
        ("--per-device-train-batch-size 4", "per_device_train_batch_size: expected 2, got 4"),
        ("--seed 1", "seed: expected 42, got 1"),
        ("--shuffle false", "shuffle: expected true, got false"),
        ("--gradient-accumulation-steps 1", "gradient_accumulation_steps: expected 2, got 1"),
        ("--max-steps 5", "max_steps: expected at least the 18 steps"),
    ] {
        fixture.run("dpo", "out", &format!("{settings} {AUTO} {more}")).fails(&[says]);
    }
    let mut more = super::pairs(30);
    more.drain(..3);
    let other = fixture.rows("other.jsonl", &more);
    let run = fixture.run("dpo", "out", &format!("{settings} {AUTO} --dataset {other}"));
    run.fails(&["examples: expected 24, got 27"]);
    // auto means a folder.
    let words = format!("dpo --model {0} --dataset {0}/x {AUTO}", fixture.at("model"));
    super::collimate(&words).fails(&["--output-dir"]);
}

#[test]
fn a_checkpoint_by_its_path() {
    let fixture = Fixture::new();
    let settings = settings(&fixture);
    fixture.train("dpo", "out", &settings);
    copy_dir(&fixture.path("out"), &fixture.path("whole"));
    let from = format!("{settings} --resume-from-checkpoint {}/checkpoint-9", fixture.at("out"));
    // Later checkpoints are not silently made untrue.
    fixture.run("dpo", "out", &from).fails(&["3 later checkpoints", "--overwrite-output-dir"]);
    fixture.train("dpo", "out", &format!("{from} --overwrite-output-dir --save-total-limit 2"));
    let kept = |name: &str| {
        name == "config.yaml"
            || [3, 6, 9, 12].iter().any(|n| name.starts_with(&format!("checkpoint-{n}/")))
    };
    assert_same(&fixture.path("whole"), &fixture.path("out"), kept);
    // Into a folder of its own.
    let from = from.replace("/out/", "/whole/");
    let metrics = fixture.train("dpo", "elsewhere", &from);
    assert_eq!(metrics[0]["step"], 10);
    assert_eq!(fixture.weights("elsewhere"), fixture.weights("whole"));
    // Which may hold no other run.
    fixture.run("dpo", "elsewhere", &from).fails(&["holds a run already"]);
}

#[test]
fn only_the_last_checkpoints_stay() {
    let fixture = Fixture::new();
    let settings = settings(&fixture);
    fixture.train("dpo", "out", &format!("{settings} --save-total-limit 2"));
    let names: Vec<String> = super::snapshot(&fixture.path("out"))
        .into_keys()
        .filter(|name| name.ends_with("manifest.json"))
        .collect();
    assert_eq!(names, ["checkpoint-15/manifest.json", "checkpoint-18/manifest.json"]);
    // One that is torn does not push a sound one out.
    fs::remove_file(fixture.path("out/checkpoint-18/manifest.json")).unwrap();
    fixture.train("dpo", "out", &format!("{settings} --save-total-limit 1 {AUTO}"));
    assert!(fixture.path("out/checkpoint-18/manifest.json").exists());
    assert!(!fixture.path("out/checkpoint-15").exists());
}

#[test]
fn sft_and_kto_resume_as_well() {
    let fixture = Fixture::new();
    for method in ["sft", "kto"] {
        let settings = format!("{} --per-device-train-batch-size 3", settings(&fixture));
        let (whole, out) = (format!("{method}-whole"), format!("{method}-out"));
        fixture.train(method, &whole, &settings);
        copy_dir(&fixture.path(&whole), &fixture.path(&out));
        for step in [12, 15, 18] {
            fs::remove_dir_all(fixture.path(&out).join(format!("checkpoint-{step}"))).unwrap();
        }
        fixture.train(method, &out, &format!("{settings} {AUTO}"));
        assert_same(&fixture.path(&whole), &fixture.path(&out), |_| false);
    }
}

#[test]
fn threads_do_not_matter() {
    let fixture = Fixture::new();
    let settings = settings(&fixture);
    for threads in ["1", "2", "4"] {
        fixture.train("dpo", threads, &format!("{settings} --threads {threads}"));
        assert_same(&fixture.path("1"), &fixture.path(threads), |name| name == "config.yaml");
    }
}

pub(super) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

//! The binary, as a user runs it.

mod adapters;
mod agreement;
mod chat;
mod config;
mod data;
mod data_show;
mod defaults;
mod demo;
#[cfg(feature = "emulate")]
mod device;
mod eval;
mod failures;
mod frontier;
mod generate;
mod held_out;
mod losses;
mod mixture;
mod models;
mod on_policy;
mod options;
mod reference;
mod resume;
mod reward;
mod rlaif;
mod saved;
mod spin;
mod traces;
mod training;
mod when;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use collimate::data::tokenizer::train_bpe;
use collimate::models::{ModelFolder, SaveOptions, SpecialTokens, init_weights, save};
use collimate::nn::{Decoder, DecoderConfig, RopeConfig, RopeScaling};
use collimate::{DType, Device};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::random::Random;

/// Nothing here may take longer.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A folder with a tiny model in `model` and 24 pairs in `pairs.jsonl`.
struct Fixture {
    dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Fixture { dir: tempfile::tempdir().unwrap() };
        let pairs = pairs(24);
        tiny_model(&fixture.path("model"), pairs.iter().map(|p| p.to_string()));
        fixture.rows("pairs.jsonl", &pairs);
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A path as text.
    fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().into()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.at(name)
    }

    /// Writes JSON lines.
    fn rows(&self, name: &str, rows: &[Value]) -> String {
        self.write(name, rows.iter().map(|row| format!("{row}\n")).collect::<String>())
    }

    /// A short training of the tiny model on the pairs, written to `out`; `more` overrides.
    fn command(&self, method: &str, out: &str, more: &str) -> String {
        format!(
            "{method} --model {} --dataset {} --output-dir {} --max-steps 3 --learning-rate 1e-2 \
             --per-device-train-batch-size 4 --logging-steps 1 {more}",
            self.at("model"),
            self.at("pairs.jsonl"),
            self.at(out),
        )
    }

    fn run(&self, method: &str, out: &str, more: &str) -> Run {
        collimate(&self.command(method, out, more))
    }

    /// [`Fixture::run`], which must succeed.
    fn train(&self, method: &str, out: &str, more: &str) -> Vec<Value> {
        let run = self.run(method, out, more);
        assert!(run.ok(), "{method} {more}: {run:?}");
        self.metrics(out)
    }

    /// [`Fixture::train`], which may end without anything learnt: where every reward is the same, say.
    fn steps(&self, method: &str, out: &str, more: &str) -> Vec<Value> {
        let run = self.run(method, out, more);
        assert!(run.ok() || run.error().contains("nothing was learnt"), "{method} {more}: {run:?}");
        self.metrics(out)
    }

    /// The bytes of the trained model in `out`.
    /// Kills runs at moments of up to `until` times what a whole one takes, and goes on with each; every one
    /// must end with the bytes of `whole`, which is made first.
    fn kill_and_go_on(&self, method: &str, settings: &str, kills: usize, seed: u64, until: f64) {
        let start = Instant::now();
        self.train(method, "whole", settings);
        let whole = start.elapsed().as_secs_f64();
        let more = format!("{settings} --resume-from-checkpoint auto");
        let mut random = Random::new(seed);
        let (mut killed, mut name) = (0, 0);
        while killed < kills {
            name += 1;
            let out = format!("broken-{name}");
            loop {
                let mut run = Running::of(&self.command(method, &out, &more));
                let moment = Duration::from_secs_f64(random.between(0.05, until) * whole);
                let start = Instant::now();
                while start.elapsed() < moment && !run.ended() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                if !run.ended() && killed < kills {
                    run.child.kill().unwrap();
                    killed += 1;
                    run.finish();
                    continue;
                }
                let run = run.finish();
                assert!(run.ok(), "{run:?}");
                break;
            }
            assert_same(&self.path("whole"), &self.path(&out), |_| false);
        }
    }

    fn weights(&self, out: &str) -> Vec<u8> {
        std::fs::read(self.path(out).join("model.safetensors")).unwrap()
    }

    fn metrics(&self, out: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(out).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Pairs that can be learnt, of several lengths.
fn pairs(count: usize) -> Vec<Value> {
    let mut random = Random::new(7);
    let (asked, good, bad) = (
        ["the sea", "a red house", "small birds", "rain"],
        ["is wide and calm", "gives joy", "sings at dawn"],
        ["who knows", "no idea at all", "go away now"],
    );
    (0..count)
        .map(|i| {
            let what = asked[random.below(4)];
            json!({
                "prompt": format!("Tell me of {what}, {i} times."),
                "chosen": format!(" {what} {}{}", good[random.below(3)], "!".repeat(i % 4)),
                "rejected": format!(" {}", bad[random.below(3)]),
            })
        })
        .collect()
}

fn tiny_config(vocab: usize) -> DecoderConfig {
    DecoderConfig {
        vocab,
        hidden: 16,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        ff: 24,
        rms_eps: 1e-5,
        rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
        tied: true,
        qkv_bias: false,
        qk_norm: false,
        max_positions: 384,
        padding: None,
    }
}

fn tiny_model(path: &Path, texts: impl Iterator<Item = String> + Send) {
    let tokenizer = train_bpe(texts, 300).unwrap();
    let special = SpecialTokens { bos: Some(1), eos: Some(2), pad: None };
    let config = tiny_config(300);
    let folder = ModelFolder::create(path, &config, &special, DType::F32).unwrap();
    let (_, table) = Decoder::new(config).unwrap();
    let weights = init_weights::<f32>(&table, 5, &Device::Cpu).unwrap();
    save(&folder, path, &weights, &SaveOptions::default()).unwrap();
    std::fs::write(path.join("tokenizer.json"), tokenizer).unwrap();
}

/// What a process did.
#[derive(Debug)]
struct Run {
    /// None where a signal ended it.
    code: Option<i32>,
    out: String,
    err: String,
}

impl Run {
    fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// The one line of an error: no panic, no line before or after it but notes and steps.
    fn error(&self) -> &str {
        assert!(matches!(self.code, Some(1..=2)), "{self:?}");
        assert!(!self.err.contains("panicked") && !self.err.contains("RUST_BACKTRACE"), "{self:?}");
        let aside = |line: &&str| line.starts_with("note: ") || line.starts_with("step ");
        let lines: Vec<&str> = self.err.lines().filter(|line| !aside(line)).collect();
        let [line] = lines[..] else { panic!("expected one line: {self:?}") };
        assert!(line.starts_with("error: ") && line.len() < 1000, "{self:?}");
        line
    }

    /// Asserts an error that says all of this.
    fn fails(&self, says: &[&str]) {
        let line = self.error();
        for part in says {
            assert!(line.contains(part), "expected `{part}` in `{line}`");
        }
    }
}

/// Runs the binary on these words.
fn collimate(words: &str) -> Run {
    collimate_with(words.split_whitespace())
}

/// Runs the binary on these arguments.
fn collimate_with<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    finish(Command::new(env!("CARGO_BIN_EXE_collimate")).args(args))
}

/// Runs the binary with so much address space, in KiB: a huge allocation fails.
fn collimate_within(kib: usize, words: &str) -> Run {
    let script = format!("ulimit -v {kib}; exec {} {words}", env!("CARGO_BIN_EXE_collimate"));
    finish(Command::new("sh").args(["-c", &script]).env("RAYON_NUM_THREADS", "2"))
}

fn finish(command: &mut Command) -> Run {
    Running::start(command).finish()
}

/// A process under way.
struct Running {
    child: Child,
    out: std::fs::File,
    err: std::fs::File,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        Self::start_with(command, Stdio::null())
    }

    fn start_with(command: &mut Command, input: Stdio) -> Self {
        let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let child = command
            .stdin(input)
            .stdout(out.try_clone().unwrap())
            .stderr(err.try_clone().unwrap())
            .spawn()
            .unwrap();
        Running { child, out, err }
    }

    fn of(words: &str) -> Self {
        Self::start(Command::new(env!("CARGO_BIN_EXE_collimate")).args(words.split_whitespace()))
    }

    fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    fn finish(mut self) -> Run {
        let start = Instant::now();
        while !self.ended() {
            if start.elapsed() > TIMEOUT && std::env::var_os("COLLIMATE_TRACE").is_none() {
                self.child.kill().unwrap();
                panic!("a process takes too long");
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        let code = self.child.wait().unwrap().code();
        let [out, err] = [&mut self.out, &mut self.err].map(|file| {
            let mut text = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut text).unwrap();
            String::from_utf8(text).unwrap()
        });
        Run { code, out, err }
    }
}

/// Every file below a run's folder; what may differ from run to run is taken out: the speed, and
/// where the folder is.
fn snapshot(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, dir: &Path, all: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, all);
                continue;
            }
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
            let mut bytes = std::fs::read(&path).unwrap();
            if name.ends_with("metrics.jsonl") {
                let text = String::from_utf8(bytes).unwrap();
                let without_speed = |line: &str| {
                    let mut line: serde_json::Map<String, Value> =
                        serde_json::from_str(line).unwrap();
                    line.remove("tokens_per_second");
                    format!("{}\n", Value::Object(line))
                };
                bytes = text.lines().map(without_speed).collect::<String>().into_bytes();
            } else if name == "config.yaml" {
                let text = String::from_utf8(bytes).unwrap();
                bytes = text.replace(root.to_str().unwrap(), "OUT").into_bytes();
            }
            all.insert(name, bytes);
        }
    }
    let mut all = BTreeMap::new();
    walk(dir, dir, &mut all);
    all
}

/// Asserts that two runs left the same, but for files that `skip` names.
fn assert_same(a: &Path, b: &Path, skip: impl Fn(&str) -> bool) {
    let [mut a, mut b] = [a, b].map(snapshot);
    a.retain(|name, _| !skip(name));
    b.retain(|name, _| !skip(name));
    let [names, others] = [&a, &b].map(|all| all.keys().cloned().collect::<Vec<_>>());
    assert_eq!(names, others);
    for (name, bytes) in &a {
        if let (Ok(x), Ok(y)) = (std::str::from_utf8(bytes), std::str::from_utf8(&b[name])) {
            assert_eq!(x, y, "{name}");
        }
        assert!(*bytes == b[name], "{name} differs");
    }
}

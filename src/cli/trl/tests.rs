//! The table against the keys of the real packages (scripts/trl_keys.py).

use std::ffi::OsString;
use std::sync::LazyLock;

use serde_json::Value;

use super::*;
use crate::cli::lora::{ALPHA, DROPOUT, RANK, disables_dropout};
use crate::cli::{command, settings};

const COMMANDS: [&str; 7] = ["sft", "dpo", "kto", "reward", "grpo", "rloo", "online-dpo"];

/// Settings whose default is not TRL's, and why.
const DIFFERENT: &[(&str, &str)] = &[
    (
        "dtype",
        "the same on the CPU; on a GPU bf16 with master weights in float32, as TRL's `bf16: true`, which is its default there",
    ),
    (
        "gradient_checkpointing",
        "the result is the same: on on a GPU, where memory is short, and off on the CPU",
    ),
    (
        "eval_strategy",
        "a held-out file that is named is evaluated at the end; without one nothing is",
    ),
    (
        "per_device_eval_batch_size",
        "as many as in training: only what couples a batch, KTO's KL, depends on it",
    ),
    (
        "gradient_accumulation_steps",
        "a gradient of 8 completions is mostly noise, so that a step here has more; 1 is TRL's step",
    ),
    ("max_length", "of prompts alone, to which `max_new_tokens` come"),
];

/// Defaults that are written in two ways: here, and in TRL.
const SAME: [(&str, &str, &str); 5] = [
    ("max_steps", "", "-1"),
    ("fp16", "", "false"),
    ("label_smoothing", "", "0.0"),
    ("center_rewards_coefficient", "0", "null"),
    ("dataset_text_field", "", "text"),
];

/// The keys of a command: those of every command, its own, and the launcher's.
fn keys(of: &str) -> Vec<(String, String)> {
    let text = include_str!("../../../tests/fixtures/trl_keys.json");
    let fixture: Value = serde_json::from_str(text).unwrap();
    let lists = ["every command", of, "launcher"].map(|list| fixture[list].as_array().unwrap());
    let text = |default: &Value| match default {
        Value::String(text) => text.clone(),
        Value::Array(all) => {
            let all = all.iter().map(|v| v.as_str().map_or(v.to_string(), str::to_string));
            all.collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    };
    let keys = lists.into_iter().flatten();
    keys.map(|key| (key[0].as_str().unwrap().to_string(), text(&key[2]))).collect()
}

/// What clap makes of a command with a file of these settings.
fn parse(name: &str, yaml: &str) -> Result<clap::ArgMatches, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    std::fs::write(&path, yaml).unwrap();
    parse_flags(name, &[&format!("--config={}", path.display())])
}

fn parse_flags(name: &str, more: &[&str]) -> Result<clap::ArgMatches, String> {
    let mut args = vec!["collimate", name, "--model-name-or-path=m", "--dataset-name=d"];
    args.extend(more);
    let args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
    static COMMAND: LazyLock<clap::Command> = LazyLock::new(command);
    let (args, _) = settings::expand(&COMMAND, args).map_err(|e| e.to_string())?;
    COMMAND.clone().try_get_matches_from(args).map_err(|e| e.to_string())
}

#[test]
fn every_key_is_known_and_every_default_is_accepted() {
    for name in COMMANDS {
        let keys = keys(name);
        assert!(keys.len() > 200, "{name}: {}", keys.len());
        let mut wrong = Vec::new();
        for (key, default) in keys {
            let yaml = match default.as_str() {
                "" => format!("{key}: ''"),
                default => format!("{key}: {default}"),
            };
            wrong.extend(parse(name, &yaml).err());
        }
        assert!(wrong.is_empty(), "{name}: {wrong:#?}");
    }
}

#[test]
fn no_key_of_trl_is_told_to_be_unknown_whatever_its_value() {
    for name in COMMANDS {
        let messages = keys(name)
            .into_iter()
            .filter_map(|(key, _)| parse(name, &format!("{key}: {{no: such value}}")).err());
        let unknown: Vec<String> = messages.filter(|m| m.contains("unknown")).collect();
        assert!(unknown.is_empty(), "{name}: {unknown:#?}");
    }
}

#[test]
fn a_key_has_one_fate_and_one_remedy() {
    let refusable = |key: &str| REMEDIES.iter().filter(|(_, keys)| keys.contains(&key)).count();
    for key in names().filter(|key| !key.ends_with('*')) {
        assert!(refusable(key) <= 1, "{key} has two remedies");
        for command in COMMANDS {
            let groups = GROUPS.iter().filter(|group| group.is_of(command) && group.has(key));
            let open = groups.clone().filter(|group| group.values.is_empty()).count();
            assert!(open <= 1, "{key} is in two groups that take any value");
        }
    }
    let mut wrong = Vec::new();
    // What is taken with some values alone says what to do about another.
    for group in GROUPS.iter().filter(|group| !group.values.is_empty()) {
        for key in group.keys {
            let open = GROUPS.iter().any(|other| other.values.is_empty() && other.has(key));
            let both = ["true", "false"].iter().all(|value| {
                GROUPS.iter().any(|other| other.has(key) && other.values.contains(value))
            });
            if !(open || both || refusable(key) == 1) {
                wrong.push(key);
            }
        }
    }
    assert!(wrong.is_empty(), "without a remedy: {wrong:?}");
}

#[test]
fn refusals_come_at_once_with_their_remedies() {
    let yaml = "use_dora: true\nlearning_rte: 1\nload_in_4bit: true\noptim: rmsprop\nseed: 3\n";
    let message = parse("dpo", yaml).unwrap_err();
    for says in [
        "field `use_dora`: true (adapters are LoRA",
        "`learning_rte`: unknown; did you mean `learning_rate`?",
        "`load_in_4bit`: true (weights are not quantised",
        "`optim`: rmsprop (AdamW",
    ] {
        assert!(message.contains(says), "{says}: {message}");
    }
    assert_eq!(message.matches("config.yaml").count(), 1, "{message}");
    let message = parse_flags("dpo", &["--use-dora", "--optim", "lion", "--lora-r=3"]).unwrap_err();
    assert!(message.contains("--use-dora: true (") && message.contains("--optim: lion ("));
    assert!(!message.contains("lora-r"), "{message}");
}

#[test]
fn lists_and_switches_of_the_command_line() {
    let flags = ["--lora-target-modules", "q", "k", "--report-to", "a", "b", "--loss-type"];
    let flags: Vec<&str> =
        flags.into_iter().chain(["sigmoid", "sft", "--loss-weights", "1", "0.2"]).collect();
    let matches = parse_flags("dpo", &flags).unwrap();
    let given = |id: &str| {
        let raw = matches.subcommand().unwrap().1.get_raw(id).unwrap().next().unwrap();
        raw.to_string_lossy().into_owned()
    };
    assert_eq!((given("loss_type"), given("loss_weights")), ("sigmoid,sft".into(), "1,0.2".into()));
    assert_eq!(given("lora_target_modules"), "q,k");
    let matches = parse_flags("dpo", &["--no-bf16", "--no-gradient-checkpointing"]).unwrap();
    let given = |id: &str| *matches.subcommand().unwrap().1.get_one::<bool>(id).unwrap();
    assert!(!given("bf16") && !given("gradient_checkpointing"));
    parse_flags("dpo", &["--no-remove-unused-columns", "--no-average-tokens-across-devices"])
        .unwrap();
    let message = parse_flags("dpo", &["--no-lerning-rate"]).unwrap_err();
    assert!(message.contains("--no-lerning-rate"), "{message}");
    let matches = parse("kto", "train_sampling_strategy: sequential\nno_bf16: true").unwrap();
    let given = |id: &str| *matches.subcommand().unwrap().1.get_one::<bool>(id).unwrap();
    assert!(!given("shuffle") && !given("bf16"));
}

/// A default of ours and of TRL's, where they are not the same.
fn differing(name: &str) -> Vec<(String, String, String)> {
    let command = command();
    let sub = command.find_subcommand(name).unwrap();
    let flag = |key: &str| {
        let flag = key.replace('_', "-");
        sub.get_arguments().find(|arg| {
            arg.get_long() == Some(&*flag)
                || arg.get_all_aliases().is_some_and(|all| all.contains(&&*flag))
        })
    };
    let absent = |value: &str| ["", "null", "None"].contains(&value);
    let same = |ours: &str, theirs: &str| match (ours.parse::<f64>(), theirs.parse::<f64>()) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        _ => ours == theirs || absent(ours) && absent(theirs),
    };
    let defaults = keys(name).into_iter().filter_map(|(key, theirs)| {
        let arg = flag(&key)?;
        let ours = arg.get_default_values().first().map(|v| v.to_string_lossy().into_owned());
        let (ours, theirs) = match &*key {
            // Named in the help alone: it follows the width of the model.
            "learning_rate" => {
                let rates = crate::cli::args::LEARNING_RATES;
                (rates.iter().find(|(n, _)| *n == name)?.1.to_string(), theirs)
            }
            // Those of adapters are where there are adapters.
            "lora_r" => (RANK.to_string(), theirs),
            "lora_alpha" => (ALPHA.to_string(), theirs),
            "lora_dropout" => (DROPOUT.to_string(), theirs),
            "use_rslora" => ("false".into(), theirs),
            "disable_dropout" => (disables_dropout(name).to_string(), theirs),
            _ => (ours.unwrap_or_default(), theirs),
        };
        let written = SAME.contains(&(&*key, &*ours, &*theirs));
        // The launcher's own, which the trainer's stands before.
        let launcher = key == "gradient_accumulation_steps" && theirs == "null";
        (!(same(&ours, &theirs) || written || launcher)).then_some((key, ours, theirs))
    });
    defaults.collect()
}

/// What is left out of a recipe means the same here, but for what is told, with the reason.
#[test]
fn defaults_are_those_of_trl() {
    let mut unheard: Vec<&str> = DIFFERENT.iter().map(|(key, _)| *key).collect();
    let mut wrong = Vec::new();
    for name in COMMANDS {
        for (key, ours, theirs) in differing(name) {
            unheard.retain(|known| *known != key);
            if !DIFFERENT.iter().any(|(known, _)| *known == key) {
                wrong.push(format!("{name}: {key}: {ours:?}, TRL {theirs:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(unheard.is_empty(), "not different: {unheard:?}");
}

/// The defaults that are not TRL's, as docs/trl.md has them.
fn table_of_defaults() -> String {
    let mut text = String::from("| setting | here | TRL | why |\n|---|---|---|---|\n");
    for (known, why) in DIFFERENT {
        let mut values: Vec<(String, String, Vec<&str>)> = Vec::new();
        for name in COMMANDS {
            for (_, ours, theirs) in differing(name).into_iter().filter(|(key, ..)| key == known) {
                match values.iter_mut().find(|(o, t, _)| *o == ours && *t == theirs) {
                    Some((.., names)) => names.push(name),
                    None => values.push((ours, theirs, vec![name])),
                }
            }
        }
        let or_none = |value: &str| match value {
            "" | "null" => "none".to_string(),
            value => format!("`{value}`"),
        };
        for (ours, theirs, names) in values {
            let of = match names.len() {
                n if n == COMMANDS.len() => String::new(),
                _ => format!(" ({})", names.join(", ")),
            };
            text +=
                &format!("| `{known}`{of} | {} | {} | {why} |\n", or_none(&ours), or_none(&theirs));
        }
    }
    text
}

/// The tables of docs/trl.md. `COLLIMATE_DRAW=1` writes them.
#[test]
fn the_documentation_has_every_key() {
    let fate = |group: &Group| match group.fate {
        Fate::Same => "what happens anyway".to_string(),
        Fate::Notice(what) => what.to_string(),
        Fate::Becomes(flag) => format!("`{flag}`"),
    };
    let row = |group: &Group| {
        let keys: Vec<String> = group.keys.iter().map(|key| format!("`{key}`")).collect();
        let values: Vec<String> = group.values.iter().map(|value| format!("`{value}`")).collect();
        let values = if values.is_empty() { "any".into() } else { values.join(", ") };
        let of = match group.commands {
            [] => String::new(),
            commands => format!(" ({})", commands.join(", ")),
        };
        let (about, keys) = (group.about, keys.join(", "));
        format!("| {about}{of} | {keys} | {values} | {} |\n", fate(group))
    };
    let mut text =
        String::from("| about | keys | values | what becomes of it |\n|---|---|---|---|\n");
    text += &GROUPS.iter().map(row).collect::<String>();
    text += "\nWith any other value these are refused, as are those that stand here alone:\n\n";
    text += "| keys | instead |\n|---|---|\n";
    for (remedy, keys) in REMEDIES {
        let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
        text += &format!("| {} | {remedy} |\n", keys.join(", "));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/trl.md");
    let mut page = std::fs::read_to_string(path).unwrap();
    for (name, text) in [("keys", text), ("defaults", table_of_defaults())] {
        let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
        let (before, rest) = page.split_once(&start).unwrap();
        let (found, after) = rest.split_once(&end).unwrap();
        if std::env::var_os("COLLIMATE_DRAW").is_some() {
            page = format!("{before}{start}{text}{end}{after}");
            std::fs::write(path, &page).unwrap();
        } else {
            assert_eq!(found, text, "COLLIMATE_DRAW=1 writes the tables anew");
        }
    }
}

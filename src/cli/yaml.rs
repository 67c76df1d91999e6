use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_norway::{Mapping, Value};

use crate::train::TrainConfig;
use crate::{Error, Result};

const MAX_BYTES: u64 = 1 << 20;

/// The settings of a configuration file: names with underscores, and values as a flag has them.
pub fn read(path: &Path) -> Result<Vec<(String, String)>> {
    let io = |e| Error::io(path, e);
    let file = std::fs::File::open(path).map_err(io)?;
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(Error::file(path, "expected a configuration of at most 1 MiB"));
    }
    let mapping: Option<Mapping> =
        serde_norway::from_str(&text).map_err(|e| Error::file(path, one_line(&e.to_string())))?;
    let settings = mapping.unwrap_or_default().into_iter().map(|(key, value)| {
        let Value::String(key) = key else {
            return Err(Error::file(path, format!("expected a name, got {key:?}")));
        };
        let text = scalar(&value).or_else(|| serde_json::to_string(&value).ok());
        let Some(text) = text else {
            let message = format!("field `{key}`: expected a value, a list or a mapping of names");
            return Err(Error::file(path, message));
        };
        Ok((key.replace('-', "_"), text))
    });
    settings.collect()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn scalar(value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => s.clone(),
        Value::Sequence(items) => items.iter().map(scalar).collect::<Option<Vec<_>>>()?.join(","),
        _ => return None,
    })
}

/// The settings that a command ran with, for its `config.yaml`.
#[derive(Default)]
pub struct Given {
    /// The subcommand.
    pub command: String,
    /// The file that some of them came from.
    pub file: Option<PathBuf>,
    settings: Mapping,
    /// Those that are paths.
    paths: BTreeSet<String>,
}

impl Given {
    /// Every setting of a command, defaults included.
    pub fn new(command: &str, matches: &clap::ArgMatches) -> Self {
        const NOT_SETTINGS: [&str; 4] =
            ["config", "resume_from_checkpoint", "overwrite_output_dir", "allow_commands"];
        // By name: flags and a file that say the same give the same bytes.
        let mut paths = BTreeSet::new();
        let mut settings =
            BTreeMap::from([("learning_rate", Value::Null), ("output_dir", Value::Null)]);
        for id in matches.ids().map(clap::Id::as_str) {
            // Groups of flags have ids too, but no values of their own.
            let group = id.chars().next().is_some_and(char::is_uppercase);
            if group || NOT_SETTINGS.contains(&id) {
                continue;
            }
            let Ok(Some(raw)) = matches.try_get_raw(id) else { continue };
            let raw: Vec<_> = raw.map(|value| value.to_string_lossy()).collect();
            let text = raw.join(",");
            let path = matches.try_get_one::<PathBuf>(id).is_ok();
            if path {
                paths.insert(id.to_string());
            }
            // A folder may be called 007.
            let words = path || matches.try_get_one::<String>(id).is_ok();
            let value = match (text.parse::<bool>(), text.parse::<i64>(), text.parse::<f64>()) {
                _ if words => Value::from(text),
                (Ok(b), ..) => Value::from(b),
                (_, Ok(n), _) => Value::from(n),
                (.., Ok(x)) => Value::from(x),
                _ => Value::from(text),
            };
            settings.insert(id, value);
        }
        let settings = settings.into_iter().map(|(id, value)| (id.into(), value)).collect();
        let file = matches.try_get_one::<PathBuf>("config").ok().flatten().cloned();
        Given { command: command.to_string(), file, settings, paths }
    }

    /// The settings that have a value, as texts.
    pub fn values(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let text = |(name, value): (&Value, &Value)| Some((scalar(name)?, scalar(value)?));
        self.settings.iter().filter(|(_, value)| !value.is_null()).filter_map(text)
    }

    /// Whether a setting is a path.
    pub fn is_path(&self, name: &str) -> bool {
        self.paths.contains(name)
    }

    /// What differs from the settings of the run in `dir` and may differ: sentences for its user.
    pub fn changes(&self, dir: &std::path::Path, may_change: fn(&str) -> bool) -> Vec<String> {
        let then = std::fs::read_to_string(dir.join("config.yaml")).ok();
        let then: Option<Mapping> = then.and_then(|text| serde_norway::from_str(&text).ok());
        let Some(then) = then else { return Vec::new() };
        let text = |value: Option<&Value>| value.and_then(scalar).unwrap_or("nothing".into());
        let names: BTreeSet<String> =
            then.keys().chain(self.settings.keys()).filter_map(scalar).collect();
        let own = |name: &&String| {
            name.as_str() != "output_dir" && (may_change(name) || self.is_path(name))
        };
        let names = names.iter().filter(own);
        let changed = names.map(|name| (name, text(then.get(name)), text(self.settings.get(name))));
        let changed = changed.filter(|(_, then, now)| then != now);
        changed.map(|(name, then, now)| format!("{name} is {now}, it was {then}")).collect()
    }

    /// Checks that these of the settings are those of the run in `dir`, where there is one.
    pub fn agrees(&self, dir: &std::path::Path, names: &[&str]) -> Result<()> {
        let path = dir.join("config.yaml");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io(&path, e)),
        };
        let then: Mapping = serde_norway::from_str(&text)
            .map_err(|e| Error::file(&path, one_line(&e.to_string())))?;
        let text = |value: Option<&Value>| value.and_then(scalar).unwrap_or("nothing".into());
        let differ =
            names.iter().map(|&name| (name, text(then.get(name)), text(self.settings.get(name))));
        let differ: Vec<String> = differ
            .filter(|(_, then, now)| then != now)
            .map(|(name, then, now)| format!("{name}: expected {then}, got {now}"))
            .collect();
        match differ.is_empty() {
            true => Ok(()),
            false => Err(Error::file(&path, format!("another run's: {}", differ.join("; ")))),
        }
    }

    /// As a YAML file, with the output directory and the learning rate that were used.
    pub fn to_yaml(&self, config: &TrainConfig) -> Result<String> {
        let mut settings = self.settings.clone();
        let output_dir = config.output_dir.display().to_string();
        settings.insert("output_dir".into(), output_dir.into());
        if settings.get("learning_rate").is_none_or(Value::is_null) {
            settings.insert("learning_rate".into(), config.learning_rate.into());
        }
        let body = serde_norway::to_string(&settings)
            .map_err(|e| Error::file(&config.output_dir, e.to_string()))?;
        let allow = match settings.contains_key("reward_command") {
            true => " --allow-commands",
            false => "",
        };
        Ok(format!("# collimate {} --config config.yaml{allow}\n{body}", self.command))
    }
}

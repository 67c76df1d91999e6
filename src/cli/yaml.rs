use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;

use serde_norway::{Mapping, Value};

use super::trl::{self, Known};
use crate::train::TrainConfig;
use crate::{Error, Result};

const MAX_BYTES: u64 = 1 << 20;

/// What a configuration file said.
#[derive(Default)]
pub struct Config {
    path: PathBuf,
    keys: Vec<String>,
    /// What was accepted and has no effect.
    pub without_effect: Vec<String>,
}

impl Config {
    /// Names the file in an error about a flag that came from it.
    pub fn blame(&self, error: &clap::Error, message: String) -> String {
        let flag = error.get(clap::error::ContextKind::InvalidArg).map(|arg| arg.to_string());
        let key = flag.and_then(|flag| {
            let name = flag.trim_start_matches("--").split([' ', '=']).next()?.replace('-', "_");
            self.keys.contains(&name).then_some(name)
        });
        match key {
            Some(key) => format!("{}: field `{key}`: {message}", self.path.display()),
            None => message,
        }
    }
}

/// Puts the settings of `--config FILE` before the flags, which override them, and takes out those
/// of TRL's that are not ours.
pub fn expand(command: &clap::Command, args: Vec<OsString>) -> Result<(Vec<OsString>, Config)> {
    let found = args.iter().enumerate().skip(1).find_map(|(at, arg)| {
        arg.to_str().and_then(|name| command.find_subcommand(name)).map(|sub| (at, sub))
    });
    let Some((at, sub)) = found else { return Ok((args, Config::default())) };
    let mut config = Config::default();
    let own = without_trl(sub, &args[at + 1..], &mut config)?;
    let mut expanded = args[..=at].to_vec();
    if let Some(path) = config_path(&own) {
        config.path = path;
        expanded.extend(read(sub, &mut config)?);
    }
    expanded.extend(own);
    Ok((expanded, config))
}

fn knows(command: &clap::Command, flag: &str) -> bool {
    command.get_arguments().any(|arg| {
        arg.get_long() == Some(flag) || arg.get_all_aliases().is_some_and(|all| all.contains(&flag))
    })
}

/// The flags that are ours.
fn without_trl(
    command: &clap::Command,
    args: &[OsString],
    config: &mut Config,
) -> Result<Vec<OsString>> {
    let mut own = Vec::new();
    let mut rest = args.iter().peekable();
    while let Some(arg) = rest.next() {
        let flag = arg.to_str().and_then(|text| text.strip_prefix("--")).unwrap_or_default();
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        let key = name.replace('-', "_");
        if knows(command, name) || trl::known(&key, "").is_none() {
            own.push(arg.clone());
            continue;
        }
        let mut next = || rest.next_if(|next| !next.to_string_lossy().starts_with("--"));
        let value = match value {
            Some(value) => value.to_string(),
            None => next().map_or("true".into(), |value| value.to_string_lossy().into_owned()),
        };
        match trl::known(&key, &value) {
            Some(Known::Refused(same)) => {
                let message = format!("--{name}: {}", trl::refusal(same, &value));
                return Err(Error::Unsupported(message));
            }
            Some(Known::NoEffect) => config.without_effect.push(key),
            _ => {}
        }
    }
    Ok(own)
}

/// The settings of a configuration file as flags.
fn read(sub: &clap::Command, config: &mut Config) -> Result<Vec<OsString>> {
    let path = &config.path;
    let io = |e| Error::io(path, e);
    let file = std::fs::File::open(path).map_err(io)?;
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(Error::file(path, "expected a configuration of at most 1 MiB"));
    }
    let mapping: Option<Mapping> =
        serde_norway::from_str(&text).map_err(|e| Error::file(path, one_line(&e.to_string())))?;
    let mapping = mapping.unwrap_or_default();
    let mut flags = Vec::new();
    for (key, value) in &mapping {
        let Value::String(key) = key else {
            return Err(Error::file(&config.path, format!("expected a name, got {key:?}")));
        };
        let key = key.replace('-', "_");
        if key == "config" {
            return Err(Error::file(&config.path, "field `config`: a file cannot name another"));
        }
        let flag = key.replace('_', "-");
        let text = scalar(value);
        if knows(sub, &flag) {
            let value = text.ok_or_else(|| {
                let message = format!("field `{key}`: expected a value or a list of values");
                Error::file(&config.path, message)
            })?;
            if value != "null" {
                flags.push(format!("--{flag}={value}").into());
            }
            config.keys.push(key);
            continue;
        }
        let value = text.unwrap_or_else(|| "settings of its own".into());
        match trl::known(&key, &value) {
            Some(Known::NoEffect) => config.without_effect.push(key),
            Some(Known::Same) => {}
            Some(Known::Refused(same)) => {
                let message =
                    format!("field `{key}`: not supported: {}", trl::refusal(same, &value));
                return Err(Error::file(&config.path, message));
            }
            None => return Err(Error::file(&config.path, unknown(sub, &key))),
        }
    }
    Ok(flags)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn config_path(args: &[OsString]) -> Option<PathBuf> {
    let mut path = None;
    for (i, arg) in args.iter().enumerate() {
        if arg == "--config" {
            path = args.get(i + 1).map(PathBuf::from);
        } else if let Some(value) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            path = Some(PathBuf::from(value));
        }
    }
    path
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

fn unknown(command: &clap::Command, key: &str) -> String {
    let names = command.get_arguments().filter_map(|arg| arg.get_long());
    let names: Vec<String> = names.map(|name| name.replace('-', "_")).collect();
    let nearest = names
        .iter()
        .map(|name| (strsim::jaro_winkler(name, key), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity > 0.7);
    match nearest {
        Some((_, name)) => format!("field `{key}`: unknown; did you mean `{name}`?"),
        None => format!("field `{key}`: unknown"),
    }
}

/// The settings that a command ran with, for its `config.yaml`.
#[derive(Default)]
pub struct Given {
    /// The subcommand.
    pub command: String,
    settings: Mapping,
    /// Those that are paths.
    paths: BTreeSet<String>,
}

impl Given {
    /// Every setting of a command, defaults included.
    pub fn new(command: &str, matches: &clap::ArgMatches) -> Self {
        const NOT_SETTINGS: [&str; 3] =
            ["config", "resume_from_checkpoint", "overwrite_output_dir"];
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
        Given { command: command.to_string(), settings, paths }
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
        Ok(format!("# collimate {} --config config.yaml\n{body}", self.command))
    }
}

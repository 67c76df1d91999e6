//! Flags and `--config FILE` to the flags that clap reads: TRL's keys are taken out or become ours.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::trl::{self, Fate, Meaning};
use super::yaml;
use crate::{Error, Result};

/// Settings that are lists: on the command line several words, in ours one with commas.
const LISTS: [&str; 6] = [
    "loss-type",
    "loss-weights",
    "lora-target-modules",
    "lora-exclude-modules",
    "lora-modules-to-save",
    "lora-layers",
];

/// What was given beside the flags themselves.
#[derive(Default)]
pub struct Settings {
    path: PathBuf,
    keys: Vec<String>,
    /// Keys that were accepted and do nothing, by what is said of them.
    notices: Vec<(&'static str, Vec<String>)>,
    /// What is refused: the key as it was written, and why.
    refused: Vec<String>,
}

impl Settings {
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

    /// A line for each kind of key that was accepted and does nothing.
    pub fn notices(&self) -> impl Iterator<Item = String> {
        self.notices.iter().map(|(what, keys)| format!("{what}: {}", keys.join(", ")))
    }

    fn notice(&mut self, what: &'static str, key: &str) {
        let at = self.notices.iter().position(|(said, _)| *said == what).unwrap_or_else(|| {
            self.notices.push((what, Vec::new()));
            self.notices.len() - 1
        });
        let keys = &mut self.notices[at].1;
        if !keys.iter().any(|said| said == key) {
            keys.push(key.into());
        }
    }
}

/// Puts the settings of `--config FILE` before the flags, which override them. TRL's keys become ours or
/// are taken out; those that are refused are so all at once.
///
/// # Errors
/// [`Error::Unsupported`] for keys that are refused, and those of the file.
pub fn expand(command: &clap::Command, args: Vec<OsString>) -> Result<(Vec<OsString>, Settings)> {
    let found = args.iter().enumerate().skip(1).find_map(|(at, arg)| {
        arg.to_str().and_then(|name| command.find_subcommand(name)).map(|sub| (at, sub))
    });
    let Some((mut at, mut sub)) = found else { return Ok((args, Settings::default())) };
    // Some commands have commands of their own.
    while let Some(inner) = args.get(at + 1).and_then(|arg| sub.find_subcommand(arg)) {
        (at, sub) = (at + 1, inner);
    }
    let mut settings = Settings::default();
    let own = of_flags(sub, &args[at + 1..], &mut settings);
    let mut expanded = args[..=at].to_vec();
    if let Some(path) = config_path(&own) {
        let allow = |arg: &OsString| arg == "--allow-commands" || arg == "--allow-commands=true";
        let commands = own.iter().any(allow);
        expanded.extend(of_file(sub, &path, commands, &mut settings)?);
        settings.path = path;
    }
    if !settings.refused.is_empty() {
        return Err(Error::Unsupported(settings.refused.join("; ")));
    }
    expanded.extend(own);
    Ok((expanded, settings))
}

/// Whether the command has this flag.
fn knows(command: &clap::Command, flag: &str) -> bool {
    command.get_arguments().any(|arg| {
        arg.get_long() == Some(flag) || arg.get_all_aliases().is_some_and(|all| all.contains(&flag))
    })
}

/// `no_x` switches `x` off, where there is no other `no_x`.
fn switched_off<'a>(command: &clap::Command, key: &'a str) -> Option<&'a str> {
    let name = key.strip_prefix("no_")?;
    let known = |key: &str| {
        knows(command, &key.replace('_', "-"))
            || trl::meaning(command.get_name(), key, "").is_some()
    };
    (!known(key) && known(name)).then_some(name)
}

/// A key that is not the command's own, from `place`: the flag that it becomes, if it does. False where
/// nobody knows it.
fn of_trl(
    command: &clap::Command,
    (key, value): (&str, &str),
    place: &str,
    settings: &mut Settings,
    flags: &mut Vec<OsString>,
) -> bool {
    match trl::meaning(command.get_name(), key, value) {
        None => return false,
        Some(Meaning::Accepted(Fate::Same)) => {}
        Some(Meaning::Accepted(Fate::Notice(what))) => settings.notice(what, key),
        Some(Meaning::Accepted(Fate::Becomes(flag))) => flags.push(flag.into()),
        Some(Meaning::Flag(flag)) => flags.push(flag.into()),
        Some(Meaning::Refused(remedy)) => {
            let value: String = match value.char_indices().nth(40) {
                Some((at, _)) => format!("{}...", &value[..at]),
                None => value.into(),
            };
            settings.refused.push(format!("{place}: {} ({remedy})", one_line(&value)));
        }
    }
    true
}

/// The flags that are ours, of those given.
fn of_flags(command: &clap::Command, args: &[OsString], settings: &mut Settings) -> Vec<OsString> {
    let mut own = Vec::new();
    let mut rest = args.iter().peekable();
    while let Some(arg) = rest.next() {
        let Some(flag) = arg.to_str().and_then(|text| text.strip_prefix("--")) else {
            own.push(arg.clone());
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        let ours = knows(command, name);
        if ours && !LISTS.contains(&name) {
            own.push(arg.clone());
            continue;
        }
        let key = name.replace('-', "_");
        let off = switched_off(command, &key);
        if !ours && off.is_none() && trl::meaning(command.get_name(), &key, "").is_none() {
            own.push(arg.clone());
            continue;
        }
        let mut values: Vec<String> = value.map(str::to_string).into_iter().collect();
        // A list in words has no `=`.
        while value.is_none() && rest.peek().is_some_and(|next| !is_flag(next)) {
            values.extend(rest.next().map(|value| value.to_string_lossy().into_owned()));
        }
        if ours {
            own.push(match values.is_empty() {
                true => arg.clone(),
                false => format!("--{name}={}", values.join(",")).into(),
            });
            continue;
        }
        let value = if values.is_empty() { "true".into() } else { values.join(",") };
        match off {
            Some(key) => turn_off(command, (key, &value), &format!("--{name}"), settings, &mut own),
            None => {
                of_trl(command, (&key, &value), &format!("--{name}"), settings, &mut own);
            }
        }
    }
    own
}

fn is_flag(arg: &OsString) -> bool {
    arg.to_string_lossy().starts_with("--")
}

/// `no_key: value`.
fn turn_off(
    command: &clap::Command,
    (key, value): (&str, &str),
    place: &str,
    settings: &mut Settings,
    flags: &mut Vec<OsString>,
) {
    let value = if value.eq_ignore_ascii_case("false") { "true" } else { "false" };
    let flag = key.replace('_', "-");
    if knows(command, &flag) {
        flags.push(format!("--{flag}={value}").into());
    } else {
        of_trl(command, (key, value), place, settings, flags);
    }
}

/// The settings of a configuration file as flags.
fn of_file(
    command: &clap::Command,
    path: &Path,
    commands: bool,
    settings: &mut Settings,
) -> Result<Vec<OsString>> {
    let mut flags = Vec::new();
    let mut first = true;
    for (key, value) in yaml::read(path)? {
        if key == "config" {
            return Err(Error::file(path, "field `config`: a file cannot name another"));
        }
        if key == "allow_commands" {
            let message = "field `allow_commands`: expected on the command line alone";
            return Err(Error::file(path, message));
        }
        // The file is named once.
        let file = if first { format!("{}: ", path.display()) } else { String::new() };
        let place = format!("{file}field `{key}`");
        let refused = settings.refused.len();
        let flag = key.replace('_', "-");
        if knows(command, &flag) {
            if let ("reward_command", false) = (key.as_str(), commands || value == "null") {
                settings.refused.push(format!(
                    "{place}: it names a program, which a file may do only with --allow-commands"
                ));
            }
            match (key.as_str(), value.as_str()) {
                // No limit but the model's own.
                ("max_length", "null") => flags.push(format!("--{flag}={}", 1 << 30).into()),
                (_, "null") => {}
                _ => flags.push(format!("--{flag}={value}").into()),
            }
            settings.keys.push(key);
        } else if let Some(key) = switched_off(command, &key) {
            turn_off(command, (key, &value), &place, settings, &mut flags);
        } else if !of_trl(command, (&key, &value), &place, settings, &mut flags) {
            settings.refused.push(format!("{place}: {}", unknown(command, &key)));
        }
        first &= settings.refused.len() == refused;
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

fn unknown(command: &clap::Command, key: &str) -> String {
    let names = command.get_arguments().filter_map(|arg| arg.get_long());
    let names = names.map(|name| name.replace('-', "_"));
    let names = names.chain(trl::names().map(str::to_string));
    let nearest = names
        .map(|name| (strsim::jaro_winkler(&name, key), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity > 0.7);
    match nearest {
        Some((_, name)) => format!("unknown; did you mean `{name}`?"),
        None => "unknown".into(),
    }
}

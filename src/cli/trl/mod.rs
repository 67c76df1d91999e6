//! TRL's keys: which of them are settings of ours under another name, which cannot change the result, and
//! which are refused, with what to do in their place.

mod table;
#[cfg(test)]
mod tests;

pub use table::Fate;
use table::{GROUPS, Group, REMEDIES};

/// What a key with a value means here.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It is accepted so.
    Accepted(Fate),
    /// It is this flag of ours, with its value.
    Flag(String),
    /// It would change the result, and cannot: the remedy.
    Refused(&'static str),
}

/// Looks up a key that is not a setting of `command`'s own.
pub fn meaning(command: &str, key: &str, given: &str) -> Option<Meaning> {
    let groups = || GROUPS.iter().filter(|group| group.is_of(command) && group.has(key));
    let remedy = REMEDIES.iter().find(|(_, keys)| keys.contains(&key)).map(|(remedy, _)| *remedy);
    if groups().next().is_none() && remedy.is_none() {
        return None;
    }
    let value = given.to_ascii_lowercase();
    if is_absent(&value) {
        return Some(Meaning::Accepted(Fate::Same));
    }
    // A reward function that is a model's folder is one that is here.
    if key == "reward_funcs" && std::path::Path::new(given).is_dir() {
        return Some(Meaning::Flag(format!("--reward-model-path={given}")));
    }
    if let Some(group) = groups().find(|group| group.takes(&value)) {
        return Some(Meaning::Accepted(group.fate));
    }
    if inner_keys_are_harmless(command, key, &value) {
        return Some(Meaning::Accepted(Fate::Notice("no effect here")));
    }
    Some(Meaning::Refused(remedy.unwrap_or("leave it out")))
}

/// Every name in the table, for suggestions.
pub fn names() -> impl Iterator<Item = &'static str> {
    let groups = GROUPS.iter().flat_map(|group| group.keys);
    groups.chain(REMEDIES.iter().flat_map(|(_, keys)| *keys)).copied()
}

/// Whether a value says that the key is not given.
fn is_absent(value: &str) -> bool {
    matches!(value, "" | "null" | "none" | "[]" | "{}")
}

/// Settings within `model_init_kwargs` and its like are told apart as if they stood alone.
fn inner_keys_are_harmless(command: &str, key: &str, value: &str) -> bool {
    const OURS: [&str; 3] = ["device_map", "revision", "max_memory"];
    let mapping = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(value);
    key.ends_with("model_init_kwargs")
        && mapping.is_ok_and(|mapping| {
            mapping.iter().all(|(key, value)| {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
                OURS.contains(&key.as_str())
                    || matches!(meaning(command, key, &value), Some(Meaning::Accepted(_)))
            })
        })
}

impl Group {
    fn is_of(&self, command: &str) -> bool {
        self.commands.is_empty() || self.commands.contains(&command)
    }

    fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|name| match name.strip_suffix('*') {
            Some(start) => key.starts_with(start),
            None => *name == key,
        })
    }

    fn takes(&self, value: &str) -> bool {
        self.values.is_empty() || self.values.contains(&value)
    }
}

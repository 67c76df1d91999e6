//! Cells of a table of texts as the values that they stand for.

use serde_json::{Map, Value};

/// Columns whose cells are numbers or truth values.
const SCALARS: [&str; 4] = ["label", "margin", "weight", "target_prob"];
/// Columns that are never text alone: a text in them is JSON.
const LISTS: [&str; 7] = [
    "messages",
    "conversations",
    "responses",
    "ranks",
    "probabilities",
    "tools",
    "chat_template_kwargs",
];
/// Columns that may be text or a conversation.
const EITHER: [&str; 4] = ["prompt", "chosen", "rejected", "completion"];

/// Turns the texts of a row of cells into values where the column's name says that they are: truth values in
/// Python's spelling or JSON's, numbers, lists as JSON, nothing where a cell is empty. All else stays text.
pub(super) fn typed(row: &mut Map<String, Value>) {
    for (name, value) in row.iter_mut() {
        let Value::String(text) = &*value else { continue };
        let (name, trimmed) = (name.as_str(), text.trim());
        let json = || serde_json::from_str::<Value>(trimmed).ok();
        let other = if SCALARS.contains(&name) {
            match trimmed {
                "" => Some(Value::Null),
                "True" | "TRUE" => Some(true.into()),
                "False" | "FALSE" => Some(false.into()),
                _ => json().filter(|value| value.is_number() || value.is_boolean()),
            }
        } else if LISTS.contains(&name) {
            if trimmed.is_empty() { Some(Value::Null) } else { json() }
        } else if EITHER.contains(&name) && trimmed.starts_with(['[', '{']) {
            json().filter(super::chat::is_conversation)
        } else {
            None
        };
        if let Some(other) = other {
            *value = other;
        }
    }
}

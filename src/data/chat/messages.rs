//! Lists of messages, as rows hold them.

use minijinja::Value;
use serde_json::{Map, Value as Json, json};

use super::values::value;
use crate::data::fields::kind;

/// Names under which a message's reasoning is given; templates read the first, gpt-oss's the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A conversation, with what else its template is told.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// Its messages.
    pub(super) messages: Vec<Value>,
    /// Who says each of them.
    pub(super) roles: Vec<String>,
    /// The tools that the assistant may call; null where there are none.
    pub(super) tools: Json,
    /// Variables of the template beside those.
    pub(super) variables: Map<String, Json>,
    /// Its size, by which what a template may cost is bounded.
    pub(super) bytes: usize,
}

impl Conversation {
    /// Takes a list of messages, `role` and `content` or `from` and `value`. A field that is null counts as
    /// absent.
    ///
    /// # Errors
    /// What was expected and what came.
    pub fn new(list: &Json) -> Result<Self, String> {
        let mut conversation = Conversation::default();
        conversation.extend(list)?;
        Ok(conversation)
    }

    /// With tools, as a list of JSON schemas or the text of one.
    ///
    /// # Errors
    /// What was expected and what came.
    pub fn with_tools(mut self, tools: Option<&Json>) -> Result<Self, String> {
        let parsed: Json = match tools {
            None | Some(Json::Null) => return Ok(self),
            Some(Json::String(text)) if text.is_empty() => return Ok(self),
            Some(Json::String(text)) => serde_json::from_str(text)
                .map_err(|_| "expected a list of tools, or the JSON of one, got other text")?,
            Some(list) => list.clone(),
        };
        match &parsed {
            Json::Array(list) if list.is_empty() => Ok(self),
            Json::Array(list) if list.iter().all(Json::is_object) => {
                self.bytes += parsed.to_string().len();
                self.tools = parsed;
                Ok(self)
            }
            other => Err(format!("expected a list of tools, each an object, got {}", kind(other))),
        }
    }

    /// With variables that only this conversation's template sees.
    pub fn with_variables(mut self, variables: Map<String, Json>) -> Self {
        self.bytes += Json::Object(variables.clone()).to_string().len();
        self.variables = variables;
        self
    }

    /// This conversation, gone on with by other messages.
    ///
    /// # Errors
    /// As [`Conversation::new`].
    pub fn followed_by(&self, list: &Json) -> Result<Self, String> {
        let mut all = self.clone();
        all.extend(list)?;
        Ok(all)
    }

    /// How many messages it has; never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Who says each message.
    pub fn roles(&self) -> &[String] {
        &self.roles
    }

    fn extend(&mut self, list: &Json) -> Result<(), String> {
        let single = std::slice::from_ref(list);
        let list = match list {
            Json::Array(list) if !list.is_empty() => list,
            Json::Array(_) => return Err("expected a list of messages, got an empty one".into()),
            Json::Object(_) => single,
            other => return Err(format!("expected a list of messages, got {}", kind(other))),
        };
        for (i, one) in list.iter().enumerate() {
            let at = |what: String| format!("message {}: {what}", i + 1);
            let message = message(one).map_err(at)?;
            let role = message.get("role").and_then(Json::as_str).unwrap_or_default().to_string();
            let message = Json::Object(message);
            self.bytes += size(&message);
            self.messages.push(value(&message));
            self.roles.push(role);
        }
        Ok(())
    }
}

/// Whether a field holds a conversation: a list that begins with a message, or one message alone.
pub fn is_conversation(field: &Json) -> bool {
    let message = |one: &Json| one.get("role").is_some() || one.get("from").is_some();
    match field {
        Json::Array(list) => list.first().is_some_and(message),
        Json::Object(_) => message(field),
        _ => false,
    }
}

/// A row with the columns of TRL: conversations under other names, and messages that hold the answer too,
/// are put where they belong. Rows of texts stay as they are.
pub fn canonical(row: &mut Map<String, Json>) {
    if row.get("conversations").is_some_and(Json::is_array) && !row.contains_key("messages") {
        rename(row, "conversations", "messages");
    }
    let conversation =
        |row: &Map<String, Json>, name: &str| row.get(name).is_some_and(is_conversation);
    // A published layout gives the prompt as text beside two whole conversations that begin with it.
    let whole =
        |name: &str| row.get(name).and_then(Json::as_array).is_some_and(|all| all.len() > 1);
    if row.get("prompt").is_some_and(Json::is_string)
        && ["chosen", "rejected"].into_iter().all(|name| conversation(row, name) && whole(name))
    {
        row.shift_remove("prompt");
    } else if conversation(row, "messages") && !row.contains_key("prompt") {
        if conversation(row, "chosen") && conversation(row, "rejected") {
            rename(row, "messages", "prompt");
        } else if row.contains_key("label")
            && !row.contains_key("completion")
            && let Some(Json::Array(mut all)) = row.shift_remove("messages")
        {
            let last = all.pop().unwrap_or_default();
            row.insert("prompt".into(), Json::Array(all));
            row.insert("completion".into(), json!([last]));
        }
    }
}

fn rename(row: &mut Map<String, Json>, from: &str, to: &str) {
    if let Some(value) = row.shift_remove(from) {
        row.insert(to.into(), value);
    }
}

/// A message with the names that templates read.
fn message(json: &Json) -> Result<Map<String, Json>, String> {
    let Json::Object(own) = json else {
        return Err(format!("expected an object with `role` and `content`, got {}", kind(json)));
    };
    let mut message = Map::new();
    for (name, value) in own.iter().filter(|(_, value)| !value.is_null()) {
        let name = match name.as_str() {
            "from" if !own.contains_key("role") => "role",
            "value" if !own.contains_key("content") => "content",
            name => name,
        };
        message.insert(name.into(), value.clone());
    }
    match message.get_mut("role") {
        Some(Json::String(role)) => {
            if !own.contains_key("role") {
                *role = chatml(role).into();
            }
        }
        other => {
            let got = other.map_or("none".into(), |other| kind(other));
            return Err(format!("expected a `role` that is text, got {got}"));
        }
    }
    check_content(&message)?;
    let reasoning = REASONING.into_iter().find_map(|name| message.get(name)).cloned();
    if let Some(reasoning) = reasoning {
        message.entry("thinking").or_insert_with(|| reasoning.clone());
        message.insert("reasoning_content".into(), reasoning);
    }
    Ok(message)
}

/// The names of ShareGPT's speakers as templates know them.
fn chatml(from: &str) -> &str {
    match from {
        "human" => "user",
        "gpt" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
        "observation" | "function_response" => "tool",
        other => other,
    }
}

fn check_content(message: &Map<String, Json>) -> Result<(), String> {
    match message.get("content") {
        // What an assistant does may be a call alone.
        None if message.keys().any(|name| name != "role") => Ok(()),
        None => Err("expected a `content`, got none".into()),
        Some(Json::String(_)) => Ok(()),
        Some(Json::Array(parts)) => {
            let text =
                |part: &Json| part.is_string() || part.get("text").is_some_and(Json::is_string);
            match parts.iter().find(|part| !text(part)) {
                None => Ok(()),
                Some(part) => {
                    let got = part.get("type").and_then(Json::as_str).unwrap_or("something else");
                    Err(format!("`content`: expected parts of text, got {got}"))
                }
            }
        }
        Some(other) => {
            Err(format!("`content`: expected text or a list of parts, got {}", kind(other)))
        }
    }
}

/// A message that ends in a tag, and its text without.
pub fn tagged(message: &Value, tag: &str) -> Result<(Value, String), String> {
    let failed = |e: minijinja::Error| e.to_string();
    let content = message.get_attr("content").map_err(failed)?;
    let (content, text) = if let Some(text) = content.as_str() {
        (Value::from(format!("{text}{tag}")), text.to_string())
    } else {
        let mut parts: Vec<Value> = content.try_iter().map_err(failed)?.collect();
        let text_of = |part: &Value| part.get_attr("text").ok()?.as_str().map(String::from);
        let last = parts.iter_mut().rev().find_map(|part| Some((text_of(part)?, part)));
        let (text, part) = last.ok_or("the last message has no text that could go on")?;
        *part = with(part, "text", Value::from(format!("{text}{tag}"))).map_err(failed)?;
        (parts.into_iter().collect(), text)
    };
    Ok((with(message, "content", content).map_err(failed)?, text))
}

/// A mapping with one value replaced.
fn with(mapping: &Value, name: &str, value: Value) -> Result<Value, minijinja::Error> {
    let mut pairs = Vec::new();
    for key in mapping.try_iter()? {
        let own = mapping.get_item(&key)?;
        pairs.push(if key.as_str() == Some(name) { (key, value.clone()) } else { (key, own) });
    }
    Ok(Value::from_pairs(pairs))
}

/// Bytes of all texts in a value.
fn size(json: &Json) -> usize {
    match json {
        Json::String(text) => text.len() + 8,
        Json::Array(list) => 8 + list.iter().map(size).sum::<usize>(),
        Json::Object(map) => {
            8 + map.iter().map(|(key, inner)| key.len() + size(inner)).sum::<usize>()
        }
        _ => 8,
    }
}

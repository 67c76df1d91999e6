//! This world as conversations: `chat.jsonl` for `collimate sft`, `chat-pairs.jsonl` for `collimate dpo`, and
//! in `chat_template.jinja` how they are written.

use std::path::Path;

use serde_json::{Value, json};

use super::files;
use crate::Result;

/// What the user says stands between a question mark and a colon; what the assistant says is marked.
const TEMPLATE: &str = "\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content + eos_token }}{%- endgeneration %}
    {%- else %}
        {{- '? ' + message.content + ':' }}
    {%- endif %}
{%- endfor %}
";

fn said(role: &str, text: &str) -> Value {
    json!({ "role": role, "content": text })
}

/// Writes the template, and conversations of two turns: each a prompt and its completion.
pub fn write(dir: &Path, turns: &[[String; 2]]) -> Result<()> {
    files::write(&dir.join("chat_template.jinja"), TEMPLATE)?;
    let rows = turns.chunks(2).map(|turns| {
        let turns = turns.iter();
        let messages =
            turns.flat_map(|[prompt, text]| [said("user", prompt), said("assistant", text)]);
        json!({ "messages": messages.collect::<Vec<_>>() })
    });
    files::rows(&dir.join("chat.jsonl"), rows)
}

/// A pair as conversations.
pub fn pair(pair: &Value) -> Value {
    let text = |name: &str| pair[name].as_str().unwrap_or_default();
    json!({
        "prompt": [said("user", text("prompt"))],
        "chosen": [said("assistant", text("chosen"))],
        "rejected": [said("assistant", text("rejected"))],
    })
}

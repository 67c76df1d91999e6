//! Rows of conversations as records of texts.

use serde_json::{Map, Value};

use super::chat::{ChatTemplate, Conversation, is_conversation};
use super::fields::{Fields, kind};
use super::formats::{ExampleText, Format, PairText, Record, UnpairedText};
use crate::Result;

/// Fields that hold a text, or a conversation.
const EITHER: [&str; 4] = ["prompt", "chosen", "rejected", "completion"];

/// Whether a row of this format holds conversations.
pub(super) fn conversational(format: Format, row: &Map<String, Value>) -> bool {
    match format {
        Format::Messages => true,
        Format::Pairs
        | Format::ImplicitPairs
        | Format::Unpaired
        | Format::PromptCompletion
        | Format::Prompts => EITHER.iter().any(|name| row.get(*name).is_some_and(is_conversation)),
        _ => false,
    }
}

/// The record of a row of conversations: texts as the template makes them. `assistant_only` asks what of
/// a text to imitate is the assistant's.
pub(super) fn record(
    format: Format,
    fields: &Fields,
    template: &ChatTemplate,
    assistant_only: bool,
) -> Result<Record> {
    let rows = Rows { fields, template };
    Ok(match format {
        Format::Pairs | Format::ImplicitPairs => {
            let (prompt, [chosen, rejected]) = match format {
                Format::Pairs => {
                    let prompt = rows.conversation("prompt")?;
                    let both = ["chosen", "rejected"].map(|name| rows.answer(&prompt, name));
                    let [chosen, rejected] = both;
                    (prompt, [chosen?, rejected?])
                }
                _ => rows.implicit()?,
            };
            let (prompt, [chosen, rejected]) =
                rows.answered(&prompt, [chosen, rejected], ["chosen", "rejected"])?;
            let [margin, weight, target_prob] = fields.of_a_pair()?;
            let candidates = None;
            Record::Pair(PairText {
                prompt,
                chosen,
                rejected,
                margin,
                weight,
                target_prob,
                candidates,
            })
        }
        Format::Unpaired => {
            let desirable = fields.label("label")?;
            let prompt = rows.conversation("prompt")?;
            let whole = rows.answer(&prompt, "completion")?;
            let (prompt, [completion]) = rows.answered(&prompt, [whole], ["completion"])?;
            Record::Unpaired(UnpairedText { prompt, completion, desirable })
        }
        Format::PromptCompletion => {
            let prompt = rows.conversation("prompt")?;
            let whole = rows.answer(&prompt, "completion")?;
            let marked = assistant_only
                .then(|| template.assistant(&whole).map_err(|e| fields.error("completion", e)));
            let (prompt, [completion]) = rows.answered(&prompt, [whole], ["completion"])?;
            let learnt = marked.transpose()?.map(|marked| marked.assistant);
            Record::Example(ExampleText { prompt: Some(prompt), completion, learnt })
        }
        Format::Prompts => {
            let prompt = rows.conversation("prompt")?;
            Record::Prompt(template.prompt(&prompt).map_err(|e| fields.error("prompt", e))?)
        }
        // What is left is `messages`: no other format is conversational.
        _ => {
            let whole = rows.conversation("messages")?;
            let bad = |e| fields.error("messages", e);
            let (text, learnt) = match assistant_only {
                true => {
                    let marked = template.assistant(&whole).map_err(bad)?;
                    (marked.text, Some(marked.assistant))
                }
                false => {
                    let ending = super::chat::Ending::Closed;
                    (template.render(&whole, whole.len(), ending).map_err(bad)?.text, None)
                }
            };
            if text.is_empty() {
                return Err(bad("the chat template makes no text of it".into()));
            }
            Record::Example(ExampleText { prompt: None, completion: text, learnt })
        }
    })
}

struct Rows<'a> {
    fields: &'a Fields<'a>,
    template: &'a ChatTemplate,
}

impl Rows<'_> {
    /// The conversation in a field, with the row's tools and variables.
    fn conversation(&self, name: &str) -> Result<Conversation> {
        self.of(name, self.value(name)?)
    }

    fn value(&self, name: &str) -> Result<&Value> {
        let expected = "expected a list of messages";
        match self.fields.row.get(name) {
            Some(value @ (Value::Array(_) | Value::Object(_))) => Ok(value),
            Some(other) => {
                let message = format!("{expected}, as in the first row, got {}", kind(other));
                Err(self.fields.error(name, message))
            }
            None => Err(self.fields.error(name, format!("{expected}, got no such field"))),
        }
    }

    fn of(&self, name: &str, list: &Value) -> Result<Conversation> {
        let fields = self.fields;
        let conversation = Conversation::new(list).map_err(|e| fields.error(name, e))?;
        let tools = fields.row.get("tools");
        let conversation = conversation.with_tools(tools).map_err(|e| fields.error("tools", e))?;
        match fields.row.get("chat_template_kwargs") {
            None | Some(Value::Null) => Ok(conversation),
            Some(Value::Object(variables)) => Ok(conversation.with_variables(variables.clone())),
            Some(other) => {
                let message = format!("expected an object, got {}", kind(other));
                Err(fields.error("chat_template_kwargs", message))
            }
        }
    }

    /// A prompt with the answer in a field behind it.
    fn answer(&self, prompt: &Conversation, name: &str) -> Result<Conversation> {
        prompt.followed_by(self.value(name)?).map_err(|e| self.fields.error(name, e))
    }

    /// Two whole conversations, of which the messages that they begin with are the prompt: all that are the
    /// same, but for the last one of the shorter.
    fn implicit(&self) -> Result<(Conversation, [Conversation; 2])> {
        let list = |name| match self.value(name)? {
            Value::Array(list) => Ok(list),
            _ => Err(self.fields.error(name, "expected a list of messages, got one message")),
        };
        let (chosen, rejected) = (list("chosen")?, list("rejected")?);
        let most = chosen.len().min(rejected.len()).saturating_sub(1);
        let same = chosen.iter().zip(rejected).take(most).take_while(|(a, b)| a == b).count();
        if same == 0 {
            let message = "expected conversations that begin with the same message, their prompt";
            return Err(self.fields.error("rejected", message));
        }
        let prompt = self.of("chosen", &Value::Array(chosen[..same].to_vec()))?;
        let both = [("chosen", chosen), ("rejected", rejected)].map(|(name, list)| {
            let rest = Value::Array(list[same..].to_vec());
            prompt.followed_by(&rest).map_err(|e| self.fields.error(name, e))
        });
        let [chosen, rejected] = both;
        Ok((prompt, [chosen?, rejected?]))
    }

    /// The texts of a prompt and its answers, which stand in these fields.
    fn answered<const N: usize>(
        &self,
        prompt: &Conversation,
        wholes: [Conversation; N],
        names: [&str; N],
    ) -> Result<(String, [String; N])> {
        let answered = self.template.answered(prompt, &wholes).map_err(|(which, e)| {
            self.fields.error(which.map_or("prompt", |which| names[which]), e)
        })?;
        let mut answers = answered.answers.into_iter();
        Ok((answered.prompt, std::array::from_fn(|_| answers.next().unwrap_or_default())))
    }
}

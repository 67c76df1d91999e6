//! Conversations and the templates that make texts of them, as `transformers` and TRL do.
//!
//! | step | module |
//! |---|---|
//! | a model's template, compiled and bounded | [`Chat`], [`ChatTemplate`] |
//! | lists of messages out of a row | `messages` |
//! | a prompt and its answers, and what of a conversation is the assistant's | `render` |

mod clock;
mod engine;
mod json;
mod messages;
mod methods;
mod render;
mod source;
mod tags;
mod values;

use std::time::SystemTime;

use serde_json::{Map, Value as Json};

use crate::{Error, Result};
use engine::{Context, Engine};

pub use engine::{MAX_TEMPLATE_BYTES, Rendered};
pub use messages::Conversation;
pub(super) use messages::{canonical, is_conversation};
pub use render::Answered;
pub use source::Chat;

/// How the text of a conversation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// After its last message.
    Closed,
    /// With what begins an answer of the assistant.
    GenerationPrompt,
    /// Inside its last message, which is to go on.
    Continued,
}

/// What a template writes last into a message that is to go on; `transformers` uses the same words.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// A chat template, with the model's special tokens.
pub struct ChatTemplate {
    engine: Engine,
    /// The one for conversations with tools, where the model has one.
    with_tools: Option<Engine>,
    special: Map<String, Json>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("special", &self.special).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template; `special` are the special tokens by their names there (`bos_token`, ...). Its
    /// `strftime_now` tells `now`, or the time where there is none.
    ///
    /// # Errors
    /// [`Error::Setting`] with what is wrong with the template.
    pub fn new(source: &str, special: Map<String, Json>, now: Option<SystemTime>) -> Result<Self> {
        let engine = Engine::new(source, now)
            .map_err(|e| Error::setting("chat_template", "a Jinja template", e))?;
        Ok(ChatTemplate { engine, with_tools: None, special })
    }

    /// Whether the template marks what the assistant says, by `{% generation %}`.
    pub fn marks_assistant(&self) -> bool {
        self.engine.marks()
    }

    /// Whether what was rendered depends on the time, so that another run makes other texts.
    pub fn asked_time(&self) -> bool {
        self.engine.asked_time() || self.with_tools.as_ref().is_some_and(Engine::asked_time)
    }

    /// The text of the first `count` messages of a conversation.
    ///
    /// # Errors
    /// On one line, what the template says: that roles must alternate, say.
    pub fn render(
        &self,
        conversation: &Conversation,
        count: usize,
        ending: Ending,
    ) -> Result<Rendered, String> {
        let mut messages = conversation.messages[..count].to_vec();
        let mut last = None;
        if ending == Ending::Continued {
            let message = messages.pop().ok_or("a message to go on is needed")?;
            let (message, text) = messages::tagged(&message, TAG)?;
            messages.push(message);
            last = Some(text);
        }
        let tools = values::value(&conversation.tools);
        let mut variables: Vec<(&str, minijinja::Value)> =
            self.special.iter().map(|(name, json)| (&**name, values::value(json))).collect();
        let prompted = ending == Ending::GenerationPrompt;
        variables.extend([
            ("messages", messages.into_iter().collect()),
            ("tools", tools),
            ("documents", ().into()),
            ("add_generation_prompt", prompted.into()),
        ]);
        variables.extend(conversation.variables.iter().map(|(k, v)| (&**k, values::value(v))));
        let engine = match &self.with_tools {
            Some(engine) if !conversation.tools.is_null() => engine,
            _ => &self.engine,
        };
        let mut rendered = engine.render(Context {
            variables: minijinja::Value::from_pairs(variables),
            bytes: conversation.bytes,
            messages: count,
        })?;
        if let Some(last) = last {
            let at = rendered.text.rfind(TAG.trim_end());
            let Some(at) = at.filter(|_| rendered.text.contains(last.trim())) else {
                return Err("the template does not show the last message, which is to go on".into());
            };
            // Where the template has trimmed the tag it trims the message.
            let kept = rendered.text[at..].starts_with(TAG);
            rendered.text.truncate(at);
            if !kept {
                rendered.text.truncate(rendered.text.trim_end().len());
            }
        }
        Ok(rendered)
    }
}

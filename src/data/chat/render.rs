//! Conversations as texts to learn from.

use super::{ChatTemplate, Conversation, Ending, Rendered};

/// A prompt and its answers, as texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The prompt, with what begins an answer.
    pub prompt: String,
    /// What follows it for each answer, the end of the turn included.
    pub answers: Vec<String>,
}

impl ChatTemplate {
    /// A prompt that is to be answered. Where its last message is the assistant's, that goes on.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; and where its last message is of another role, to which there is no
    /// answer.
    pub fn prompt(&self, prompt: &Conversation) -> Result<String, String> {
        let ending = match prompt.roles.last().map_or("", String::as_str) {
            "user" | "tool" => Ending::GenerationPrompt,
            "assistant" => Ending::Continued,
            other => {
                let expected =
                    "expected a prompt that ends with a message of user, tool or assistant";
                return Err(format!("{expected}, got one of {other}"));
            }
        };
        Ok(self.render(prompt, prompt.len(), ending)?.text)
    }

    /// A prompt, and each whole conversation that begins with it, as the prompt and what follows it.
    ///
    /// # Errors
    /// The number of the conversation, none for the prompt, and what is wrong: what the template says, or
    /// that the prompt alone is not how the whole text begins.
    pub fn answered(
        &self,
        prompt: &Conversation,
        wholes: &[Conversation],
    ) -> Result<Answered, (Option<usize>, String)> {
        let prompt = self
            .render(prompt, prompt.len(), Ending::GenerationPrompt)
            .map_err(|e| (None, e))?
            .text;
        let answer = |(i, whole): (usize, &Conversation)| {
            let at = |e: String| (Some(i), e);
            let text = self.render(whole, whole.len(), Ending::Closed).map_err(at)?.text;
            let rest = after(&prompt, &text).map_err(at)?;
            match rest.is_empty() {
                false => Ok(rest.to_string()),
                true => Err(at("the chat template makes no text of the answer".into())),
            }
        };
        let answers = wholes.iter().enumerate().map(answer).collect::<Result<_, _>>()?;
        Ok(Answered { prompt, answers })
    }

    /// A whole conversation, and which of its bytes are the assistant's: what the template marks, or what
    /// the beginnings of the conversation leave between them.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; where there is no message of the assistant; and where the template
    /// marks nothing and the text of a beginning is not how the whole text begins.
    pub fn assistant(&self, whole: &Conversation) -> Result<Rendered, String> {
        let rendered = self.render(whole, whole.len(), Ending::Closed)?;
        if self.marks_assistant() {
            return match rendered.assistant.iter().any(|span| !span.is_empty()) {
                true => Ok(rendered),
                false => Err("the chat template marks nothing of it as the assistant's".into()),
            };
        }
        let mut assistant = Vec::new();
        for (i, _) in whole.roles.iter().enumerate().filter(|(_, role)| *role == "assistant") {
            let beginning = |count: usize, ending: Ending| {
                let text = self.render(whole, count, ending)?.text;
                after(&text, &rendered.text).map_err(|e| {
                    format!(
                        "what the assistant says cannot be told, as the template has no \
                         {{% generation %}} and {e}"
                    )
                })?;
                Ok::<usize, String>(text.len())
            };
            let start = beginning(i, Ending::GenerationPrompt)?;
            let end = beginning(i + 1, Ending::Closed)?;
            if start < end {
                assistant.push(start..end);
            }
        }
        match assistant.is_empty() {
            true => {
                Err("expected a message of the assistant, which is what is learnt, got none".into())
            }
            false => Ok(Rendered { assistant, ..rendered }),
        }
    }
}

/// What follows a beginning.
fn after<'a>(beginning: &str, whole: &'a str) -> Result<&'a str, String> {
    if let Some(rest) = whole.strip_prefix(beginning) {
        return Ok(rest);
    }
    let same = beginning.char_indices().zip(whole.chars()).find(|((_, a), b)| a != b);
    let at = same.map_or(beginning.len().min(whole.len()), |((at, _), _)| at);
    let excerpt = |text: &str| text[at..].chars().take(40).collect::<String>();
    Err(format!(
        "the chat template writes the beginning of a conversation in another way than where it goes \
         on: {:?} alone, {:?} there",
        excerpt(beginning),
        excerpt(whole)
    ))
}

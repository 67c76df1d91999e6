//! A conversation with a model in the terminal.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use half::bf16;
use serde_json::{Value as Json, json};
use signal_hook::consts::SIGINT;

use super::machine::ModelArgs;
use crate::data::chat::Conversation;
use crate::data::{Chat, Tokenizer};
use crate::generate::{GenerateOptions, Sampling, Session};
use crate::models::ModelFolder;
use crate::nn::{Decoder, Weights};
use crate::{DType, Element, Error, Result};

/// What is typed after `/help`.
const HELP: &str = "\
/system TEXT  set the system message and begin a new conversation
/reset        begin a new conversation with the same system message
/save FILE    append the conversation to a JSONL file, as a row of `messages` that `sft` reads
/exit         leave, as does the end of the input
Ctrl-C ends an answer early.";

/// A conversation in the terminal, with the model's own chat template.
///
/// Each line of the standard input is a message; a line that begins with a slash is a command, and /help
/// lists them. Answers go to the standard output as they are generated, everything else to standard error.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What makes texts of conversations: a file, the text itself, a folder that has one, or the name of
    /// one of the model's [default: the model's own]
    #[arg(long, alias = "chat-template-path", value_name = "FILE_OR_TEXT")]
    chat_template: Option<String>,
    /// The system message, which comes first in the conversation [default: the template's own]
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// New tokens of an answer at most
    #[arg(long, default_value_t = 512, value_name = "N")]
    max_new_tokens: usize,
    /// Divides the logits; 0 is greedy [default: the model's generation_config.json, else greedy]
    #[arg(long, value_name = "X")]
    temperature: Option<f64>,
    /// Only the N most likely tokens; 0: all [default: the model's, else all]
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Only the most likely tokens that reach this probability together [default: the model's, else 1]
    #[arg(long, value_name = "X")]
    top_p: Option<f64>,
    /// Only tokens at least this share as likely as the likeliest [default: the model's, else 0]
    #[arg(long, value_name = "X")]
    min_p: Option<f64>,
    /// Seeds the draws
    #[arg(long, default_value_t = 42, value_name = "N")]
    seed: u64,
}

/// Runs `collimate chat`.
pub fn run(args: Args) -> Result<()> {
    if args.max_new_tokens == 0 {
        return Err(Error::setting("max_new_tokens", "at least 1", 0));
    }
    let (device, dtype) = args.model.machine.open()?;
    let path = &args.model.model_name_or_path;
    let folder = ModelFolder::open(path)?;
    let own = folder.sampling()?;
    let sampling = Sampling {
        temperature: args.temperature.unwrap_or(own.temperature),
        top_k: args.top_k.unwrap_or(own.top_k),
        top_p: args.top_p.unwrap_or(own.top_p),
        min_p: args.min_p.unwrap_or(own.min_p),
        seed: args.seed,
    };
    sampling.validate()?;
    let tokenizer = Arc::new(Tokenizer::load(path)?.verbatim());
    let chat = Chat::new(path, args.chat_template.as_deref());
    chat.template()?;
    let (decoder, table) = Decoder::new(folder.config.clone())?;
    let options = GenerateOptions {
        sampling,
        max_new_tokens: args.max_new_tokens,
        eos: tokenizer.stop_ids().to_vec(),
        batch_size: 1,
    };
    let talk = Talk { chat: &chat, tokenizer: &tokenizer, options, interrupt: Interrupt::new()? };
    let messages = opening(args.system.as_deref());
    match dtype {
        DType::BF16 => talk.run(&decoder, &folder.load_weights::<bf16>(&table, &device)?, messages),
        _ => {
            let weights = folder.load_weights::<f32>(&table, &device)?;
            // On the pool's own threads: each operation is spared waking another one.
            rayon::scope(|_| talk.run(&decoder, &weights, messages))
        }
    }
}

/// The messages that a conversation begins with.
fn opening(system: Option<&str>) -> Vec<Json> {
    system.map(|text| message("system", text)).into_iter().collect()
}

fn message(role: &str, content: &str) -> Json {
    json!({ "role": role, "content": content })
}

/// Ctrl-C ends the answer under way; where there is none, the program.
struct Interrupt {
    idle: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    fn new() -> Result<Self> {
        let (idle, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        signal_hook::flag::register_conditional_default(SIGINT, idle.clone())
            .and_then(|_| signal_hook::flag::register(SIGINT, asked.clone()))
            .map_err(|e| Error::Device(format!("signals: {e}")))?;
        Ok(Interrupt { idle, asked })
    }

    fn while_busy<R>(&self, work: impl FnOnce(&AtomicBool) -> R) -> R {
        self.asked.store(false, SeqCst);
        self.idle.store(false, SeqCst);
        let result = work(&self.asked);
        self.idle.store(true, SeqCst);
        result
    }
}

/// What a line of the input asks for.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Message(&'a str),
    System(&'a str),
    Reset,
    Save(&'a Path),
    Help,
    Exit,
    Nothing,
    Unknown(&'a str),
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Self {
        let line = line.trim();
        if !line.starts_with('/') {
            return if line.is_empty() { Line::Nothing } else { Line::Message(line) };
        }
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (name, rest.trim()) {
            ("/system", text) => Line::System(text),
            ("/reset", "") => Line::Reset,
            ("/save", file) if !file.is_empty() => Line::Save(Path::new(file)),
            ("/help", "") => Line::Help,
            ("/exit" | "/quit", "") => Line::Exit,
            _ => Line::Unknown(line),
        }
    }
}

struct Talk<'a> {
    chat: &'a Chat,
    tokenizer: &'a Tokenizer,
    options: GenerateOptions,
    interrupt: Interrupt,
}

impl Talk<'_> {
    fn run<T: Element>(
        &self,
        decoder: &Decoder,
        weights: &Weights<T>,
        mut messages: Vec<Json>,
    ) -> Result<()> {
        let mut session = Session::new(decoder, weights);
        let terminal = std::io::stdin().is_terminal();
        let say = |text: &str| {
            // Where standard error is closed there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{text}");
        };
        if terminal {
            say("A message and Enter; /help lists the commands, /exit leaves.");
        }
        let mut line = String::new();
        loop {
            if terminal {
                let _ = write!(std::io::stderr(), "> ");
            }
            line.clear();
            match std::io::stdin().lock().read_line(&mut line) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(e) => return Err(Error::io("stdin", e)),
            }
            match Line::of(&line) {
                Line::Nothing => {}
                Line::Exit => return Ok(()),
                Line::Help => say(HELP),
                Line::Unknown(line) => say(&format!("unknown command {line:?}; /help lists them")),
                Line::Reset => messages.truncate(
                    messages.first().is_some_and(|first| first["role"] == "system").into(),
                ),
                Line::System(text) => {
                    messages = opening(Some(text).filter(|text| !text.is_empty()));
                }
                Line::Save(path) => match save(path, &messages) {
                    Ok(()) => say(&format!("saved to {}", path.display())),
                    Err(e) => say(&format!("error: {e}")),
                },
                Line::Message(text) => {
                    messages.push(message("user", text));
                    match self.answer(&mut session, &messages) {
                        Ok(answer) => messages.push(message("assistant", &answer)),
                        // A closed pipe: nobody reads on.
                        Err(Error::Io { source, .. })
                            if source.kind() == std::io::ErrorKind::BrokenPipe =>
                        {
                            return Ok(());
                        }
                        // The template refuses the conversation, or it is too long for the model.
                        Err(e @ (Error::Setting { .. } | Error::File { .. })) => {
                            messages.pop();
                            say(&format!("error: {e}; /reset begins a new conversation"));
                        }
                        Err(e) => return Err(e),
                    }
                }
            }
        }
    }

    /// Generates the assistant's next message and shows it as it comes.
    fn answer<T: Element>(
        &self,
        session: &mut Session<'_, T>,
        messages: &[Json],
    ) -> Result<String> {
        let bad = |e: String| Error::setting("the conversation", "what the chat template takes", e);
        let conversation = Conversation::new(&Json::Array(messages.to_vec())).map_err(bad)?;
        let text = self.chat.template()?.prompt(&conversation).map_err(bad)?;
        let prompt = self.tokenizer.encode(&text)?;
        let mut stream = self.tokenizer.stream(&prompt)?;
        let (mut answer, mut failed) = (String::new(), None);
        let mut show = |part: &str| {
            answer += part;
            let mut out = std::io::stdout().lock();
            out.write_all(part.as_bytes())
                .and_then(|()| out.flush())
                .map_err(|e| Error::io("stdout", e))
        };
        let tokens = self.interrupt.while_busy(|asked| {
            session.generate(&prompt, &self.options, &mut |token| {
                if self.options.eos.contains(&token) {
                    return false;
                }
                failed = stream.push(token).and_then(|part| show(&part)).err();
                failed.is_none() && !asked.load(SeqCst)
            })
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        show(&stream.finish()?)?;
        let ended = tokens.last().is_some_and(|last| self.options.eos.contains(last));
        show("\n")?;
        answer.pop();
        if !ended && tokens.len() == self.options.max_new_tokens {
            let _ = writeln!(
                std::io::stderr(),
                "note: the answer was cut at max_new_tokens, {}",
                tokens.len()
            );
        }
        Ok(answer)
    }
}

/// Appends the conversation to a file of rows.
fn save(path: &Path, messages: &[Json]) -> Result<()> {
    if !messages.iter().any(|message| message["role"] == "assistant") {
        return Err(Error::setting("/save", "a conversation with an answer", "none yet"));
    }
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|e| Error::io(path, e))?;
    writeln!(file, "{}", json!({ "messages": messages })).map_err(|e| Error::io(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        for (line, expected) in [
            ("What now? \n", Line::Message("What now?")),
            ("  \n", Line::Nothing),
            ("/system Be brief.\n", Line::System("Be brief.")),
            ("/system\n", Line::System("")),
            ("/reset\n", Line::Reset),
            ("/save a b.jsonl\n", Line::Save(Path::new("a b.jsonl"))),
            ("/save\n", Line::Unknown("/save")),
            ("/exit\n", Line::Exit),
            ("/quit", Line::Exit),
            ("/help\n", Line::Help),
            ("/etc/passwd\n", Line::Unknown("/etc/passwd")),
        ] {
            assert_eq!(Line::of(line), expected, "{line:?}");
        }
    }
}

//! A chat template, compiled: the Jinja of `transformers`, bounded in time and memory.
//!
//! The environment is that of `transformers` 5: blocks take the line end behind them and the spaces before
//! them, loops have `break` and `continue`, texts and lists have Python's methods, `tojson` is
//! `json.dumps`, and `{% generation %}` marks what the assistant said. Nothing else can be reached: no
//! file, no other template, no clock but `strftime_now`.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::{clock, json, methods, tags};

/// A template longer than this is refused: the longest in use have 30 KB.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// What any conversation may cost, in minijinja's fuel: an instruction, or 64 bytes.
const FUEL: u64 = 1 << 21;
/// What each byte of a conversation may cost beside that.
const FUEL_PER_BYTE: u64 = 16;
/// What each pair of messages may cost: templates look through all messages for each.
const FUEL_PER_PAIR: u64 = 32;
/// No conversation may cost more.
const MOST_FUEL: u64 = 1 << 27;
/// A text may have this many bytes, and this many times those of its conversation.
const OUTPUT: usize = 16 << 20;
const OUTPUT_PER_BYTE: usize = 16;
/// Macros in macros and loops in loops.
const DEPTH: usize = 100;
const NAME: &str = "chat_template";

/// What a template is given.
pub struct Context {
    /// The variables.
    pub variables: Value,
    /// Bytes of the conversation, by which its bounds are set.
    pub bytes: usize,
    /// How many messages it has.
    pub messages: usize,
}

/// What a template made of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Bytes of the text that the template marks as the assistant's.
    pub assistant: Vec<Range<usize>>,
}

/// A compiled template.
pub struct Engine {
    environment: Environment<'static>,
    marks: bool,
    asked_time: Arc<AtomicBool>,
}

/// A render's own notes: bytes written so far, and the spans of what the assistant said.
#[derive(Debug, Default)]
struct Notes {
    written: AtomicUsize,
    spans: Mutex<Vec<(usize, String)>>,
}

impl minijinja::value::Object for Notes {}

impl Engine {
    /// Compiles a template; its time is always `now` where that is given.
    ///
    /// # Errors
    /// On one line, what is wrong with the template.
    pub fn new(source: &str, now: Option<SystemTime>) -> Result<Self, String> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(format!("expected a template of at most {MAX_TEMPLATE_BYTES} bytes"));
        }
        let (source, marks) = tags::rewrite(source);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| one_line(&e))?);
        environment.set_recursion_limit(DEPTH);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(methods::call);
        // None is no list, and a text or a mapping is a sequence, as in Python.
        environment
            .add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.add_test("sequence", |value: &Value| {
            use ValueKind::{Iterable, Map, Seq, String, Undefined};
            matches!(value.kind(), Seq | Iterable | String | Map | Undefined)
        });
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", |message: Value| -> Result<(), Error> {
            let text = message.as_str().map_or_else(|| message.kind().to_string(), String::from);
            Err(Error::new(ErrorKind::InvalidOperation, text))
        });
        let asked_time = Arc::new(AtomicBool::new(false));
        let asked = asked_time.clone();
        environment.add_function("strftime_now", move |format: &str| {
            asked.store(true, Ordering::Relaxed);
            clock::strftime(now.unwrap_or_else(SystemTime::now), format)
                .map_err(|message| Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function(tags::FUNCTION, generation);
        environment.add_template_owned(NAME, source).map_err(|e| one_line(&e))?;
        Ok(Engine { environment, marks, asked_time })
    }

    /// Whether the template marks what the assistant says.
    pub fn marks(&self) -> bool {
        self.marks
    }

    /// Whether a text that was rendered depends on the time.
    pub fn asked_time(&self) -> bool {
        self.asked_time.load(Ordering::Relaxed)
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// On one line, what the template says or what is wrong with it.
    pub fn render(&self, context: Context) -> Result<Rendered, String> {
        let pairs = (context.messages as u64).saturating_pow(2).saturating_mul(FUEL_PER_PAIR);
        let bytes = (context.bytes as u64).saturating_mul(FUEL_PER_BYTE);
        let fuel = FUEL.saturating_add(pairs).saturating_add(bytes).min(MOST_FUEL);
        let most = OUTPUT.saturating_add(context.bytes.saturating_mul(OUTPUT_PER_BYTE));
        let notes = Arc::new(Notes::default());
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        environment.add_global(tags::NOTES, Value::from_dyn_object(notes.clone()));
        let mut output = Output { bytes: Vec::new(), most, notes: &notes };
        let template = environment.get_template(NAME).map_err(|e| one_line(&e))?;
        template.render_captured_to(context.variables, &mut output).map_err(|e| one_line(&e))?;
        let text = String::from_utf8(output.bytes).map_err(|e| e.to_string())?;
        let spans =
            std::mem::take(&mut *notes.spans.lock().unwrap_or_else(PoisonError::into_inner));
        let mut assistant = Vec::with_capacity(spans.len());
        for (start, said) in spans {
            let span = start..start + said.len();
            if text.get(span.clone()) != Some(said.as_str()) {
                return Err("it changes what is in {% generation %} afterwards, so that what is \
                            learnt cannot be told"
                    .into());
            }
            assistant.push(span);
        }
        Ok(Rendered { text, assistant })
    }
}

/// The text so far, up to as many bytes as it may have.
struct Output<'a> {
    bytes: Vec<u8>,
    most: usize,
    notes: &'a Notes,
}

impl io::Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most - self.bytes.len() {
            return Err(io::Error::other(format!("the text has more than {} bytes", self.most)));
        }
        self.bytes.extend_from_slice(bytes);
        self.notes.written.store(self.bytes.len(), Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `{% generation %}` becomes a call of: notes where its content begins, as `transformers` does.
fn generation(state: &mut State, kwargs: Kwargs) -> Result<Value, Error> {
    let caller: Value = kwargs.get("caller")?;
    let said = caller.call(state, &[])?;
    if let Some(notes) =
        state.lookup(tags::NOTES).as_ref().and_then(|v| v.downcast_object_ref::<Notes>())
    {
        let start = notes.written.load(Ordering::Relaxed);
        let mut spans = notes.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.push((start, said.to_string()));
    }
    Ok(said)
}

/// An error with its causes, on one line.
fn one_line(error: &Error) -> String {
    let mut text = match error.detail() {
        // What a template raises, and what is wrong where, without the name of the kind.
        Some(detail) => detail.to_string(),
        None => error.kind().to_string(),
    };
    if let Some(line) = error.line() {
        text += &format!(" (line {line} of the template)");
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

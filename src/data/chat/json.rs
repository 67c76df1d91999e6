//! Python's `json.dumps`, as templates print tools and arguments with it.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Nothing may be deeper.
const DEPTH: usize = 128;
/// An indentation, and a separator, may be as long as this.
const BETWEEN: usize = 64;

fn bad<T>(what: String) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}")))
}

/// The filter of `transformers`: `tojson(value, ensure_ascii, indent, separators, sort_keys)`.
///
/// # Errors
/// For a value that JSON has no form for, and one that costs too much.
pub fn tojson(
    state: &State,
    value: Value,
    positional: Rest<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let mut positional = positional.0.into_iter();
    let mut argument = |name: &str| -> Result<Option<Value>, Error> {
        let value =
            positional.next().map_or_else(|| kwargs.get::<Option<Value>>(name), |v| Ok(Some(v)))?;
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let short = |value: &Value| match value.as_str() {
        Some(text) if text.len() <= BETWEEN => Ok(text.to_string()),
        _ => bad(format!("expected a text of at most {BETWEEN} bytes between values")),
    };
    let ascii = argument("ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = match argument("indent")? {
        Some(value) if value.kind() == ValueKind::Number => {
            Some(" ".repeat(usize::try_from(value)?.min(BETWEEN)))
        }
        value => value.as_ref().map(short).transpose()?,
    };
    let mut between = (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string());
    if let Some(pair) = argument("separators")? {
        let pair: Vec<Value> = pair.try_iter()?.take(3).collect();
        let [item, key] = &pair[..] else { return bad("expected two separators".into()) };
        between = (short(item)?, short(key)?);
    }
    let sorted = argument("sort_keys")?.is_some_and(|value| value.is_true());
    kwargs.assert_all_used()?;
    let (item, key) = between;
    let mut writer =
        Writer { state, ascii, indent, item, key, sorted, out: String::new(), paid: 0 };
    writer.write(&value, 0)?;
    Ok(Value::from(writer.out))
}

/// Writes one value.
struct Writer<'a> {
    /// Who pays for it.
    state: &'a State<'a, 'a>,
    /// Whether everything beyond ASCII is escaped.
    ascii: bool,
    /// What each level is indented by; none: all on one line.
    indent: Option<String>,
    /// Between two items.
    item: String,
    /// Behind a key.
    key: String,
    /// Whether keys are in order.
    sorted: bool,
    out: String,
    paid: usize,
}

impl Writer<'_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.pay()?;
        if depth > DEPTH {
            return bad(format!("expected at most {DEPTH} levels"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.quoted(value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    self.pay()?;
                    let name = match key.kind() {
                        ValueKind::String => key.as_str().unwrap_or_default().to_string(),
                        ValueKind::Number => number(&key),
                        ValueKind::None => "null".into(),
                        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
                        kind => return bad(format!("a key may not be a {kind}")),
                    };
                    entries.push((name, value.get_item(&key)?));
                }
                if self.sorted {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.out.push('{');
                for (i, (name, value)) in entries.iter().enumerate() {
                    self.next(i, depth);
                    self.quoted(name);
                    self.out.push_str(&self.key);
                    self.write(value, depth + 1)?;
                }
                self.close('}', entries.len(), depth);
            }
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut count = 0;
                for item in value.try_iter()? {
                    self.next(count, depth);
                    self.write(&item, depth + 1)?;
                    count += 1;
                }
                self.close(']', count, depth);
            }
            kind => return bad(format!("a value of type {kind} is not JSON")),
        }
        Ok(())
    }

    /// Pays for what was written, and for a value.
    fn pay(&mut self) -> Result<(), Error> {
        let bytes = self.out.len() - self.paid;
        self.paid = self.out.len();
        self.state.consume_fuel(1 + bytes as u64 / 64)
    }

    fn next(&mut self, i: usize, depth: usize) {
        if i > 0 {
            self.out.push_str(&self.item);
        }
        self.line(depth + 1);
    }

    fn close(&mut self, bracket: char, items: usize, depth: usize) {
        if items > 0 {
            self.line(depth);
        }
        self.out.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
        }
    }

    fn quoted(&mut self, text: &str) {
        let out = &mut self.out;
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && (c as u32) > 0x7e) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// Floats have Python's own form, which minijinja prints; but for those that are not finite.
fn number(value: &Value) -> String {
    let text = value.to_string();
    match text.to_ascii_lowercase().as_str() {
        "nan" => "NaN".into(),
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        _ => text,
    }
}

//! One row's fields, each taken with a check that can say what was wrong.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

pub(super) struct Fields<'a> {
    pub path: &'a Path,
    pub line: usize,
    pub row: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub fn error(&self, field: &str, message: impl Into<String>) -> Error {
        let message = message.into();
        Error::Data { path: self.path.to_path_buf(), line: self.line, field: field.into(), message }
    }

    /// Checks that no other column holds the prompt of answers that do not begin with it: it would not be
    /// learnt.
    pub fn no_prompt_of_another_name(&self) -> Result<()> {
        const NAMES: [&str; 4] = ["question", "instruction", "query", "input"];
        let chosen = self.filled("chosen")?;
        for name in NAMES {
            let Some(Value::String(asked)) = self.row.get(name) else { continue };
            if !asked.trim().is_empty() && !chosen.contains(asked.trim()) {
                let message = format!(
                    "expected a `prompt`, or answers that begin with one, got `{name}` beside answers without \
                     it; --columns prompt={name} takes it for the prompt"
                );
                return Err(self.error("prompt", message));
            }
        }
        Ok(())
    }

    /// A text, possibly empty.
    pub fn text(&self, name: &str) -> Result<&'a str> {
        match self.row.get(name) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => {
                if is_column(other) {
                    let message = "expected text, got a list of texts: is it a list of columns? expected \
                                   an array of rows, or one object per line";
                    return Err(self.error(name, message));
                }
                let expected = match other {
                    Value::Array(_) | Value::Object(_) => {
                        "expected text (or a list of messages, in all rows)"
                    }
                    _ => "expected text",
                };
                let message = format!("{expected}, got {}", kind(other));
                Err(self.error(name, message))
            }
            None => Err(self.error(name, "expected text, got no such field")),
        }
    }

    /// A text that is not empty.
    pub fn filled(&self, name: &str) -> Result<&'a str> {
        match self.text(name)? {
            "" => Err(self.error(name, "expected text that is not empty, got \"\"")),
            text => Ok(text),
        }
    }

    /// A text, or none where the field is absent or null.
    pub fn optional_text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.row.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.text(name).map(Some),
        }
    }

    /// At least two texts, none empty.
    pub fn filled_list(&self, name: &str) -> Result<Vec<String>> {
        let expected = "expected a list of at least two texts, none empty";
        let Some(Value::Array(list)) = self.row.get(name) else {
            let got = self.row.get(name).map_or("no such field".into(), kind);
            return Err(self.error(name, format!("{expected}, got {got}")));
        };
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(String::from);
        let texts: Option<Vec<String>> = list.iter().map(text).collect();
        match texts {
            Some(texts) if texts.len() >= 2 => Ok(texts),
            Some(texts) => Err(self.error(name, format!("{expected}, got {}", texts.len()))),
            None => {
                let other = list.iter().find(|value| text(value).is_none());
                let got = other.map_or(String::new(), |value| match value.as_str() {
                    Some(_) => "\"\"".into(),
                    None => kind(value),
                });
                Err(self.error(name, format!("{expected}, got {got}")))
            }
        }
    }

    /// A list of `k` lists of `k` numbers, one behind the other.
    pub fn table(&self, name: &str, k: usize) -> Result<Vec<f64>> {
        let rows = self.row.get(name).and_then(Value::as_array).filter(|rows| rows.len() == k);
        let numbers = rows.and_then(|rows| {
            let row = |row: &Value| {
                let row = row.as_array().filter(|row| row.len() == k)?;
                row.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>()
            };
            rows.iter().map(row).collect::<Option<Vec<_>>>()
        });
        let expected = || format!("expected a table of {k} lists of {k} numbers");
        numbers.map(|rows| rows.concat()).ok_or_else(|| self.error(name, expected()))
    }

    /// A number that is finite and passes `check`, or none where the field is absent or null.
    pub fn number(
        &self,
        name: &str,
        expected: &str,
        check: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>> {
        let value = match self.row.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        match value.as_f64() {
            Some(x) if x.is_finite() && check(x) => Ok(Some(x)),
            Some(x) => Err(self.error(name, format!("expected {expected}, got {x}"))),
            None => Err(self.error(name, format!("expected {expected}, got {}", kind(value)))),
        }
    }

    /// A list of texts that are not empty, each with its whole number of another list; where that is
    /// absent or null, with its place in its own.
    pub fn ranked(&self, name: &str, ranks: &str) -> Result<Vec<(String, usize)>> {
        let Some(Value::Array(texts)) = self.row.get(name) else {
            let got = self.row.get(name).map_or("no such field".into(), kind);
            return Err(self.error(name, format!("expected a list of texts, got {got}")));
        };
        let ranks_of = match self.row.get(ranks) {
            None | Some(Value::Null) => None,
            Some(Value::Array(list)) if list.len() == texts.len() => Some(list),
            Some(other) => {
                let got = match other {
                    Value::Array(list) => format!("a list of {}", list.len()),
                    other => kind(other),
                };
                let expected = format!("expected a list of {}, one a response", texts.len());
                return Err(self.error(ranks, format!("{expected}, got {got}")));
            }
        };
        if texts.is_empty() {
            return Err(self.error(name, "expected a list of texts, got an empty one"));
        }
        let one = |(i, text): (usize, &Value)| {
            let rank = match ranks_of {
                None => i,
                Some(list) => {
                    let rank = list[i].as_u64().and_then(|rank| usize::try_from(rank).ok());
                    rank.ok_or_else(|| {
                        let got = kind(&list[i]);
                        self.error(ranks, format!("expected whole numbers from 0, got {got}"))
                    })?
                }
            };
            match text {
                Value::String(text) if !text.is_empty() => Ok((text.clone(), rank)),
                other => {
                    let got = if other == "" { "\"\"".into() } else { kind(other) };
                    Err(self.error(name, format!("expected texts that are not empty, got {got}")))
                }
            }
        };
        texts.iter().enumerate().map(one).collect()
    }

    /// `true`, `false`, 1 or 0.
    pub fn label(&self, name: &str) -> Result<bool> {
        let expected = "expected true, false, 1 or 0";
        match self.row.get(name) {
            Some(Value::Bool(label)) => Ok(*label),
            Some(value @ Value::Number(number)) => match value.as_f64() {
                Some(0.0) => Ok(false),
                Some(1.0) => Ok(true),
                _ => Err(self.error(name, format!("{expected}, got {number}"))),
            },
            Some(value) => Err(self.error(name, format!("{expected}, got {}", kind(value)))),
            None => Err(self.error(name, format!("{expected}, got no such field"))),
        }
    }

    /// `margin`, `weight` and `target_prob`, which a pair may have.
    pub fn of_a_pair(&self) -> Result<[Option<f64>; 3]> {
        Ok([
            self.number("margin", "a finite number", |_| true)?,
            self.number("weight", "a number of at least 0", |x| x >= 0.0)?,
            self.number("target_prob", "a number in [0, 1]", |x| (0.0..=1.0).contains(&x))?,
        ])
    }
}

/// Whether a value is a column of texts, as tools that write tables by columns have it: a list, or an object with
/// the numbers of the rows.
fn is_column(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.len() > 1 && list.iter().all(Value::is_string),
        Value::Object(map) => {
            let number = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit());
            !map.is_empty() && map.keys().all(number) && map.values().all(Value::is_string)
        }
        _ => false,
    }
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(_) => "text".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

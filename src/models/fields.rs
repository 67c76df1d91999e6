//! Reading JSON objects: every field's type is checked, and errors name the field.

use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::one_line;
use crate::{Error, Result, not_a_file};

/// A regular file as text, not longer than `limit` bytes.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    let mut text = Vec::new();
    let file = open_regular(path)?;
    file.take(limit + 1).read_to_end(&mut text).map_err(|e| Error::io(path, e))?;
    if text.len() as u64 > limit {
        return Err(Error::file(path, format!("longer than {limit} bytes")));
    }
    not_a_file::check(path, &text)?;
    String::from_utf8(text).map_err(|_| Error::file(path, "not UTF-8 text"))
}

/// Opens a file, but nothing that could block or that has no end, such as a pipe.
pub fn open_regular(path: &Path) -> Result<std::fs::File> {
    let io = |e| Error::io(path, e);
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::file(path, "not a regular file"));
    }
    std::fs::File::open(path).map_err(io)
}

/// Parses text that must be one JSON object.
pub fn parse_object(path: &Path, text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::file(path, "expected a JSON object")),
        Err(e) => Err(Error::file(path, format!("not JSON: {}", one_line(&e.to_string())))),
    }
}

/// The fields of an object of a file. A field that is `null` counts as absent.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    pub path: &'a Path,
    pub map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match convert(value) {
                Some(value) => Ok(Some(value)),
                None => Err(self.wrong(name, expected, describe(value))),
            },
        }
    }

    pub fn size(&self, name: &str) -> Result<Option<usize>> {
        self.typed(name, "a positive whole number", |value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0)
        })
    }

    pub fn required_size(&self, name: &str) -> Result<usize> {
        self.size(name)?.ok_or_else(|| self.missing(name))
    }

    /// A number that is finite and positive.
    pub fn positive(&self, name: &str) -> Result<Option<f64>> {
        self.typed(name, "a positive number", |value| {
            value.as_f64().filter(|x| x.is_finite() && *x > 0.0)
        })
    }

    pub fn required_positive(&self, name: &str) -> Result<f64> {
        self.positive(name)?.ok_or_else(|| self.missing(name))
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.typed(name, "a string", Value::as_str)
    }

    pub fn list(&self, name: &str) -> Result<Option<&'a Vec<Value>>> {
        self.typed(name, "a list", Value::as_array)
    }

    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>> {
        let map = self.typed(name, "an object", Value::as_object)?;
        Ok(map.map(|map| Fields { path: self.path, map }))
    }

    pub fn wrong(&self, name: &str, expected: &str, got: impl std::fmt::Display) -> Error {
        Error::file(self.path, format!("`{name}`: expected {expected}, got {got}"))
    }

    pub fn missing(&self, name: &str) -> Error {
        Error::file(self.path, format!("`{name}` is missing"))
    }

    pub fn unsupported(&self, what: impl std::fmt::Display) -> Error {
        Error::Unsupported(format!("{}: {what}", self.path.display()))
    }
}

/// A value for an error: short, on one line.
pub fn describe(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        other => one_line(&other.to_string()),
    }
}

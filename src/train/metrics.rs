use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Means by name since the last logged line, in the order in which names first came.
///
/// Serialised into checkpoints: a resumed run logs what an unbroken one logs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Means(Vec<(String, f64, u64)>);

impl<'de> Deserialize<'de> for Means {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // JSON writes a sum that is not finite as null; what is logged of it is null too.
        let means = Vec::<(String, Option<f64>, u64)>::deserialize(from)?.into_iter();
        Ok(Means(means.map(|(name, sum, n)| (name, sum.unwrap_or(f64::NAN), n)).collect()))
    }
}

impl Means {
    /// Adds one value to the mean of `name`.
    pub fn add(&mut self, name: &str, value: f64) {
        match self.0.iter_mut().find(|(known, ..)| known == name) {
            Some((_, sum, count)) => {
                *sum += value;
                *count += 1;
            }
            None => self.0.push((name.to_string(), value, 1)),
        }
    }

    /// The means, each name behind `prefix`.
    pub fn values<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (String, f64)> + 'a {
        self.0
            .iter()
            .map(move |(name, sum, count)| (format!("{prefix}{name}"), sum / *count as f64))
    }

    /// The mean of `name`, if any value came.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(known, ..)| known == name).map(|(_, sum, count)| sum / *count as f64)
    }
}

/// One logged line: names and values in order.
#[derive(Clone, Debug, Default)]
pub struct Record(Map<String, Value>);

impl Record {
    /// Adds a number; what is not finite is written as null, JSON's only word for it.
    pub fn set(&mut self, name: &str, value: f64) {
        self.0.insert(name.to_string(), Value::from(value));
    }

    /// Adds a whole number.
    pub fn count(&mut self, name: &str, value: u64) {
        self.0.insert(name.to_string(), Value::from(value));
    }

    /// A value by name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).and_then(Value::as_f64)
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)))
    }
}

/// `metrics.jsonl`: one object per logged step.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
    lines: u64,
}

impl MetricsFile {
    /// Opens the file and cuts it back to its first `keep` lines. Lines, not bytes: a line's speed
    /// is not the same in every run, and so neither is its length.
    pub fn open(path: &Path, keep: u64) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(io)?;
        let (mut bytes, mut reader) = (0, BufReader::new(&file));
        for line in 0..keep {
            let mut text = Vec::new();
            bytes += reader.read_until(b'\n', &mut text).map_err(io)? as u64;
            if text.last() != Some(&b'\n') {
                let message =
                    format!("expected the {keep} lines that the checkpoint knows, got {line}");
                return Err(Error::file(path, message));
            }
        }
        file.set_len(bytes).map_err(io)?;
        file.seek(SeekFrom::Start(bytes)).map_err(io)?;
        Ok(MetricsFile { path: path.to_path_buf(), file, lines: keep })
    }

    /// Appends one line.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let mut line = Value::Object(record.0.clone()).to_string();
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io(&self.path, e))?;
        self.lines += 1;
        Ok(())
    }

    /// Lines so far, safely on disk.
    pub fn sync(&mut self) -> Result<u64> {
        self.file.sync_data().map_err(|e| Error::io(&self.path, e))?;
        Ok(self.lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_that_are_not_finite_come_back() {
        let mut means = Means::default();
        means.add("a", 0.1);
        means.add("b", f64::INFINITY);
        let text = serde_json::to_string(&means).unwrap();
        let back: Means = serde_json::from_str(&text).unwrap();
        assert_eq!(back.get("a"), Some(0.1));
        assert!(back.get("b").is_some_and(f64::is_nan));
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
    }
}

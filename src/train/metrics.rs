use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// What was measured since the last logged line, by name, in the order in which names first came.
///
/// A mean is over the pairs, examples or tokens themselves, however they were batched, but for a training's
/// logged lines ([`Means::add_micro_batch`]). Serialised into checkpoints: a resumed run logs what an unbroken
/// one logs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Means(Vec<(String, Measure)>);

/// A sum and how many values are in it.
pub type Sum = (f64, usize);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Measure {
    Mean(#[serde(deserialize_with = "number")] f64, usize),
    Least(#[serde(deserialize_with = "number")] f64),
    Most(#[serde(deserialize_with = "number")] f64),
    /// The first name's value less the second's, where both have one.
    Difference(String, String),
}

/// JSON writes a number that is not finite as null; what is logged of it is null too.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

/// The smaller of two numbers, or the larger; what is not a number stays one.
fn extreme(a: f64, b: f64, pick: fn(f64, f64) -> f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { pick(a, b) }
}

impl Means {
    /// Adds one value to the mean of `name`.
    pub fn add(&mut self, name: &str, value: f64) {
        self.add_all(name, (value, 1));
    }

    /// Adds `count` values, whose sum is known, to the mean of `name`; nothing where there are none.
    pub fn add_all(&mut self, name: &str, (sum, count): Sum) {
        if count == 0 {
            return;
        }
        if let Measure::Mean(all, n) = self.entry(name, || Measure::Mean(0.0, 0)) {
            *all += sum;
            *n += count;
        }
    }

    /// Adds what a micro-batch of a training measured, each name as one value: as in TRL, a logged line is
    /// the mean over micro-batches.
    pub fn add_micro_batch(&mut self, measured: &Means) {
        measured.values("").for_each(|(name, value)| self.add(&name, value));
    }

    /// Keeps the smallest value of `name`.
    pub fn least(&mut self, name: &str, value: f64) {
        if let Measure::Least(known) = self.entry(name, || Measure::Least(value)) {
            *known = extreme(*known, value, f64::min);
        }
    }

    /// Keeps the largest value of `name`.
    pub fn most(&mut self, name: &str, value: f64) {
        if let Measure::Most(known) = self.entry(name, || Measure::Most(value)) {
            *known = extreme(*known, value, f64::max);
        }
    }

    /// Lets `name` be what `of` comes to less what `minus` comes to.
    pub fn difference(&mut self, name: &str, of: &str, minus: &str) {
        self.entry(name, || Measure::Difference(of.into(), minus.into()));
    }

    fn entry(&mut self, name: &str, new: impl FnOnce() -> Measure) -> &mut Measure {
        let known = self.0.iter().position(|(known, _)| known == name);
        let at = known.unwrap_or_else(|| {
            self.0.push((name.to_string(), new()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }

    /// What was measured, each name behind `prefix`; differences come last.
    pub fn values<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (String, f64)> + 'a {
        let of_kind = |last: bool| {
            let kind =
                move |(_, m): &&(String, Measure)| matches!(m, Measure::Difference(..)) == last;
            self.0.iter().filter(kind)
        };
        let value =
            move |(name, _): &(String, Measure)| Some((format!("{prefix}{name}"), self.get(name)?));
        of_kind(false).chain(of_kind(true)).filter_map(value)
    }

    /// What `name` comes to, if any value came.
    pub fn get(&self, name: &str) -> Option<f64> {
        let (_, measure) = self.0.iter().find(|(known, _)| known == name)?;
        match measure {
            Measure::Mean(sum, count) => Some(sum / *count as f64),
            Measure::Least(value) | Measure::Most(value) => Some(*value),
            // Only of what is no difference itself: a file cannot make this go on for ever.
            Measure::Difference(of, minus) => Some(self.plain(of)? - self.plain(minus)?),
        }
    }

    fn plain(&self, name: &str) -> Option<f64> {
        let known = self.0.iter().find(|(known, _)| known == name);
        known.filter(|(_, m)| !matches!(m, Measure::Difference(..))).and_then(|_| self.get(name))
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

    #[test]
    fn values_weigh_as_many_as_they_are() {
        let mut means = Means::default();
        means.add_all("good", (6.0, 3));
        means.add("good", 4.0);
        means.add_all("bad", (0.0, 0));
        means.difference("margin", "good", "bad");
        assert_eq!(
            (means.get("good"), means.get("bad"), means.get("margin")),
            (Some(2.5), None, None)
        );
        means.add_all("bad", (-3.0, 2));
        for value in [2.0, -1.0, 0.5] {
            means.least("least", value);
            means.most("most", value);
        }
        let text = serde_json::to_string(&means).unwrap();
        let back: Means = serde_json::from_str(&text).unwrap();
        assert_eq!(back, means);
        let all: Vec<(String, f64)> = back.values("eval_").collect();
        let expected =
            [("good", 2.5), ("bad", -1.5), ("least", -1.0), ("most", 2.0), ("margin", 4.0)];
        let expected = expected.map(|(name, value)| (format!("eval_{name}"), value));
        assert_eq!(all, expected);
        let mut line = Means::default();
        line.add("good", 0.5);
        line.add_micro_batch(&means);
        assert_eq!([line.get("good"), line.get("margin")], [Some(1.5), Some(4.0)]);
        means.most("most", f64::NAN);
        means.most("most", 5.0);
        assert!(means.get("most").is_some_and(f64::is_nan));
    }
}

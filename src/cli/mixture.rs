//! Several data sets as one: TRL's `datasets`, and alignment-handbook's `dataset_mixture` and `dataset_mixer`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::data::TestSize;
use crate::data::input::{Input, Set, Share};
use crate::data::source::files::{files, some_files};
use crate::{Error, Result};

/// Data sets that are put together. Each is a file, a folder or a pattern here.
#[derive(clap::Args, Debug, Default)]
pub struct MixtureArgs {
    /// TRL's list of data sets, in the place of --dataset-name: in a file of settings a list with path, and name,
    /// data_dir, data_files, split, columns, fraction; here its JSON [default: none]
    #[arg(long, value_name = "JSON")]
    datasets: Option<String>,
    /// alignment-handbook's mixture: datasets, a list with id, and config, split, columns, weight; seed;
    /// test_split_size [default: none]
    #[arg(long, value_name = "JSON")]
    dataset_mixture: Option<String>,
    /// alignment-handbook's older mixture: paths, and the fraction of each that is learnt [default: none]
    #[arg(long, value_name = "JSON")]
    dataset_mixer: Option<String>,
    /// The parts that --dataset-mixer takes: those with "train" in their names are learnt, those with "test" are
    /// held out
    #[arg(long, default_value = "train,test", value_name = "NAME,...")]
    dataset_splits: String,
    /// Hold out so many of the rows (a whole number), or such a part of them (below 1), at random by the seed
    /// [default: none]
    #[arg(long, value_name = "X")]
    test_split_size: Option<f64>,
}

/// What a mixture is read from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mixture {
    /// What is learnt from.
    pub train: Input,
    /// What is held out as files of its own.
    pub held_out: Option<Input>,
    /// What is held out of the rows to learn from; its own seed where it has one.
    pub hold_out: Option<(TestSize, Option<u64>)>,
}

impl MixtureArgs {
    /// Those of a command, by the names of its settings.
    pub fn of(values: &BTreeMap<String, String>) -> Self {
        let text = |name: &str| values.get(name).cloned();
        MixtureArgs {
            datasets: text("datasets"),
            dataset_mixture: text("dataset_mixture"),
            dataset_mixer: text("dataset_mixer"),
            dataset_splits: text("dataset_splits").unwrap_or_default(),
            test_split_size: values.get("test_split_size").and_then(|size| size.parse().ok()),
        }
    }

    /// The mixture, where one is given.
    ///
    /// # Errors
    /// [`Error::Setting`] for one that is malformed, or two; [`Error::File`] for data that is not there.
    pub fn mixture(&self) -> Result<Option<Mixture>> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        let all = [
            ("datasets", given(&self.datasets)),
            ("dataset_mixture", given(&self.dataset_mixture)),
            ("dataset_mixer", given(&self.dataset_mixer)),
        ];
        let mut found = all.iter().filter_map(|(name, text)| Some((*name, text.as_deref()?)));
        let Some((name, text)) = found.next() else { return Ok(None) };
        if let Some((other, _)) = found.next() {
            return Err(Error::setting(other, format!("one mixture, and {name} is given"), "both"));
        }
        let expected = match name {
            "datasets" => "a list of data sets, each with a path",
            "dataset_mixture" => "datasets: a list of them, each with an id",
            _ => "paths with fractions",
        };
        let json: Value =
            serde_json::from_str(text).map_err(|_| Error::setting(name, expected, short(text)))?;
        let mut mixture = match (name, &json) {
            ("datasets", Value::Array(list)) => of_trl(list)?,
            ("dataset_mixture", Value::Object(map)) => of_handbook(map)?,
            ("dataset_mixer", Value::Object(map)) => self.of_mixer(map)?,
            _ => return Err(Error::setting(name, expected, short(text))),
        };
        if mixture.train.sets.is_empty() {
            return Err(Error::setting(name, expected, "none"));
        }
        mixture.train.name = name.into();
        if let Some(size) = self.test_size()? {
            mixture.hold_out = Some((size, mixture.hold_out.and_then(|own| own.1)));
        }
        Ok(Some(mixture))
    }

    /// How many rows are held out, where that is asked for.
    ///
    /// # Errors
    /// [`Error::Setting`] for what is no number of rows and no part of them.
    pub fn test_size(&self) -> Result<Option<TestSize>> {
        self.test_split_size.map(|size| test_size("test_split_size", size)).transpose()
    }

    fn of_mixer(&self, map: &Map<String, Value>) -> Result<Mixture> {
        /// That of the handbook.
        const SEED: u64 = 42;
        let splits: Vec<&str> = self.dataset_splits.split(',').map(str::trim).collect();
        let (mut train, mut test) = (Vec::new(), Vec::new());
        for split in splits {
            part("dataset_splits", split)?;
            for (path, fraction) in map {
                let expected = "a path with a number of at least 0, at most 1";
                let wrong =
                    || Error::setting("dataset_mixer", expected, format!("{path}: {fraction}"));
                let fraction =
                    fraction.as_f64().filter(|x| (0.0..=1.0).contains(x)).ok_or_else(wrong)?;
                let path = Path::new(path);
                if split.contains("train") {
                    let share = Some(Share::OfItself { fraction, seed: None });
                    train.push(Set { files: files(path, split)?, columns: None, share });
                } else if split.contains("test") {
                    // A file has one part, which is learnt.
                    let found = if path.is_dir() { some_files(path, split)? } else { Vec::new() };
                    test.push(Set { files: found, ..Set::default() });
                } else {
                    let expected = "parts with train or test in their names";
                    return Err(Error::setting("dataset_splits", expected, split));
                }
            }
        }
        test.retain(|set| !set.files.is_empty());
        let input = |sets| Input { name: "dataset_mixer".into(), sets, shuffle: Some(SEED) };
        let held_out = (!test.is_empty()).then(|| input(test));
        Ok(Mixture { train: input(train), held_out, hold_out: None })
    }
}

fn of_trl(list: &[Value]) -> Result<Mixture> {
    const KEYS: [&str; 7] =
        ["path", "name", "data_dir", "data_files", "split", "columns", "fraction"];
    let mut sets = Vec::new();
    for (at, value) in list.iter().enumerate() {
        let entry = Entry::new("datasets", at, value, &KEYS)?;
        let split = entry.text("split")?.unwrap_or("train");
        let share = entry.number("fraction")?.map(Share::OfAll);
        let files = entry.files(entry.needed("path")?, entry.text("name")?, split)?;
        sets.push(Set { files, columns: entry.texts("columns")?, share });
    }
    let with = sets.iter().filter(|set| set.share.is_some()).count();
    if with > 0 && with < sets.len() {
        let expected = "a fraction for every one, or for none";
        return Err(Error::setting("datasets", expected, format!("{with} of {}", sets.len())));
    }
    let sum: f64 =
        sets.iter().map(|set| if let Some(Share::OfAll(x)) = set.share { x } else { 0.0 }).sum();
    if with > 0 && sum <= 0.0 {
        return Err(Error::setting("datasets", "a fraction above 0", sum));
    }
    Ok(Mixture { train: Input { sets, ..Input::default() }, ..Mixture::default() })
}

fn of_handbook(map: &Map<String, Value>) -> Result<Mixture> {
    const NAME: &str = "dataset_mixture";
    const KEYS: [&str; 5] = ["id", "config", "split", "columns", "weight"];
    if let Some(key) =
        map.keys().find(|key| !["datasets", "seed", "test_split_size"].contains(&key.as_str()))
    {
        return Err(Error::setting(NAME, "datasets, seed, test_split_size", key));
    }
    let seed = match map.get("seed") {
        None | Some(Value::Null) => 0,
        Some(seed) => seed.as_u64().ok_or_else(|| Error::setting(NAME, "a seed from 0", seed))?,
    };
    let size = match map.get("test_split_size") {
        None | Some(Value::Null) => None,
        Some(size) => {
            let size = size.as_f64().ok_or_else(|| Error::setting(NAME, "a number", size))?;
            Some((test_size(NAME, size)?, Some(seed)))
        }
    };
    let list = map.get("datasets").and_then(Value::as_array);
    let list = list.ok_or_else(|| Error::setting(NAME, "datasets: a list", "none"))?;
    let mut sets: Vec<Set> = Vec::new();
    for (at, value) in list.iter().enumerate() {
        let entry = Entry::new(NAME, at, value, &KEYS)?;
        let split = entry.text("split")?.unwrap_or("train");
        let weight = entry.number("weight")?;
        if weight.is_some_and(|weight| weight > 1.0) {
            return Err(Error::setting(NAME, "a weight of at most 1", weight.unwrap_or_default()));
        }
        let share = weight.map(|fraction| Share::OfItself { fraction, seed: Some(seed) });
        let files = entry.files(entry.needed("id")?, entry.text("config")?, split)?;
        let columns = entry.texts("columns")?;
        if sets.first().is_some_and(|first| first.columns != columns) {
            return Err(Error::setting(
                NAME,
                "the same columns of every one",
                format!("{columns:?}"),
            ));
        }
        sets.push(Set { files, columns, share });
    }
    let train = Input { name: PathBuf::new(), sets, shuffle: Some(seed) };
    Ok(Mixture { train, held_out: None, hold_out: size })
}

/// A data set of a list.
struct Entry<'a> {
    list: &'static str,
    at: usize,
    map: &'a Map<String, Value>,
}

impl<'a> Entry<'a> {
    fn new(list: &'static str, at: usize, value: &'a Value, keys: &[&str]) -> Result<Self> {
        let expected = format!("{} in its data set {}", keys.join(", "), at + 1);
        let Value::Object(map) = value else {
            return Err(Error::setting(list, expected, short(&value.to_string())));
        };
        match map.keys().find(|key| !keys.contains(&key.as_str())) {
            Some(key) => Err(Error::setting(list, expected, key)),
            None => Ok(Entry { list, at, map }),
        }
    }

    fn wrong(&self, expected: &str, got: &str) -> Error {
        Error::setting(self.list, format!("{expected} in its data set {}", self.at + 1), short(got))
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let text = value.as_str().map(Some);
        text.ok_or_else(|| self.wrong(&format!("a text for {key}"), &value.to_string()))
    }

    fn needed(&self, key: &str) -> Result<&'a str> {
        self.text(key)?.ok_or_else(|| self.wrong(&format!("a {key}"), "none"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite() && *x >= 0.0);
        let wrong = || self.wrong(&format!("a number of at least 0 for {key}"), &value.to_string());
        number.map(Some).ok_or_else(wrong)
    }

    /// A list of texts, or one.
    fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let texts = match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(list) => {
                list.iter().map(|text| text.as_str().map(str::to_string)).collect()
            }
            _ => None,
        };
        let wrong = || self.wrong(&format!("a list of texts for {key}"), &value.to_string());
        texts.map(Some).ok_or_else(wrong)
    }

    /// The files of a part of `path`, as `datasets` finds them.
    fn files(&self, path: &str, config: Option<&str>, split: &str) -> Result<Vec<PathBuf>> {
        /// In the place of a path: the kind of the files that `data_files` names.
        const KINDS: [&str; 4] = ["json", "csv", "parquet", "text"];
        part(self.list, split)?;
        let base = Path::new(path);
        let mut dir = base.to_path_buf();
        for inside in [config, self.text("data_dir")?].into_iter().flatten() {
            // A folder of one configuration may be without one of its name.
            let deeper = dir.join(inside);
            if deeper.is_dir() || Some(inside) != config || inside != "default" {
                dir = deeper;
            }
        }
        let data_files = match self.value("data_files") {
            Some(Value::Object(parts)) => {
                let own = parts.get(split);
                let own =
                    own.ok_or_else(|| self.wrong(&format!("data_files of {split}"), "none"))?;
                let map = Map::from_iter([("data_files".to_string(), own.clone())]);
                Entry { map: &map, ..*self }.texts("data_files")?
            }
            _ => self.texts("data_files")?,
        };
        let Some(names) = data_files else { return files(&dir, split) };
        let of = |name: &String| match !base.exists() && KINDS.contains(&path) {
            true => PathBuf::from(name),
            false => dir.join(name),
        };
        let mut all = Vec::new();
        for name in &names {
            all.append(&mut files(&of(name), split)?);
        }
        Ok(all)
    }
}

/// A part of a part would be another run.
pub fn part(name: &str, split: &str) -> Result<()> {
    if split.is_empty() || split.contains(['[', '+', '/', '\\']) {
        let expected = "the name of a whole part; write the rows that you want to a file";
        return Err(Error::setting(name, expected, split));
    }
    Ok(())
}

fn test_size(name: &str, size: f64) -> Result<TestSize> {
    if size > 0.0 && size < 1.0 {
        Ok(TestSize::Fraction(size))
    } else if size >= 1.0 && size.fract() == 0.0 && size < 2f64.powi(53) {
        Ok(TestSize::Rows(size as usize))
    } else {
        Err(Error::setting(name, "a number of rows, or a part of them below 1", size))
    }
}

fn short(text: &str) -> String {
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

//! Flags about the parts of a data set: which file of a folder is read.

use std::path::{Path, PathBuf};

use super::args::TrainArgs;
use crate::{Error, Result};

/// Which part of a data set is for what.
#[derive(clap::Args, Debug)]
pub struct SplitArgs {
    /// Where --dataset-name is a folder: the name of its file to learn from, without the ending
    #[arg(long, default_value = "train", value_name = "NAME")]
    dataset_train_split: String,
    /// Where --dataset-name is a folder: the name of its file to evaluate on with --eval-strategy
    #[arg(long, default_value = "test", value_name = "NAME")]
    dataset_test_split: String,
    /// Where --dataset-name is a folder: the folder within it that has the files [default: none]
    #[arg(long, value_name = "NAME")]
    dataset_config: Option<String>,
}

/// The files of a run.
pub struct Files {
    /// Those that it learns from.
    pub train: PathBuf,
    /// Those that it is evaluated on.
    pub held_out: Option<PathBuf>,
    /// What is to be said of them.
    pub notices: Vec<String>,
}

impl TrainArgs {
    /// The files that the flags name.
    ///
    /// # Errors
    /// [`Error::File`] for a folder without them; [`Error::Setting`] where the best model is to be known
    /// and nothing is evaluated.
    pub fn files(&self) -> Result<Files> {
        let (path, when) = (&self.dataset_name, &self.when);
        let held_out = match &self.eval_dataset {
            _ if !when.evaluates() => None,
            Some(path) => Some(path.clone()),
            None if when.asks_for_evaluations() => self.splits.test(path)?,
            None => None,
        };
        let mut notices: Vec<String> = self.splits.notice(path).into_iter().collect();
        if let (None, Some(name)) = (&held_out, when.needs_evaluations()) {
            let expected = "held-out data, by eval_dataset and an eval_strategy";
            return Err(Error::setting(name, expected, "none"));
        }
        if held_out.is_none() && when.asks_for_evaluations() {
            notices.push("there is no eval_dataset: nothing is evaluated".into());
        }
        Ok(Files { train: self.splits.train(path)?, held_out, notices })
    }
}

const ENDINGS: [&str; 4] = ["jsonl", "json", "jsonl.gz", "json.gz"];

impl SplitArgs {
    /// The file to learn from: `path` itself, or that of the folder.
    ///
    /// # Errors
    /// [`Error::File`] where the folder has no such file, or several.
    pub fn train(&self, path: &Path) -> Result<PathBuf> {
        self.check(path)?;
        if !path.is_dir() {
            return Ok(path.into());
        }
        let dir = self.dir(path);
        self.find(&dir, &self.dataset_train_split)?.ok_or_else(|| {
            let split = &self.dataset_train_split;
            Error::file(
                dir,
                format!("expected a file {split}.jsonl (or .json, with or without .gz)"),
            )
        })
    }

    /// The held-out file of the folder, where `path` is one that has it.
    ///
    /// # Errors
    /// [`Error::File`] where there are several.
    pub fn test(&self, path: &Path) -> Result<Option<PathBuf>> {
        if path.is_dir() { self.find(&self.dir(path), &self.dataset_test_split) } else { Ok(None) }
    }

    /// What is to be said where the data is one file, whatever its parts are called.
    pub fn notice(&self, path: &Path) -> Option<String> {
        let given = [
            ("dataset_train_split", (self.dataset_train_split != "train").then_some(())),
            ("dataset_test_split", (self.dataset_test_split != "test").then_some(())),
            ("dataset_config", self.dataset_config.as_ref().map(|_| ())),
        ];
        let given: Vec<&str> =
            given.iter().filter(|(_, at)| at.is_some()).map(|(n, _)| *n).collect();
        (!given.is_empty() && !path.is_dir()).then(|| {
            format!("{} is one file and is read whole: {}", path.display(), given.join(", "))
        })
    }

    fn dir(&self, path: &Path) -> PathBuf {
        self.dataset_config.as_ref().map_or_else(|| path.into(), |config| path.join(config))
    }

    /// A part of a part would be another run.
    fn check(&self, path: &Path) -> Result<()> {
        let splits = [
            ("dataset_train_split", &self.dataset_train_split),
            ("dataset_test_split", &self.dataset_test_split),
        ];
        for (name, split) in splits {
            if split.contains(['[', '+', '/', '\\']) {
                let expected = "the name of a whole part; write the rows that you want to a file";
                return Err(Error::setting(name, expected, split));
            }
        }
        match &self.dataset_config {
            Some(config) if path.is_dir() && !path.join(config).is_dir() => Err(Error::setting(
                "dataset_config",
                format!("a folder in {}", path.display()),
                config,
            )),
            _ => Ok(()),
        }
    }

    /// `split.jsonl`, or the only one of `split-00000-of-00001.jsonl` and its like.
    fn find(&self, dir: &Path, split: &str) -> Result<Option<PathBuf>> {
        let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::io(dir, e))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Some((stem, ending)) = name.split_once('.') else { continue };
            let shard = stem.strip_prefix(split).is_some_and(|rest| rest.starts_with('-'));
            if ENDINGS.contains(&ending) && (stem == split || shard) {
                found.push(path);
            }
        }
        match found.len() {
            0 | 1 => Ok(found.pop()),
            many => Err(Error::file(dir, format!("expected one file of {split}, got {many}"))),
        }
    }
}

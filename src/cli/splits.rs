//! Flags about the parts of a data set: which files of a folder are read.

use std::path::{Path, PathBuf};

use super::args::TrainArgs;
use super::mixture::part;
use crate::data::source::files::{files, some_files};
use crate::data::{Input, ReadOptions, Table, TestSize};
use crate::{Error, Result};

/// Which part of a data set is for what.
#[derive(clap::Args, Debug)]
pub struct SplitArgs {
    /// Where --dataset-name is a folder: the name of its files to learn from, as in train.jsonl or train-00000-of-00002.parquet
    #[arg(long, default_value = "train", value_name = "NAME")]
    dataset_train_split: String,
    /// Where --dataset-name is a folder: the name of its files to evaluate on with --eval-strategy
    #[arg(long, default_value = "test", value_name = "NAME")]
    dataset_test_split: String,
    /// Where --dataset-name is a folder: the folder within it that has the files [default: none]
    #[arg(long, value_name = "NAME")]
    dataset_config: Option<String>,
}

/// The files of a run.
pub struct Files {
    /// Those that it learns from.
    pub train: Input,
    /// Those that it is evaluated on.
    pub held_out: Option<Input>,
    /// What is held out of the rows to learn from, by a seed.
    pub hold_out: Option<(TestSize, u64)>,
    /// What is to be said of them.
    pub notices: Vec<String>,
}

impl Files {
    /// The rows to learn from, and those that are held out.
    ///
    /// # Errors
    /// As [`Table::of`] and [`Table::hold_out`].
    pub fn read(&self, options: &ReadOptions, evaluates: bool) -> Result<(Table, Option<Table>)> {
        let mut train = Table::of(&self.train, options)?;
        let mut test = self.held_out.as_ref().map(|input| Table::of(input, options)).transpose()?;
        if let Some((size, seed)) = self.hold_out {
            let (rest, held) = train.hold_out(size, seed)?;
            train = rest;
            test = test.or_else(|| evaluates.then_some(held));
        }
        Ok((train, test))
    }
}

impl TrainArgs {
    /// The files that the flags name.
    ///
    /// # Errors
    /// [`Error::File`] for a folder without them; [`Error::Setting`] where no data is named, and where the best
    /// model is to be known and nothing is evaluated.
    pub fn files(&self) -> Result<Files> {
        let (mixture, when) = (self.mixture.mixture()?, &self.when);
        let mut notices = Vec::new();
        let path = self.dataset_name.as_ref();
        let (train, own, hold_out) = match (mixture, path) {
            (Some(mixture), _) => {
                if path.is_some() {
                    notices.push(format!(
                        "dataset_name is not read: {} is given",
                        mixture.train.name.display()
                    ));
                }
                (mixture.train, mixture.held_out, mixture.hold_out)
            }
            (None, Some(path)) => {
                notices.extend(self.splits.notice(path));
                let hold_out = self.mixture.test_size()?.map(|size| (size, None));
                let asked = when.asks_for_evaluations() && hold_out.is_none();
                let own = if asked { self.splits.test(path)? } else { None };
                (self.splits.train(path)?, own, hold_out)
            }
            (None, None) => {
                let expected = "a file or folder (--dataset), or a mixture (datasets)";
                return Err(Error::setting("dataset_name", expected, "none"));
            }
        };
        let held_out = match &self.eval_dataset {
            _ if !when.evaluates() => None,
            Some(path) => Some(self.splits.held_out(path)?),
            None if when.asks_for_evaluations() => own,
            None => None,
        };
        let evaluated = held_out.is_some() || hold_out.is_some() && when.asks_for_evaluations();
        if let (false, Some(name)) = (evaluated, when.needs_evaluations()) {
            let expected = "held-out data, by eval_dataset and an eval_strategy";
            return Err(Error::setting(name, expected, "none"));
        }
        if !evaluated && when.asks_for_evaluations() {
            notices.push("there is no eval_dataset: nothing is evaluated".into());
        }
        let seed = self.seed;
        let hold_out = hold_out.map(|(size, own)| (size, own.unwrap_or(seed)));
        Ok(Files { train, held_out, hold_out, notices })
    }
}

impl SplitArgs {
    /// The files to learn from: `path` itself, or those of the folder or pattern.
    ///
    /// # Errors
    /// [`Error::File`] where there are none, or some of several kinds.
    pub fn train(&self, path: &Path) -> Result<Input> {
        self.check(path)?;
        let found = files(&self.dir(path), &self.dataset_train_split)?;
        Ok(Input::of(path, found))
    }

    /// The held-out files of the folder, where `path` is one that has some.
    ///
    /// # Errors
    /// [`Error::File`] where some are of several kinds.
    pub fn test(&self, path: &Path) -> Result<Option<Input>> {
        if !path.is_dir() {
            return Ok(None);
        }
        let dir = self.dir(path);
        let found = some_files(&dir, &self.dataset_test_split)?;
        Ok((!found.is_empty()).then(|| Input::of(dir, found)))
    }

    /// The files of `path`, which are held out: of a folder those of its part for that, else those to learn
    /// from.
    ///
    /// # Errors
    /// As [`SplitArgs::train`].
    pub fn held_out(&self, path: &Path) -> Result<Input> {
        match self.test(path)? {
            Some(found) => Ok(found),
            None => self.train(path),
        }
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
            format!("{} is no folder and is read whole: {}", path.display(), given.join(", "))
        })
    }

    fn dir(&self, path: &Path) -> PathBuf {
        let config = self.dataset_config.as_ref().filter(|_| path.is_dir());
        config.map_or_else(|| path.into(), |config| path.join(config))
    }

    /// A part of a part would be another run.
    fn check(&self, path: &Path) -> Result<()> {
        let splits = [
            ("dataset_train_split", &self.dataset_train_split),
            ("dataset_test_split", &self.dataset_test_split),
        ];
        for (name, split) in splits {
            part(name, split)?;
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
}

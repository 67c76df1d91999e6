//! Several files as one: which rows of each, and in which order.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::source::files;
use super::table::Row;
use crate::Result;
use crate::rng::Rng;

/// What rows are read from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Input {
    /// What messages about the whole call it.
    pub name: PathBuf,
    /// Its parts, in their order.
    pub sets: Vec<Set>,
    /// Rows of all parts are shuffled together, by this seed.
    pub shuffle: Option<u64>,
}

/// A data set among others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set {
    /// Its files.
    pub files: Vec<PathBuf>,
    /// The columns that are kept; none: all.
    pub columns: Option<Vec<String>>,
    /// How many of its rows are taken; none: all.
    pub share: Option<Share>,
}

/// A part of the rows of a set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// A fraction of them in [0, 1], rounded down to whole rows: the first ones, of rows that are shuffled
    /// before where there is a seed.
    OfItself {
        /// What part of them.
        fraction: f64,
        /// By what they are shuffled.
        seed: Option<u64>,
    },
    /// A weight among those of all sets, of which each is cut to its first rows so that none has more rows
    /// taken than it has.
    OfAll(f64),
}

/// Numbers of streams of the generator, apart from those of other uses.
const OF_A_SET: u64 = 1 << 44;
const OF_ALL: u64 = 1 << 45;
pub(super) const OF_A_SPLIT: u64 = 1 << 46;

impl Input {
    /// The files of a part (`train`, say) of what `path` names.
    ///
    /// # Errors
    /// As [`files::files`].
    pub fn new(path: impl AsRef<Path>, part: &str) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self::of(path, files::files(path, part)?))
    }

    /// These files, which messages call `name`.
    pub fn of(name: impl Into<PathBuf>, files: Vec<PathBuf>) -> Self {
        let sets = vec![Set { files, ..Set::default() }];
        Input { name: name.into(), sets, shuffle: None }
    }

    /// Every file, in its order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.sets.iter().flat_map(|set| &set.files).map(PathBuf::as_path)
    }

    /// What is taken of the rows of each set, in the order in which they are used.
    pub(super) fn mixed(&self, mut rows: Vec<Vec<Row>>) -> Vec<Row> {
        let weights: Vec<f64> = self.sets.iter().map(Set::weight).collect();
        let sum: f64 = weights.iter().sum();
        let shares: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
        let most =
            |(rows, share): (&Vec<Row>, &f64)| (*share > 0.0).then(|| rows.len() as f64 / share);
        let total = rows.iter().zip(&shares).filter_map(most).fold(f64::INFINITY, f64::min);
        for ((set, rows), share) in self.sets.iter().zip(&mut rows).zip(shares) {
            match set.share {
                None => {}
                Some(Share::OfItself { fraction, seed }) => {
                    if let Some(seed) = seed {
                        Rng::new(seed, OF_A_SET).shuffle(rows);
                    }
                    rows.truncate((rows.len() as f64 * fraction) as usize);
                }
                // As Python rounds: a half to the even number.
                Some(Share::OfAll(_)) => rows.truncate((share * total).round_ties_even() as usize),
            }
        }
        let mut all: Vec<Row> = rows.into_iter().flatten().collect();
        if let Some(seed) = self.shuffle {
            Rng::new(seed, OF_ALL).shuffle(&mut all);
        }
        all
    }
}

impl Set {
    fn weight(&self) -> f64 {
        match self.share {
            Some(Share::OfAll(weight)) => weight,
            _ => 0.0,
        }
    }

    /// Leaves out the columns of a row that are not kept; returns one that is to be kept and is not there.
    pub(super) fn keep(&self, row: &mut Map<String, Value>) -> Option<&str> {
        let columns = self.columns.as_ref()?;
        row.retain(|name, _| columns.contains(name));
        columns.iter().find(|name| !row.contains_key(*name)).map(String::as_str)
    }
}

/// The files that lines are of, where lines are counted on from each file to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Each file, and how many lines came before it.
    files: Vec<(usize, PathBuf)>,
    last: usize,
}

impl Places {
    /// The lines of another file follow.
    pub(super) fn begin(&mut self, file: PathBuf) {
        self.files.push((self.last, file));
    }

    /// The number of a line of the last file.
    pub(super) fn line(&mut self, line: usize) -> usize {
        let before = self.files.last().map_or(0, |file| file.0);
        self.last = self.last.max(before + line);
        before + line
    }

    /// The file that a line is of, and its number there; none where there is no file.
    pub fn at(&self, line: usize) -> Option<(&Path, usize)> {
        let after = self.files.partition_point(|(before, _)| *before < line);
        let (before, file) = self.files.get(after.checked_sub(1)?)?;
        Some((file, line - before))
    }

    /// Whether there are several files.
    pub fn are_several(&self) -> bool {
        self.files.len() > 1
    }

    /// A line in words: its number, with its file where there are several.
    pub fn say(&self, line: usize) -> String {
        match self.at(line) {
            Some((file, line)) if self.are_several() => format!("{}:{line}", file.display()),
            _ => line.to_string(),
        }
    }
}

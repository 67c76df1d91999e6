//! The one error type of the crate.

use std::path::{Path, PathBuf};

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, each with what a user needs to repair it.
///
/// Every variant prints on one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Arguments of an operation whose shapes, strides or devices do not fit.
    #[error("{op}: expected {expected}, got {got}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// What its contract asks for.
        expected: String,
        /// What it was given.
        got: String,
    },
    /// A setting outside its range, or one that contradicts another.
    #[error("{name}: expected {expected}, got {got}")]
    Setting {
        /// The setting, as the user spells it.
        name: String,
        /// What it accepts.
        expected: String,
        /// What it was given.
        got: String,
    },
    /// A row of a data file that is not what its format asks for.
    #[error("{}:{line}: field `{field}`: {message}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The field, or `-` for the whole row.
        field: String,
        /// What was expected and what came.
        message: String,
    },
    /// A file of a model, a checkpoint or a configuration that is malformed.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A token id that is no row of the embedding or no column of the logits.
    #[error("{op}: row {row}: token id {id} is outside the vocabulary of {vocab}")]
    TokenId {
        /// The operation.
        op: &'static str,
        /// The row that carries the id.
        row: usize,
        /// The id.
        id: i32,
        /// The size of the vocabulary.
        vocab: usize,
    },
    /// A kernel met a value that it cannot work with; what it wrote for that row is of no use.
    #[error("kernel: {what} (code {code}, row {row}, value {value})")]
    Kernel {
        /// What is wrong.
        what: &'static str,
        /// The code, an `enum collimate_error` of the kernels' header.
        code: i32,
        /// The first row seen, not the first of the matrix.
        row: i32,
        /// The id, the index, or the bits of the number.
        value: i32,
    },
    /// A value that is not finite where training cannot go on with it.
    #[error("{0}")]
    NonFinite(String),
    /// A run that came to its end and changed nothing that it was to change.
    #[error("{0}")]
    NothingLearnt(String),
    /// Something that this build or this version does not do.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A device that is absent or that failed.
    #[error("device: {0}")]
    Device(String),
    /// The run was asked to stop, and everything was saved.
    #[error("{0}")]
    Interrupted(String),
}

impl Error {
    /// An [`Error::Shape`].
    pub fn shape(op: &'static str, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Error::Shape { op, expected: expected.into(), got: got.into() }
    }

    /// An [`Error::Setting`].
    pub fn setting(
        name: impl Into<String>,
        expected: impl Into<String>,
        got: impl std::fmt::Display,
    ) -> Self {
        Error::Setting { name: name.into(), expected: expected.into(), got: got.to_string() }
    }

    /// An [`Error::File`].
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// An [`Error::Io`].
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }
}

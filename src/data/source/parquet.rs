//! Parquet files as rows, a group of rows at a time.

use std::fs::File;
use std::io::{Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::reader::RowIter;

use super::{GZIP_FREE_BYTES, GZIP_RATIO, RawRow, Rows};
use crate::{Error, Result, not_a_file};

/// The rows of a file.
pub(super) struct Table {
    path: PathBuf,
    rows: RowIter<'static>,
    row: usize,
    limit: usize,
    /// What the file may still expand to.
    left: u64,
}

impl Table {
    pub(super) fn new(path: &Path, mut file: File, limit: usize) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let len = file.metadata().map_err(io)?.len();
        let mut head = Vec::new();
        (&mut file).take(not_a_file::HEAD_BYTES as u64).read_to_end(&mut head).map_err(io)?;
        not_a_file::check(path, &head)?;
        if !head.starts_with(b"PAR1") {
            return Err(Error::file(
                path,
                "expected a Parquet file, as its name says, got another one",
            ));
        }
        file.rewind().map_err(io)?;
        let open = || {
            let reader = SerializedFileReader::new(file)?;
            for group in reader.metadata().row_groups() {
                // Sizes that the file claims, before anything is read by them.
                let claimed = group.columns().iter().map(|column| column.compressed_size());
                let claimed = claimed.map(|size| u64::try_from(size).unwrap_or(u64::MAX));
                if claimed.fold(0, u64::saturating_add) > len {
                    let message = "a group of rows is said to be longer than the file";
                    return Err(ParquetError::General(message.into()));
                }
            }
            RowIter::from_file_into(Box::new(reader)).project(None)
        };
        let rows = guarded(open).map_err(|e| wrong(path, &e))?;
        let left = GZIP_FREE_BYTES.saturating_add(len.saturating_mul(GZIP_RATIO));
        Ok(Table { path: path.into(), rows, row: 0, limit, left })
    }
}

impl Rows for Table {
    fn next_row(&mut self) -> Result<Option<RawRow>> {
        self.row += 1;
        let next = guarded(|| self.rows.next().transpose());
        let Some(row) = next.map_err(|e| wrong(&self.path, &format!("row {}: {e}", self.row)))?
        else {
            return Ok(None);
        };
        let bytes = row.to_json_value().to_string().into_bytes();
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            let message = format!(
                "expands to more than {GZIP_RATIO} times its size and more than {GZIP_FREE_BYTES} bytes"
            );
            Error::file(&self.path, message)
        })?;
        Ok(Some(match bytes.len() > self.limit {
            true => RawRow::too_long(self.row, self.limit),
            false => RawRow::new(self.row, bytes),
        }))
    }
}

fn wrong(path: &Path, message: &str) -> Error {
    Error::file(
        path,
        format!("not a sound Parquet file, or one of a kind that is not read: {message}"),
    )
}

/// Runs a call into the `parquet` crate, some of whose parts panic on hostile files.
fn guarded<T>(call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(e.to_string().split_whitespace().collect::<Vec<_>>().join(" ")),
        Err(_) => Err("its reader panicked".into()),
    }
}

//! Tables of separated values as rows: each an object of texts under the names of the first line.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::csv::{ByteRecord, ReaderBuilder};

use super::{RawRow, Rows, read_error};
use crate::{Error, Result};

/// What is read ahead of a record.
const BUFFER: usize = 1 << 16;

/// The records of a table.
pub(super) struct Table {
    path: PathBuf,
    reader: ::csv::Reader<Metered>,
    /// Bytes that may still be read for the record at hand.
    left: Arc<AtomicU64>,
    names: Vec<String>,
    limit: usize,
    record: ByteRecord,
}

impl Table {
    pub(super) fn new(
        path: &Path,
        inner: Box<dyn BufRead + Send>,
        by: u8,
        limit: usize,
    ) -> Result<Self> {
        let left = Arc::new(AtomicU64::new(0));
        let metered = Metered { inner, left: left.clone() };
        let reader = ReaderBuilder::new()
            .delimiter(by)
            .has_headers(false)
            .flexible(true)
            .buffer_capacity(BUFFER)
            .from_reader(metered);
        let record = ByteRecord::new();
        let mut table = Table { path: path.into(), reader, left, names: Vec::new(), limit, record };
        if !table.read()? {
            return Err(Error::file(path, "expected a first line with the names of its columns"));
        }
        let bad = |message: String| Error::Data {
            path: path.into(),
            line: 1,
            field: "-".into(),
            message,
        };
        for (at, name) in table.record.iter().enumerate() {
            let name = std::str::from_utf8(name)
                .map_err(|_| bad("expected the names of columns in UTF-8".into()))?
                .trim();
            // An index that was written without a name.
            let name = if name.is_empty() { format!("column {}", at + 1) } else { name.into() };
            if table.names.contains(&name) {
                return Err(bad(format!("expected each column once, got {name:?} twice")));
            }
            table.names.push(name);
        }
        Ok(table)
    }

    fn read(&mut self) -> Result<bool> {
        self.left.store((self.limit + 2 * BUFFER) as u64, Ordering::Relaxed);
        self.reader.read_byte_record(&mut self.record).map_err(|e| {
            let line = e.position().map_or(1, |at| at.line() as usize);
            match e.into_kind() {
                ::csv::ErrorKind::Io(e) if e.kind() == io::ErrorKind::FileTooLarge => Error::Data {
                    path: self.path.clone(),
                    line: self.reader.position().line().max(line as u64) as usize,
                    field: "-".into(),
                    message: RawRow::too_long(line, self.limit).wrong.unwrap_or_default(),
                },
                ::csv::ErrorKind::Io(e) => read_error(&self.path, e),
                kind => Error::file(&self.path, format!("line {line}: {kind:?}")),
            }
        })
    }
}

impl Rows for Table {
    fn next_row(&mut self) -> Result<Option<RawRow>> {
        if !self.read()? {
            return Ok(None);
        }
        let line = self.record.position().map_or(1, |at| at.line() as usize);
        let (names, cells) = (self.names.len(), self.record.len());
        if names != cells {
            let why = format!("expected {names} columns, as in the first line, got {cells}");
            return Ok(Some(RawRow::wrong(line, why)));
        }
        if self.record.as_slice().len() > self.limit {
            return Ok(Some(RawRow::too_long(line, self.limit)));
        }
        let mut row = serde_json::Map::new();
        for (name, cell) in self.names.iter().zip(&self.record) {
            let Ok(cell) = std::str::from_utf8(cell) else {
                let why = format!("column {name:?}: expected UTF-8");
                return Ok(Some(RawRow::wrong(line, why)));
            };
            row.insert(name.clone(), cell.into());
        }
        let bytes = serde_json::Value::Object(row).to_string().into_bytes();
        Ok(Some(RawRow::new(line, bytes)))
    }
}

/// Fails once more is read than one record may have.
struct Metered {
    inner: Box<dyn BufRead + Send>,
    left: Arc<AtomicU64>,
}

impl Read for Metered {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        let left = self.left.load(Ordering::Relaxed);
        let Some(left) = left.checked_sub(read as u64) else {
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        self.left.store(left, Ordering::Relaxed);
        Ok(read)
    }
}

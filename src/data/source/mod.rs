//! Files as a stream of rows: bytes and a line number, nothing parsed yet.
//!
//! | step | module |
//! |---|---|
//! | which files a path means | [`files`] |
//! | what a file is, by its name and its first bytes; compression | this one |
//! | JSON, in all its shapes, as rows | `json` |
//! | tables of comma- or tab-separated values as rows | `csv` |
//! | columns of Parquet as rows | `parquet` |

mod csv;
pub mod files;
mod json;
mod parquet;
mod wrapper;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::{Error, Result, not_a_file};

/// A row longer than this is wrong, unless [`ReadOptions`](super::ReadOptions) says otherwise.
pub const MAX_ROW_BYTES: usize = 16 << 20;

/// What a compressed file may expand to beside [`GZIP_RATIO`] times its own size.
const GZIP_FREE_BYTES: u64 = 256 << 20;
/// Text shrinks by a factor of 3 to 10, very repetitive text by 100; a bomb by 1000.
const GZIP_RATIO: u64 = 200;

/// How much of a file is looked at to know its shape.
const HEAD_BYTES: usize = 1 << 16;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
const GZIP: &[u8] = b"\x1F\x8B";

/// One row of a file as it stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRow {
    /// The line on which it starts, from 1; of a Parquet file the number of the row.
    pub line: usize,
    /// Its bytes: one JSON value, if the file is sound.
    pub bytes: Vec<u8>,
    /// Why it is no row, where its place is known and what follows it can be read.
    pub wrong: Option<String>,
}

impl RawRow {
    fn new(line: usize, bytes: Vec<u8>) -> Self {
        RawRow { line, bytes, wrong: None }
    }

    fn wrong(line: usize, why: String) -> Self {
        RawRow { line, bytes: Vec::new(), wrong: Some(why) }
    }

    fn too_long(line: usize, limit: usize) -> Self {
        let why = format!(
            "expected a row of at most {limit} bytes, got a longer one; --max-row-bytes raises the limit"
        );
        Self::wrong(line, why)
    }
}

/// What gives rows.
trait Rows {
    /// The next row, or none at the end.
    fn next_row(&mut self) -> Result<Option<RawRow>>;
}

/// The kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Json,
    /// With what stands between two values.
    Separated(u8),
    Parquet,
}

/// The endings of the names of data files.
pub const ENDINGS: &str = ".jsonl, .json, .csv, .tsv (each also with .gz) or .parquet";

/// What the name of a file says: its kind, and whether it is compressed.
fn kind(path: &Path) -> Option<(Kind, bool)> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    let (stem, zipped) = match name.strip_suffix(".gz") {
        Some(stem) => (stem, true),
        None => (name.as_str(), false),
    };
    let kind = match stem.rsplit_once('.')?.1 {
        "jsonl" | "json" | "ndjson" => Kind::Json,
        "csv" => Kind::Separated(b','),
        "tsv" => Kind::Separated(b'\t'),
        "parquet" if !zipped => Kind::Parquet,
        _ => return None,
    };
    Some((kind, zipped))
}

/// Reads a file row by row: `.jsonl` and `.json` in any shape of theirs, `.csv`, `.tsv`, all of these with
/// `.gz`, and `.parquet`.
///
/// Memory is bounded by one row of at most so many bytes; of a Parquet file, by a group of rows of its own.
pub struct Source {
    path: PathBuf,
    rows: Box<dyn Rows + Send>,
    cells: bool,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Source {
    /// Opens a file; its name says what it is. `limit` is the longest row in bytes.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, [`Error::File`] where its name or its first bytes are those of
    /// something else.
    pub fn open(path: impl AsRef<Path>, limit: usize) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let about = file.metadata().map_err(|e| Error::io(path, e))?;
        if about.is_dir() {
            return Err(Error::file(path, "expected a file, got a directory"));
        }
        let (kind, zipped) = kind(path).ok_or_else(|| {
            Error::file(path, format!("expected a file name that ends in {ENDINGS}"))
        })?;
        if kind == Kind::Parquet {
            let rows = Box::new(parquet::Table::new(path, file, limit)?);
            return Ok(Source { path: path.into(), rows, cells: false });
        }
        let plain: Box<dyn BufRead + Send> = Box::new(BufReader::with_capacity(1 << 18, file));
        if !zipped {
            return Self::of_kind(path, plain, kind, limit);
        }
        let (head, plain) = peek(path, plain)?;
        not_a_file::check(path, &head)?;
        if !head.starts_with(GZIP) {
            return Err(Error::file(
                path,
                "expected a gzip file, as its name says, got another one",
            ));
        }
        let left = GZIP_FREE_BYTES.saturating_add(about.len().saturating_mul(GZIP_RATIO));
        let bounded = Bounded { inner: MultiGzDecoder::new(plain), left };
        let text = Box::new(BufReader::with_capacity(1 << 18, bounded));
        Self::of_kind(path, text, kind, limit)
    }

    /// Reads JSON from memory or a pipe; `path` is only for messages, `limit` the longest row in bytes.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn new(
        path: impl AsRef<Path>,
        reader: Box<dyn BufRead + Send>,
        limit: usize,
    ) -> Result<Self> {
        Self::of_kind(path.as_ref(), reader, Kind::Json, limit)
    }

    fn of_kind(
        path: &Path,
        reader: Box<dyn BufRead + Send>,
        kind: Kind,
        limit: usize,
    ) -> Result<Self> {
        let (mut head, mut reader) = peek(path, reader)?;
        if head.starts_with(BYTE_ORDER_MARK) {
            reader.consume(BYTE_ORDER_MARK.len());
            head.drain(..BYTE_ORDER_MARK.len());
        }
        check_text(path, &head)?;
        let (rows, cells): (Box<dyn Rows + Send>, bool) = match kind {
            Kind::Separated(by) => (Box::new(csv::Table::new(path, reader, by, limit)?), true),
            _ => (Box::new(json::Values::new(path, reader, &head, limit)?), false),
        };
        Ok(Source { path: path.into(), rows, cells })
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its values are all texts, whatever they mean.
    pub fn has_cells(&self) -> bool {
        self.cells
    }

    /// The next row, or none at the end. Blank lines are no rows; a byte order mark is skipped.
    ///
    /// # Errors
    /// Whatever keeps the rest of the file from being read: input and output, an array that is not one. None
    /// of these can be skipped; a row that is wrong in itself says so.
    pub fn next_row(&mut self) -> Result<Option<RawRow>> {
        self.rows.next_row()
    }
}

/// The first bytes of a file, and a reader that still has them.
fn peek(
    path: &Path,
    mut reader: Box<dyn BufRead + Send>,
) -> Result<(Vec<u8>, Box<dyn BufRead + Send>)> {
    let mut head = Vec::new();
    let read = (&mut reader).take(HEAD_BYTES as u64).read_to_end(&mut head);
    read.map_err(|e| read_error(path, e))?;
    Ok((head.clone(), Box::new(Cursor::new(head).chain(reader))))
}

/// Names what is no text of the kind that is read here.
fn check_text(path: &Path, head: &[u8]) -> Result<()> {
    not_a_file::check(path, head)?;
    let utf16 = match head {
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => true,
        // What begins JSON and tables is ASCII.
        [0, second, ..] | [second, 0, ..] => *second != 0,
        _ => false,
    };
    let wrong = if utf16 {
        "expected UTF-8, got UTF-16: `iconv -f UTF-16 -t UTF-8` converts it"
    } else if head.starts_with(GZIP) {
        "it is compressed with gzip: expected a name that ends in .gz"
    } else if head.starts_with(b"PK\x03\x04") {
        "it is a zip archive: expected the files in it, unpacked"
    } else if head.starts_with(b"\x28\xB5\x2F\xFD") {
        "it is compressed with zstd: expected it unpacked (`zstd -d`), or compressed with gzip"
    } else if head.starts_with(b"PAR1") {
        "it is a Parquet file: expected a name that ends in .parquet"
    } else {
        return Ok(());
    };
    Err(Error::file(path, wrong))
}

fn read_error(path: &Path, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            Error::file(path, format!("not a sound gzip file: {e}"))
        }
        io::ErrorKind::UnexpectedEof => Error::file(path, "the file ends inside its gzip stream"),
        _ => Error::io(path, e),
    }
}

struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            io::Error::other(format!(
                "expands to more than {GZIP_RATIO} times its size and more than {GZIP_FREE_BYTES} bytes"
            ))
        })?;
        Ok(read)
    }
}

//! Files as a stream of rows: bytes and a line number, nothing parsed yet.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::{Error, Result};

/// A row longer than this is an error, whatever the file's own size.
pub const MAX_ROW_BYTES: usize = 64 << 20;

/// What a compressed file may expand to beside [`GZIP_RATIO`] times its own size.
const GZIP_FREE_BYTES: u64 = 1 << 30;
/// Text shrinks by a factor of 3 to 10, very repetitive text by 100; a bomb by 1000.
const GZIP_RATIO: u64 = 200;

/// One row of a file as it stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRow {
    /// The line on which it starts, from 1.
    pub line: usize,
    /// Its bytes: one JSON value, if the file is sound.
    pub bytes: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing was read yet.
    Start,
    /// A value per line.
    Lines,
    /// In an array; the flag says that a comma came last, so a value must follow.
    Array { comma: bool },
    /// In an array, after a value.
    AfterValue,
    /// After the array.
    End,
}

/// Reads `.jsonl`, `.json` (an array, or a value per line) and both with `.gz`, row by row.
///
/// Memory is bounded by one row of at most [`MAX_ROW_BYTES`].
pub struct Source {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    limit: usize,
    line: usize,
    array_allowed: bool,
    state: State,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("path", &self.path).field("line", &self.line).finish()
    }
}

impl Source {
    /// Opens a file; its name says what it is.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, [`Error::File`] on another extension.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let (stem, zipped) = match name.strip_suffix(".gz") {
            Some(stem) => (stem, true),
            None => (name.as_str(), false),
        };
        let array_allowed = if stem.ends_with(".jsonl") {
            false
        } else if stem.ends_with(".json") {
            true
        } else {
            return Err(Error::file(
                path,
                "expected a file name that ends in .jsonl, .jsonl.gz, .json or .json.gz",
            ));
        };
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let about = file.metadata().map_err(|e| Error::io(path, e))?;
        if about.is_dir() {
            return Err(Error::file(path, "expected a file, got a directory"));
        }
        let plain = BufReader::with_capacity(1 << 18, file);
        let reader: Box<dyn BufRead + Send> = if zipped {
            let left = GZIP_FREE_BYTES.saturating_add(about.len().saturating_mul(GZIP_RATIO));
            let bounded = Bounded { inner: MultiGzDecoder::new(plain), left };
            Box::new(BufReader::with_capacity(1 << 18, bounded))
        } else {
            Box::new(plain)
        };
        Ok(Self::new(path, reader, array_allowed, MAX_ROW_BYTES))
    }

    /// Reads from memory or a pipe; `path` is only for messages, `limit` the longest row in bytes.
    pub fn new(
        path: impl AsRef<Path>,
        reader: Box<dyn BufRead + Send>,
        array_allowed: bool,
        limit: usize,
    ) -> Self {
        let path = path.as_ref().to_path_buf();
        Source { path, reader, limit, line: 1, array_allowed, state: State::Start }
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next row, or none at the end. Blank lines are no rows; a byte order mark is skipped.
    ///
    /// # Errors
    /// Whatever keeps the rest of the file from being read: input and output, a row that is too
    /// long, an array that is not one. None of these can be skipped.
    pub fn next_row(&mut self) -> Result<Option<RawRow>> {
        if self.state == State::Start {
            self.start()?;
        }
        if self.state == State::Lines { self.next_line() } else { self.next_element() }
    }

    fn bad(&self, line: usize, message: impl Into<String>) -> Error {
        let message = message.into();
        Error::Data { path: self.path.clone(), line, field: "-".into(), message }
    }

    fn too_long(&self, line: usize) -> Error {
        self.bad(line, format!("expected a row of at most {} bytes, got a longer one", self.limit))
    }

    fn start(&mut self) -> Result<()> {
        for mark in [0xEF, 0xBB, 0xBF] {
            if self.peek()? == Some(mark) {
                self.reader.consume(1);
            } else if mark != 0xEF {
                return Err(self.bad(1, "expected UTF-8 text, got a broken byte order mark"));
            } else {
                break;
            }
        }
        self.skip_space()?;
        self.state = match self.peek()? {
            Some(b'[') if self.array_allowed => {
                self.reader.consume(1);
                State::Array { comma: false }
            }
            Some(b'[') => {
                let message = "expected one JSON object per line, got `[`: a file that holds one array is named .json";
                return Err(self.bad(self.line, message));
            }
            _ => State::Lines,
        };
        Ok(())
    }

    fn fill(&mut self) -> Result<&[u8]> {
        // The borrow of a successful read may not be returned from inside a loop that retries.
        loop {
            match self.reader.fill_buf() {
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(read_error(&self.path, e)),
            }
        }
        self.reader.fill_buf().map_err(|e| read_error(&self.path, e))
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        Ok(self.fill()?.first().copied())
    }

    fn skip_space(&mut self) -> Result<()> {
        while let Some(byte) = self.peek()? {
            match byte {
                b'\n' => self.line += 1,
                b' ' | b'\t' | b'\r' => {}
                _ => break,
            }
            self.reader.consume(1);
        }
        Ok(())
    }

    fn next_line(&mut self) -> Result<Option<RawRow>> {
        self.skip_space()?;
        let line = self.line;
        let limit = self.limit;
        let mut bytes = Vec::new();
        loop {
            let chunk = self.fill()?;
            if chunk.is_empty() {
                break;
            }
            let end = chunk.iter().position(|&b| b == b'\n');
            let taken = end.unwrap_or(chunk.len());
            if bytes.len() + taken > limit {
                return Err(self.too_long(line));
            }
            bytes.extend_from_slice(&chunk[..taken]);
            self.reader.consume(taken + usize::from(end.is_some()));
            if end.is_some() {
                self.line += 1;
                break;
            }
        }
        while bytes.last().is_some_and(u8::is_ascii_whitespace) {
            bytes.pop();
        }
        Ok((!bytes.is_empty()).then_some(RawRow { line, bytes }))
    }

    fn next_element(&mut self) -> Result<Option<RawRow>> {
        loop {
            self.skip_space()?;
            let next = self.peek()?;
            self.state = match (self.state, next) {
                (State::End, None) => return Ok(None),
                (State::End, Some(_)) => {
                    return Err(self.bad(self.line, "expected nothing after the array's `]`"));
                }
                (_, None) => {
                    return Err(self.bad(self.line, "the file ends inside its array: no `]`"));
                }
                (State::Array { comma: false } | State::AfterValue, Some(b']')) => State::End,
                (State::AfterValue, Some(b',')) => State::Array { comma: true },
                (State::AfterValue, Some(_)) => {
                    return Err(self.bad(self.line, "expected `,` or `]` after a row of the array"));
                }
                (_, Some(b',' | b']')) => {
                    return Err(self.bad(self.line, "expected a row of the array, got none"));
                }
                _ => {
                    self.state = State::AfterValue;
                    return self.element().map(Some);
                }
            };
            self.reader.consume(1);
        }
    }

    /// One value of the array: up to where its brackets close, or for a bare word up to its end.
    fn element(&mut self) -> Result<RawRow> {
        let line = self.line;
        let limit = self.limit;
        let mut bytes = Vec::new();
        let (mut depth, mut quoted, mut escaped, mut done) = (0usize, false, false, false);
        while !done {
            let chunk = self.fill()?;
            if chunk.is_empty() {
                return Err(self.bad(line, "the file ends inside this row of its array"));
            }
            let (mut taken, mut lines) = (0, 0);
            for &byte in chunk {
                if !quoted && depth == 0 && matches!(byte, b',' | b']') {
                    done = true;
                    break;
                }
                taken += 1;
                match byte {
                    b'\n' => lines += 1,
                    _ if escaped => {}
                    b'"' if quoted => quoted = false,
                    b'"' => quoted = true,
                    b'{' | b'[' if !quoted => depth += 1,
                    b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
                    _ => {}
                }
                escaped = quoted && byte == b'\\' && !escaped;
                if depth == 0 && matches!(byte, b'}' | b']') && !quoted {
                    done = true;
                    break;
                }
            }
            if bytes.len() + taken > limit {
                return Err(self.too_long(line));
            }
            bytes.extend_from_slice(&chunk[..taken]);
            self.reader.consume(taken);
            self.line += lines;
        }
        Ok(RawRow { line, bytes })
    }
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

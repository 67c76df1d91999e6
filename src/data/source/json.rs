//! JSON as rows: a value per line, values over several lines, one array, an object around an array.

use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

use super::{RawRow, Rows, read_error, wrapper};
use crate::{Error, Result};

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// A value per line.
    Lines,
    /// Values one behind the other, each over one or several lines.
    Values,
    /// In an array; the flag says that a comma came last, so a value must follow.
    Array { comma: bool },
    /// In an array, after a value.
    AfterValue,
    /// After the array, in the object around it.
    Around,
    /// After everything.
    End,
}

/// The values of a file.
pub(super) struct Values {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    limit: usize,
    line: usize,
    state: State,
    /// There is an object around the array.
    wrapped: bool,
    /// A row was too long, and this is how far it was read.
    unfinished: Option<Scan>,
}

impl Values {
    /// `head` is what `reader` begins with.
    pub(super) fn new(
        path: &Path,
        reader: Box<dyn BufRead + Send>,
        head: &[u8],
        limit: usize,
    ) -> Result<Self> {
        let mut values = Values {
            path: path.into(),
            reader,
            limit,
            line: 1,
            state: State::Lines,
            wrapped: false,
            unfinished: None,
        };
        if let Some(bytes) = wrapper::before_rows(head) {
            values.line += head[..bytes].iter().filter(|&&byte| byte == b'\n').count();
            values.skip_bytes(bytes)?;
            values.state = State::Array { comma: false };
            values.wrapped = true;
            return Ok(values);
        }
        values.skip_space()?;
        match values.peek()? {
            Some(b'[') => {
                values.reader.consume(1);
                values.state = State::Array { comma: false };
            }
            _ if over_several_lines(head.trim_ascii_start()) => values.state = State::Values,
            _ => {}
        }
        Ok(values)
    }

    fn bad(&self, line: usize, message: impl Into<String>) -> Error {
        let message = message.into();
        Error::Data { path: self.path.clone(), line, field: "-".into(), message }
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

    fn skip_bytes(&mut self, mut count: usize) -> Result<()> {
        while count > 0 {
            let some = self.fill()?.len().min(count);
            if some == 0 {
                break;
            }
            self.reader.consume(some);
            count -= some;
        }
        Ok(())
    }

    fn skip_space(&mut self) -> Result<()> {
        while let Some(byte) = self.peek()? {
            if !is_space(byte) {
                break;
            }
            self.line += usize::from(byte == b'\n');
            self.reader.consume(1);
        }
        Ok(())
    }

    /// Takes one value, or its rest, up to where `scan` ends it; with `keep`, its bytes. None where it is longer
    /// than a row may be.
    fn take(&mut self, mut scan: Scan, keep: bool) -> Result<Option<Vec<u8>>> {
        let line = self.line;
        let mut bytes = Vec::new();
        loop {
            let limit = self.limit;
            let chunk = self.fill()?;
            if chunk.is_empty() {
                if scan.ends_with_file() {
                    return Ok(Some(bytes));
                }
                return Err(self.bad(
                    line,
                    match scan.until {
                        Until::Value => "the file ends inside this row",
                        _ => "the file ends inside this row of its array",
                    },
                ));
            }
            let (taken, lines, ended) = scan.advance(chunk);
            if keep && bytes.len() + taken > limit {
                self.unfinished = (!ended).then_some(scan);
                self.reader.consume(taken);
                self.line += lines;
                return Ok(None);
            }
            if keep {
                bytes.extend_from_slice(&chunk[..taken]);
            }
            self.reader.consume(taken);
            self.line += lines;
            if ended {
                return Ok(Some(bytes));
            }
        }
    }

    fn row(&mut self, until: Until) -> Result<RawRow> {
        let line = self.line;
        Ok(match self.take(Scan::new(until), true)? {
            None => RawRow::too_long(line, self.limit),
            Some(mut bytes) => {
                while bytes.last().is_some_and(u8::is_ascii_whitespace) {
                    bytes.pop();
                }
                RawRow::new(line, bytes)
            }
        })
    }
}

impl Rows for Values {
    fn next_row(&mut self) -> Result<Option<RawRow>> {
        if let Some(scan) = self.unfinished.take() {
            self.take(scan, false)?;
        }
        loop {
            self.skip_space()?;
            let next = self.peek()?;
            self.state =
                match (self.state, next) {
                    (State::End | State::Lines | State::Values, None) => return Ok(None),
                    (State::Lines, _) => return self.row(Until::Line).map(Some),
                    (State::Values, _) => return self.row(Until::Value).map(Some),
                    (State::End, Some(_)) => {
                        return Err(self.bad(self.line, "expected nothing after the array's `]`"));
                    }
                    (State::Around, Some(_)) => {
                        // What else the object holds is no row.
                        self.take(Scan { depth: 1, ..Scan::new(Until::Value) }, false)?;
                        self.state = State::End;
                        continue;
                    }
                    (State::Around, None) => {
                        return Err(self.bad(self.line, "the file ends inside its object: no `}`"));
                    }
                    (_, None) => {
                        return Err(self.bad(self.line, "the file ends inside its array: no `]`"));
                    }
                    (State::Array { comma: false } | State::AfterValue, Some(b']')) => {
                        if self.wrapped { State::Around } else { State::End }
                    }
                    (State::AfterValue, Some(b',')) => State::Array { comma: true },
                    (State::AfterValue, Some(_)) => {
                        return Err(
                            self.bad(self.line, "expected `,` or `]` after a row of the array")
                        );
                    }
                    (_, Some(b',' | b']')) => {
                        return Err(self.bad(self.line, "expected a row of the array, got none"));
                    }
                    _ => {
                        self.state = State::AfterValue;
                        return self.row(Until::Element).map(Some);
                    }
                };
            self.reader.consume(1);
        }
    }
}

/// Whether JSON takes a byte for space between values. A value is never empty: what ends one is skipped.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// Where a value ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// At the end of its line, whatever it is.
    Line,
    /// Where its brackets close, or for a bare word at a space.
    Value,
    /// Where its brackets close, or for a bare word at a comma or the array's end.
    Element,
}

/// How far a value was read.
#[derive(Clone, Copy)]
struct Scan {
    until: Until,
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Scan {
    fn new(until: Until) -> Self {
        Scan { until, depth: 0, quoted: false, escaped: false }
    }

    /// Whether the end of the file is an end of the value too.
    fn ends_with_file(&self) -> bool {
        match self.until {
            Until::Line => true,
            Until::Value => self.depth == 0 && !self.quoted,
            Until::Element => false,
        }
    }

    /// How many bytes of a chunk belong to the value, the line ends among them, and whether it ends there.
    fn advance(&mut self, chunk: &[u8]) -> (usize, usize, bool) {
        if self.until == Until::Line {
            return match chunk.iter().position(|&byte| byte == b'\n') {
                Some(at) => (at + 1, 1, true),
                None => (chunk.len(), 0, false),
            };
        }
        let mut lines = 0;
        for (at, &byte) in chunk.iter().enumerate() {
            let outside = !self.quoted && self.depth == 0;
            let ends = match self.until {
                Until::Element => matches!(byte, b',' | b']'),
                _ => is_space(byte),
            };
            if outside && ends {
                return (at, lines, true);
            }
            match byte {
                b'\n' => lines += 1,
                _ if self.escaped => {}
                b'"' => self.quoted = !self.quoted,
                b'{' | b'[' if !self.quoted => self.depth += 1,
                b'}' | b']' if !self.quoted => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            self.escaped = self.quoted && byte == b'\\' && !self.escaped;
            if self.depth == 0 && matches!(byte, b'}' | b']') && !self.quoted {
                return (at + 1, lines, true);
            }
        }
        (chunk.len(), lines, false)
    }
}

/// Whether the first value of a file goes on after its line. A row that was cut off, with another row behind
/// it, does not.
fn over_several_lines(head: &[u8]) -> bool {
    let Some(end) = head.iter().position(|&byte| byte == b'\n') else { return false };
    let (line, rest) = (head[..end].trim_ascii_end(), head[end..].trim_ascii_start());
    let mut scan = Scan::new(Until::Value);
    let (_, _, ended) = scan.advance(line);
    let goes_on = match line.last() {
        Some(b'[') => true,
        Some(b'{') => rest.starts_with(b"\"") || rest.starts_with(b"}"),
        _ => !rest.starts_with(b"{"),
    };
    !ended && scan.depth > 0 && !scan.quoted && goes_on
}

//! An object around the rows of a file: `{"version": 1, "data": [{...}, ...]}`.

/// The names under which files hold their rows.
const NAMES: [&str; 13] = [
    "data",
    "rows",
    "train",
    "test",
    "validation",
    "examples",
    "instances",
    "records",
    "items",
    "dataset",
    "samples",
    "entries",
    "pairs",
];

/// Columns that may be lists of objects.
const COLUMNS: [&str; 11] = [
    "messages",
    "conversations",
    "conversation",
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "responses",
    "completions",
    "tools",
    "answers",
];

/// What the objects of a conversation begin with: a list of them is a field of a row.
const OF_A_MESSAGE: [&str; 8] =
    ["role", "from", "content", "value", "type", "text", "speaker", "name"];

/// How many bytes of a file come before the first of its rows, where `head`, its beginning, is an object with a
/// list of rows in it. Lines that are objects of their own are none.
pub(super) fn before_rows(head: &[u8]) -> Option<usize> {
    let mut at = Cursor { bytes: head, at: 0 };
    at.expect(b'{')?;
    let mut first = true;
    loop {
        let key = at.text()?;
        at.expect(b':')?;
        let own = first && !COLUMNS.contains(&key);
        if at.peek()? == b'[' && (own || NAMES.contains(&key)) {
            let mut inside = Cursor { at: at.at + 1, ..at };
            let begins = inside.at;
            if inside.expect(b'{').is_some() && inside.text().is_some_and(not_a_message) {
                // A name that nobody uses so is one if nothing else is there; as is one whose line is a row.
                let whole = || at.rest_after_value();
                let rows = match NAMES.contains(&key) {
                    true => whole().is_none_or(|rest| !rest.starts_with(b"{")),
                    false => whole()
                        .map_or(!on_one_line(head), |rest| rest.is_empty() && alone(head, at.at)),
                };
                return rows.then_some(begins);
            }
        }
        at.skip_value()?;
        at.expect(b',')?;
        first = false;
    }
}

fn not_a_message(key: &str) -> bool {
    !OF_A_MESSAGE.contains(&key)
}

fn on_one_line(head: &[u8]) -> bool {
    !head.trim_ascii_start().contains(&b'\n')
}

/// Whether the object that a file begins with holds nothing but the value at `at`.
fn alone(head: &[u8], at: usize) -> bool {
    let mut at = Cursor { bytes: head, at };
    at.skip_value().is_some() && at.expect(b'}').is_some()
}

#[derive(Clone, Copy)]
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The next byte that is no space; it becomes the current one.
    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at)?.is_ascii_whitespace() {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// A text as it stands between its quotes.
    fn text(&mut self) -> Option<&'a str> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            match self.bytes.get(self.at)? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        std::str::from_utf8(&self.bytes[start..self.at - 1]).ok()
    }

    fn skip_value(&mut self) -> Option<()> {
        let mut depth = 0usize;
        loop {
            match self.peek()? {
                b'"' => _ = self.text()?,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' if depth > 0 => self.at += 1,
                _ => {
                    let bare = |byte: &&u8| !b",]}: \t\r\n\"".contains(byte);
                    let word = self.bytes[self.at..].iter().take_while(bare).count();
                    if word == 0 {
                        return None;
                    }
                    self.at += word;
                }
            }
            if depth == 0 {
                return Some(());
            }
        }
    }

    /// What stands behind the object whose member the current value is; none where that is further away.
    fn rest_after_value(&self) -> Option<&'a [u8]> {
        let mut at = *self;
        at.skip_value()?;
        while at.peek()? == b',' {
            at.at += 1;
            at.text()?;
            at.expect(b':')?;
            at.skip_value()?;
        }
        at.expect(b'}')?;
        Some(self.bytes[at.at..].trim_ascii_start())
    }
}

#[cfg(test)]
mod tests {
    use super::before_rows;

    #[test]
    fn an_object_around_rows_is_told_from_a_row() {
        fn rows(text: &str) -> Option<&str> {
            before_rows(text.as_bytes()).map(|at| &text[at..])
        }
        assert_eq!(rows(r#"{"data": [{"prompt": 1}]}"#), Some(r#"{"prompt": 1}]}"#));
        assert_eq!(
            rows(r#"{"v": {"a": [1]}, "data":[ {"a": 1}], "n": 1}"#),
            Some(r#" {"a": 1}], "n": 1}"#)
        );
        // A name of nobody's, alone or over several lines.
        assert!(rows(r#"{"mine": [{"prompt": "a"}]}"#).is_some());
        assert!(rows("{\n \"mine\": [\n  {\"prompt\": \"a").is_some());
        for row in [
            r#"{"messages": [{"role": "user", "content": "a"}]}"#,
            r#"{"conversations": [{"from": "human", "value": "a"}]}"#,
            r#"{"answers": [{"answer": "a"}], "question": "b"}"#,
            r#"{"prompt": "a", "turns": [{"answer": "b"}]}"#,
            r#"{"data": ["a", "b"]}"#,
            "{\"data\": [{\"a\": 1}]}\n{\"data\": [{\"a\": 1}]}",
            "{\"mine\": [{\"a\": 1}]}\n{\"mine\": [{\"a\": 1}]}",
            r#"{"data": ["#,
            "",
            "[1]",
        ] {
            assert_eq!(rows(row), None, "{row}");
        }
    }
}

//! What Jinja's blocks need to become minijinja's.
//!
//! - `{% generation %}` is a call block, as it is in `transformers`.
//! - A block that is called later (a macro, a call, a generation) sees the namespaces that it only assigns
//!   to: minijinja gives it those alone that it reads.

use std::collections::BTreeSet;

/// The function that `{% generation %}` calls.
pub const FUNCTION: &str = "__generation__";
/// The variable that holds a render's notes.
pub const NOTES: &str = "__notes__";
/// The variable through which a block reads what it assigns to.
const SEEN: &str = "__seen__";

/// The template for minijinja, and whether it has `generation` blocks. Lines stay where they are.
pub fn rewrite(source: &str) -> (String, bool) {
    let namespaces: BTreeSet<&str> = Pieces::new(source).filter_map(assigned).collect();
    let (mut out, mut marks) = (String::with_capacity(source.len() + 64), false);
    for piece in Pieces::new(source) {
        let Some((at, word)) = word(piece) else {
            out.push_str(piece);
            continue;
        };
        let (before, after) = (&piece[..at], &piece[at + word.len()..]);
        match word {
            "generation" => {
                marks = true;
                out += &format!("{before}call {FUNCTION}(){after}");
            }
            "endgeneration" => out += &format!("{before}endcall{after}"),
            _ => out.push_str(piece),
        }
        if matches!(word, "generation" | "macro" | "call") {
            // With the same end as the block's own, so that it takes the same line end.
            let end =
                piece.strip_suffix("%}").map_or("", |tag| &tag[tag.len().saturating_sub(1)..]);
            let end = if matches!(end, "-" | "+") { end } else { "" };
            for name in &namespaces {
                out += &format!("{{% set {SEEN} = {name} {end}%}}");
            }
        }
    }
    (out, marks)
}

/// A template cut into tags and what is between them. Comments, `raw` blocks with what is in them, and
/// tags that do not end are between.
struct Pieces<'a> {
    rest: &'a str,
}

impl<'a> Pieces<'a> {
    fn new(source: &'a str) -> Self {
        Pieces { rest: source }
    }

    fn take(&mut self, len: usize) -> Option<&'a str> {
        let (piece, rest) = self.rest.split_at(len);
        self.rest = rest;
        Some(piece)
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.rest;
        let opening = |&(at, _): &(usize, char)| {
            rest[at..].starts_with("{%")
                || rest[at..].starts_with("{{")
                || rest[at..].starts_with("{#")
        };
        let whole = rest.len();
        match rest.char_indices().find(opening) {
            None if rest.is_empty() => None,
            None => self.take(whole),
            Some((at @ 1.., _)) => self.take(at),
            Some((0, _)) if rest.starts_with("{#") => {
                self.take(rest.find("#}").map_or(whole, |end| end + 2))
            }
            Some((0, _)) => {
                let close = if rest.starts_with("{%") { "%}" } else { "}}" };
                let end = tag_end(rest, close).unwrap_or(whole);
                match word(&rest[..end]) {
                    Some((_, "raw")) => self.take(raw_end(rest, end)),
                    _ => self.take(end),
                }
            }
        }
    }
}

/// Where a tag ends, behind its closing mark, quotes respected.
fn tag_end(tag: &str, close: &str) -> Option<usize> {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in tag.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) => quote = (c != open).then_some(open),
            None if c == '"' || c == '\'' => quote = Some(c),
            None if tag[at..].starts_with(close) => return Some(at + close.len()),
            None => {}
        }
    }
    None
}

/// Where a raw block ends that begins with a tag of `start` bytes.
fn raw_end(block: &str, start: usize) -> usize {
    let mut at = start;
    while let Some(found) = block[at..].find("{%") {
        at += found;
        if let Some((_, "endraw")) = word(&block[at..]) {
            return block[at..].find("%}").map_or(block.len(), |end| at + end + 2);
        }
        at += 2;
    }
    block.len()
}

/// The first word of a block tag and where it begins; none of anything else.
fn word(tag: &str) -> Option<(usize, &str)> {
    let inner = tag.strip_prefix("{%")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).trim_start();
    Some((tag.len() - inner.len(), identifier(inner)))
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The namespace to one of whose fields a tag assigns.
fn assigned(tag: &str) -> Option<&str> {
    let (at, _) = word(tag).filter(|(_, word)| *word == "set")?;
    let target = tag[at + 3..].trim_start();
    let name = identifier(target);
    let field = target[name.len()..].trim_start().starts_with('.');
    (field && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_blocks_become_calls() {
        let call = |text: &str| text.replace('@', "call __generation__()");
        for (source, expected) in [
            ("a{% generation %}b{%- endgeneration -%}c", "a{% @ %}b{%- endcall -%}c"),
            ("{%-generation-%}x", "{%-@-%}x"),
            (
                "{% raw %}{% generation %}{{'{% endraw %}{% generation %}",
                "{% raw %}{% generation %}{{'{% endraw %}{% @ %}",
            ),
            ("{{ {'a': 1}['a'] }}{% generation", "{{ {'a': 1}['a'] }}{% @"),
        ] {
            assert_eq!(rewrite(source), (call(expected), true));
        }
        for same in [
            "{# {% generation %} #}",
            "{{ '{% generation %}' }}",
            "{% set x = \"%}{% generation %}\" %}",
            "{% generations %}{",
            "é{",
            "",
        ] {
            assert_eq!(rewrite(same), (same.to_string(), false));
        }
    }

    #[test]
    fn blocks_read_the_namespaces_that_they_assign_to() {
        let source = "{% generation -%}\n{% set ns.x = 1 %}{% endgeneration %}{%macro f()%}";
        let expected = "{% call __generation__() -%}{% set __seen__ = ns -%}\n{% set ns.x = 1 %}\
                        {% endcall %}{%macro f()%}{% set __seen__ = ns %}";
        assert_eq!(rewrite(source), (expected.to_string(), true));
    }
}

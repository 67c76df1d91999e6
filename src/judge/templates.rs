//! How a judge is asked, and what it may answer.

use std::path::Path;

use serde::Deserialize;

use crate::{Error, Result};

const MAX_BYTES: u64 = 1 << 20;
const DEFAULT: &str = include_str!("default.yaml");

/// The questions put to a judge and the answers that it may give.
///
/// A YAML file of `compare`, `options`, `rate` and `ratings`; what a file leaves out is the default's.
#[derive(Clone, Debug, PartialEq)]
pub struct Templates {
    /// Asks for the better of two answers, with `{prompt}`, `{first}` and `{second}`.
    pub compare: String,
    /// What it says for the first and for the second.
    pub options: [String; 2],
    /// Asks how good one answer is, with `{prompt}` and `{completion}`.
    pub rate: String,
    /// What it says for the worst to the best.
    pub ratings: Vec<String>,
}

/// The file as it stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    compare: Option<String>,
    options: Option<[String; 2]>,
    rate: Option<String>,
    ratings: Option<Vec<String>>,
}

const COMPARE: [&str; 3] = ["prompt", "first", "second"];
const RATE: [&str; 2] = ["prompt", "completion"];

impl Templates {
    /// Those that are built in: English, and answers that end with a digit.
    ///
    /// # Errors
    /// None that a user could cause.
    pub fn built_in() -> Result<Self> {
        Self::parse(Path::new("default.yaml"), DEFAULT, None)
    }

    /// Reads a file of templates.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::File`] that names the key, what was expected and what came.
    pub fn read(path: &Path) -> Result<Self> {
        use std::io::Read;
        let io = |e| Error::io(path, e);
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(io)?;
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(io)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(Error::file(path, "expected templates of at most 1 MiB"));
        }
        Self::parse(path, &text, Some(Self::built_in()?))
    }

    fn parse(path: &Path, text: &str, default: Option<Templates>) -> Result<Self> {
        let one_line = |e: serde_norway::Error| {
            Error::file(path, e.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
        };
        let file: File = serde_norway::from_str(text).map_err(one_line)?;
        let missing = |key: &str| Error::file(path, format!("expected a field `{key}`"));
        let (compare, options, rate, ratings) = match default {
            Some(d) => (Some(d.compare), Some(d.options), Some(d.rate), Some(d.ratings)),
            None => (None, None, None, None),
        };
        let templates = Templates {
            compare: file.compare.or(compare).ok_or_else(|| missing("compare"))?,
            options: file.options.or(options).ok_or_else(|| missing("options"))?,
            rate: file.rate.or(rate).ok_or_else(|| missing("rate"))?,
            ratings: file.ratings.or(ratings).ok_or_else(|| missing("ratings"))?,
        };
        check(path, "compare", &templates.compare, &COMPARE)?;
        check(path, "rate", &templates.rate, &RATE)?;
        check_answers(path, "options", &templates.options)?;
        check_answers(path, "ratings", &templates.ratings)?;
        Ok(templates)
    }

    /// The question which of two answers is better.
    pub fn comparison(&self, prompt: &str, first: &str, second: &str) -> String {
        fill(&self.compare, &COMPARE, &[prompt, first, second])
    }

    /// The question how good an answer is.
    pub fn rating(&self, prompt: &str, completion: &str) -> String {
        fill(&self.rate, &RATE, &[prompt, completion])
    }
}

/// A name in braces, as in `{prompt}`, where a text starts with one.
fn name_at(text: &str) -> Option<&str> {
    let (name, _) = text.strip_prefix('{')?.split_once('}')?;
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    plain.then_some(name)
}

/// Replaces names by texts, in one pass: what a text says is not read as a name.
fn fill(template: &str, names: &[&str], texts: &[&str]) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        out += &rest[..at];
        rest = &rest[at..];
        let known = name_at(rest).and_then(|name| names.iter().position(|known| *known == name));
        let taken = match known {
            Some(i) => {
                out += texts[i];
                names[i].len() + 2
            }
            None => {
                out.push('{');
                1
            }
        };
        rest = &rest[taken..];
    }
    out + rest
}

/// Every name must occur, and no other.
fn check(path: &Path, key: &str, template: &str, names: &[&str]) -> Result<()> {
    let error = |message: String| Err(Error::file(path, format!("field `{key}`: {message}")));
    let braces = template.match_indices('{').map(|(at, _)| &template[at..]);
    let found: Vec<&str> = braces.filter_map(name_at).collect();
    if let Some(missing) = names.iter().find(|name| !found.contains(name)) {
        return error(format!("expected {{{missing}}} in it"));
    }
    if let Some(other) = found.iter().find(|name| !names.contains(name)) {
        let known: Vec<String> = names.iter().map(|name| format!("{{{name}}}")).collect();
        return error(format!("expected {} and no other, got {{{other}}}", known.join(", ")));
    }
    Ok(())
}

/// At least two, all different, none empty.
fn check_answers(path: &Path, key: &str, answers: &[String]) -> Result<()> {
    let twice = |i: usize| answers[..i].contains(&answers[i]);
    let bad = (0..answers.len()).find(|&i| answers[i].is_empty() || twice(i));
    if answers.len() < 2 || bad.is_some() {
        let got = bad.map_or(format!("{}", answers.len()), |i| format!("{:?}", answers[i]));
        let expected = "expected at least two texts, all different, none empty";
        return Err(Error::file(path, format!("field `{key}`: {expected}, got {got}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Templates> {
        Templates::parse(Path::new("t.yaml"), text, Some(Templates::built_in()?))
    }

    #[test]
    fn texts_are_not_read_as_names() {
        let file = "compare: '{prompt}|{first}|{second}|{ {x'\nrate: '{completion}<{prompt}'";
        let templates = parse(file).unwrap();
        let asked = templates.comparison("{first}", "{second} {", "}");
        assert_eq!(asked, "{first}|{second} {|}|{ {x");
        assert_eq!(templates.rating("p", "c"), "c<p");
        assert_eq!(templates.options, ["1", "2"]);
        assert_eq!(templates.ratings.len(), 10);
    }

    #[test]
    fn wrong_files_are_named() {
        for (text, says) in [
            ("compare: '{prompt} {first}'", "field `compare`: expected {second} in it"),
            ("rate: '{prompt} {completion} {answer}'", "got {answer}"),
            ("ratings: ['1']", "field `ratings`: expected at least two"),
            ("options: ['a', 'a']", "field `options`"),
            ("options: ['a']", "t.yaml"),
            ("other: 1", "unknown field `other`"),
            ("- 1", "t.yaml"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains('\n'), "{text}: {error}");
        }
    }
}

//! Guards around what a template makes, put into its text.
//!
//! minijinja bounds the instructions and the texts of a template, but not lists in lists: 64 doublings cost
//! 64 instructions, and what is made of the result never ends. So what is kept by `set`, every list and
//! mapping that is spelt out, and the operands of sums and comparisons pass through filters that
//! [weigh](super::weight) them; factors pass through one that refuses lists, which no chat template
//! multiplies. What follows is just enough of Jinja's grammar to find where an operand begins and ends.

use super::weight::{FACTOR, KEPT, KEPT_INSIDE, WEIGHED};

/// Words that are no value.
const WORDS: [&str; 18] = [
    "and",
    "or",
    "not",
    "if",
    "else",
    "elif",
    "in",
    "is",
    "for",
    "set",
    "do",
    "recursive",
    "with",
    "call",
    "filter",
    "macro",
    "print",
    "endset",
];
/// Values that weigh nothing.
const LIGHT: [&str; 6] = ["true", "false", "none", "True", "False", "None"];

/// A tag with its guards.
pub fn guard(tag: &str) -> String {
    let tokens = tokens(tag);
    let mut guards = Guards::default();
    // `{% for x in y %}` compares nothing.
    let is_loop = tag.starts_with("{%") && first_word(tag, &tokens) == Some("for");
    let is_in = |token: &Token| token.of(tag) == "in";
    let of_loop = tokens.iter().position(is_in).filter(|_| is_loop);
    for (i, token) in tokens.iter().enumerate() {
        let before = i.checked_sub(1).map(|i| &tokens[i]).filter(|token| token.ends_operand(tag));
        let text = token.of(tag);
        match (text, before) {
            ("[" | "{", None) => guards.around_literal(tag, &tokens, i),
            ("+", Some(before)) => guards.around_operator(tag, &tokens, i, before, WEIGHED),
            ("*", Some(before)) => guards.around_operator(tag, &tokens, i, before, FACTOR),
            ("==" | "!=" | "<" | ">" | "<=" | ">=" | "in", Some(before)) => {
                let light = |token: &Token| {
                    matches!(token.kind, Kind::Text | Kind::Number)
                        || LIGHT.contains(&token.of(tag))
                };
                let loops = text == "in" && Some(i) == of_loop;
                if !(loops || tokens.get(i + 1).is_none_or(light) || light(before)) {
                    guards.filter(before.end, WEIGHED);
                }
            }
            _ => {}
        }
    }
    guards.around_kept(tag, &tokens);
    guards.put_into(tag)
}

/// Texts to put into a tag: where, in which order at one place, and what.
#[derive(Default)]
struct Guards {
    all: Vec<(usize, u8, String)>,
}

impl Guards {
    fn filter(&mut self, at: usize, name: &str) {
        self.all.push((at, 1, format!(" | {name}")));
    }

    /// A list or a mapping that begins at token `i`, unless all of it is spelt out.
    fn around_literal(&mut self, tag: &str, tokens: &[Token], i: usize) {
        let Some(end) = closing(tag, tokens, i) else { return };
        let variable = |token: &Token| token.kind == Kind::Name && !LIGHT.contains(&token.of(tag));
        if tokens[i..end].iter().any(variable) {
            self.all.push((tokens[i].start, 2, "(".into()));
            self.all.push((tokens[end - 1].end, 0, format!(" | {WEIGHED})")));
        }
    }

    /// The operands of the operator at `i`; a text alone needs no guard.
    fn around_operator(
        &mut self,
        tag: &str,
        tokens: &[Token],
        i: usize,
        before: &Token,
        name: &str,
    ) {
        if before.kind != Kind::Text {
            self.filter(before.end, name);
        }
        if let Some(end) = operand_end(tag, tokens, i + 1) {
            self.filter(end, name);
        }
    }

    /// What `{% set x = ... %}` keeps.
    fn around_kept(&mut self, tag: &str, tokens: &[Token]) {
        if !tag.starts_with("{%") || first_word(tag, tokens) != Some("set") {
            return;
        }
        let last = tokens.len().checked_sub(1);
        let equals = tokens.iter().position(|token| token.of(tag) == "=");
        if let (Some(equals), Some(last)) = (equals, last)
            && last > equals
            && !(last == equals + 1 && tokens[last].kind != Kind::Name)
        {
            // A field of a namespace may not be one.
            let field = tokens[..equals].iter().any(|token| token.of(tag) == ".");
            let name = if field { KEPT_INSIDE } else { KEPT };
            self.all.push((tokens[equals].end, 0, " (".into()));
            self.all.push((tokens[last].end, 3, format!(") | {name}")));
        }
    }

    fn put_into(mut self, tag: &str) -> String {
        self.all.sort();
        self.all.dedup();
        let (mut out, mut from) = (String::with_capacity(tag.len() + 16 * self.all.len()), 0);
        for (at, _, text) in &self.all {
            out += &tag[from..*at];
            out += text;
            from = *at;
        }
        out + &tag[from..]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Name,
    Symbol,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    kind: Kind,
    start: usize,
    end: usize,
}

impl Token {
    fn of<'a>(&self, tag: &'a str) -> &'a str {
        &tag[self.start..self.end]
    }

    /// Whether an operator behind this has a left side.
    fn ends_operand(&self, tag: &str) -> bool {
        match self.kind {
            Kind::Text | Kind::Number => true,
            Kind::Name => !WORDS.contains(&self.of(tag)),
            Kind::Symbol => matches!(self.of(tag), ")" | "]" | "}"),
        }
    }
}

/// The word that says what a block tag does.
fn first_word<'a>(tag: &'a str, tokens: &[Token]) -> Option<&'a str> {
    tokens.iter().find(|token| token.kind == Kind::Name).map(|token| token.of(tag))
}

/// What stands between the marks of a tag, its signs of what is trimmed left out.
fn tokens(tag: &str) -> Vec<Token> {
    let inner = ["%}", "}}"].iter().find_map(|close| tag.strip_suffix(close)).unwrap_or(tag);
    let inner = inner.strip_suffix(['-', '+']).unwrap_or(inner);
    let mut tokens = Vec::new();
    let mut at = 2 + usize::from(inner[2.min(inner.len())..].starts_with(['-', '+']));
    while let Some(c) = inner.get(at..).and_then(|rest| rest.chars().next()) {
        let rest = &inner[at..];
        let while_ = |test: fn(char) -> bool| rest.find(|c| !test(c)).unwrap_or(rest.len());
        let (kind, len) = match c {
            '"' | '\'' => (Kind::Text, text_len(rest, c)),
            c if c.is_ascii_digit() => (Kind::Number, while_(|c| c.is_alphanumeric() || c == '_')),
            c if c.is_alphabetic() || c == '_' => {
                (Kind::Name, while_(|c| c.is_alphanumeric() || c == '_'))
            }
            c if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            _ if ["**", "//", "==", "!=", "<=", ">="].iter().any(|two| rest.starts_with(two)) => {
                (Kind::Symbol, 2)
            }
            c => (Kind::Symbol, c.len_utf8()),
        };
        tokens.push(Token { kind, start: at, end: at + len });
        at += len;
    }
    tokens
}

/// How long a quoted text is, both quotes included.
fn text_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Where the operand ends that begins with token `i`: signs, a value, and what is read, called or filtered
/// of it. None of a text alone, which needs no guard, and where there is no operand.
fn operand_end(tag: &str, tokens: &[Token], mut i: usize) -> Option<usize> {
    let symbol = |i: usize| tokens.get(i).filter(|t| t.kind == Kind::Symbol).map(|t| t.of(tag));
    while matches!(symbol(i), Some("-" | "+")) {
        i += 1;
    }
    let first = tokens.get(i)?;
    let mut alone = first.kind == Kind::Text;
    i = match first.kind {
        Kind::Name if WORDS.contains(&first.of(tag)) => return None,
        Kind::Symbol => closing(tag, tokens, i)?,
        _ => i + 1,
    };
    while alone && tokens.get(i).is_some_and(|t| t.kind == Kind::Text) {
        i += 1;
    }
    loop {
        i = match symbol(i) {
            Some("." | "|") if tokens.get(i + 1).is_some_and(|t| t.kind != Kind::Symbol) => i + 2,
            Some("(" | "[") => closing(tag, tokens, i)?,
            _ => break,
        };
        alone = false;
    }
    (!alone).then(|| tokens[i - 1].end)
}

/// The token behind the bracket that closes the one at `i`.
fn closing(tag: &str, tokens: &[Token], i: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(i).filter(|(_, t)| t.kind == Kind::Symbol) {
        match token.of(tag) {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return (at > i).then_some(at + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_and_kept_is_guarded() {
        for (tag, expected) in [
            ("{{ a + b }}", "{{ a@ + b@ }}"),
            (
                "{{- 'x' + a.b['+'](c + 1) | f('y', z=2) + 'w' -}}",
                "{{- 'x' + a.b['+'](c@ + 1@) | f('y', z=2)@ + 'w' -}}",
            ),
            (
                "{% set ns.s = ns.s + [x] %}",
                "{% set ns.s = ( ns.s@ + ([x]@)@) | __kept_inside__ %}",
            ),
            ("{%- set x = a or b -%}", "{%- set x = ( a or b)! -%}"),
            ("{%- set x=-a-%}", "{%- set x= (-a)!-%}"),
            ("{% set a, b = f(x) %}", "{% set a, b = ( f(x))! %}"),
            ("{% set x = 'a' %}", "{% set x = 'a' %}"),
            ("{% set x %}", "{% set x %}"),
            ("{%+ if (a) + -b is defined +%}", "{%+ if (a)@ + -b@ is defined +%}"),
            ("{{ 'a' 'b' + 'c' 'd' }}", "{{ 'a' 'b' + 'c' 'd' }}"),
            ("{{ f(+1, x == +2) }}", "{{ f(+1, x@ == +2) }}"),
            ("{{ 'it\\'s + ' + a }}", "{{ 'it\\'s + ' + a@ }}"),
            ("{{ a ** 2 // 3 - 4 }}", "{{ a ** 2 // 3 - 4 }}"),
            ("{{ x if y else z + {'a': 1} }}", "{{ x if y else z@ + {'a': 1}@ }}"),
            ("{{ [[a], [1, 'b']][0] + c['d'] }}", "{{ ([([a]@), [1, 'b']]@)[0]@ + c['d']@ }}"),
            ("{% if a.b == 'x' and a.b == c %}", "{% if a.b == 'x' and a.b@ == c %}"),
            ("{% if a not in [b, c] %}", "{% if a not in ([b, c]@) %}"),
            ("{% for a in b if a not in c %}", "{% for a in b if a not in c %}"),
            ("{% for a in b if a == c %}", "{% for a in b if a@ == c %}"),
            ("{{ a +", "{{ a +"),
            ("{{ ( + }}", "{{ ( + }}"),
        ] {
            let expected = expected.replace('@', " | __weighed__").replace('!', " | __kept__");
            assert_eq!(guard(tag), expected);
        }
        assert_eq!(guard("{{ '-' * n }}"), "{{ '-' * n | __factor__ }}");
        assert_eq!(guard("{{ n * 'é' + m }}"), "{{ n | __factor__ * 'é' + m | __weighed__ }}");
    }
}

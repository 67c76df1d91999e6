//! Python's methods of texts, lists and mappings, at a price.
//!
//! minijinja charges its own operations by what they visit and make, but a method of a list may visit what
//! was never made: a list that is twice another one, which is twice another one.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// The widest field of `str.format`.
const WIDTH: usize = 1000;

/// Calls a method that minijinja does not know.
pub fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let bad = |message: String| Err(Error::new(ErrorKind::InvalidOperation, message));
    let list = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    match (method, args.first()) {
        ("join", Some(items)) => {
            for item in items.try_iter()? {
                let Some(text) = item.as_str() else {
                    return bad(format!("join: expected texts, got a {}", item.kind()));
                };
                state.consume_fuel(1 + text.len() as u64 / 64)?;
            }
        }
        ("startswith" | "endswith", Some(these)) if list(these) => visit(state, these)?,
        ("count", Some(what)) if list(value) => {
            if is_container(what) {
                return bad(format!("count: expected a text or a number, got a {}", what.kind()));
            }
            visit(state, value)?;
        }
        ("format", _) => {
            if let Some(arg) = args.iter().find(|arg| is_container(arg)) {
                return bad(format!("format: expected texts and numbers, got a {}", arg.kind()));
            }
            let wide =
                |digits: &str| digits.parse().map_or(!digits.is_empty(), |w: usize| w > WIDTH);
            let text = value.as_str().unwrap_or_default();
            if text.split(|c: char| !c.is_ascii_digit()).any(wide) {
                return bad(format!("format: expected fields of at most {WIDTH} characters"));
            }
            state.consume_fuel((text.matches('{').count() * WIDTH / 64) as u64)?;
        }
        _ => {}
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

fn visit(state: &State, list: &Value) -> Result<(), Error> {
    list.try_iter()?.try_for_each(|_| state.consume_fuel(1))
}

fn is_container(value: &Value) -> bool {
    use ValueKind::{Bool, None, Number, String, Undefined};
    !matches!(value.kind(), Bool | None | Number | String | Undefined)
}

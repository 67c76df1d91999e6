//! How much a value of a template holds, all that is inside included.

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// The filter that charges for a value and refuses one that is too heavy or too deep.
pub const WEIGHED: &str = "__weighed__";
/// [`WEIGHED`] for what is kept: what minijinja would make anew at every use is made here, once.
pub const KEPT: &str = "__kept__";
/// [`KEPT`] for what is kept in a field of a namespace, which may not be one.
pub const KEPT_INSIDE: &str = "__kept_inside__";
/// The filter that refuses lists.
pub const FACTOR: &str = "__factor__";

/// Lists in lists.
const DEPTH: usize = 64;
/// Bytes of texts, and [`SLOT`] of each value, that one value may hold.
const WEIGHT: usize = 32 << 20;
const SLOT: usize = 32;
/// What tells a namespace from a mapping. One inside another could hold the first.
const NAMESPACE: &str = "__namespace__";

/// Adds the filters, and `dict` and `namespace` that weigh what they are given.
pub fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter(WEIGHED, |state: &State, value: Value| -> Result<Value, Error> {
        if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
            weigh(state, &value, 0, &mut 0)?;
        }
        Ok(value)
    });
    for (name, depth) in [(KEPT, 0), (KEPT_INSIDE, 1)] {
        environment.add_filter(name, move |state: &State, value: Value| -> Result<Value, Error> {
            weigh(state, &value, depth, &mut 0)?;
            match value.kind() {
                ValueKind::Iterable => Ok(Value::from(value.try_iter()?.collect::<Vec<Value>>())),
                _ => Ok(value),
            }
        });
    }
    environment.add_filter(FACTOR, |value: Value| match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            Err(Error::new(ErrorKind::InvalidOperation, "a list cannot be multiplied here"))
        }
        _ => Ok(value),
    });
    let own: Vec<(String, Value)> =
        environment.globals().map(|(name, value)| (name.to_string(), value.clone())).collect();
    for (name, builtin) in own {
        let namespace = name == "namespace";
        if !namespace && name != "dict" {
            continue;
        }
        let call = move |state: &mut State, args: Rest<ValueOrKwargs>| -> Result<Value, Error> {
            let mut args = args.into_values();
            for arg in &args {
                weigh(state, arg, 0, &mut 0)?;
            }
            if namespace {
                let mut pairs = vec![(Value::from(NAMESPACE), Value::from(true))];
                for arg in &args {
                    for key in arg.try_iter()? {
                        let value = arg.get_item(&key)?;
                        pairs.push((key, value));
                    }
                }
                args = vec![Value::from_pairs(pairs)];
            }
            builtin.call(state, &args)
        };
        environment.add_function(name, call);
    }
}

fn weigh(state: &State, value: &Value, depth: usize, weight: &mut usize) -> Result<(), Error> {
    let bad = |what: String| Err(Error::new(ErrorKind::InvalidOperation, what));
    let bytes = SLOT + value.as_str().map_or(0, str::len);
    state.consume_fuel((bytes / SLOT) as u64)?;
    *weight += bytes;
    if *weight > WEIGHT || depth > DEPTH {
        return bad(format!("a value holds more than {WEIGHT} bytes or {DEPTH} lists in lists"));
    }
    match value.kind() {
        ValueKind::Map => {
            if depth > 0 && value.get_attr(NAMESPACE)?.is_true() {
                return bad("a namespace inside another value".into());
            }
            for key in value.try_iter()? {
                weigh(state, &key, depth + 1, weight)?;
                weigh(state, &value.get_item(&key)?, depth + 1, weight)?;
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                weigh(state, &item, depth + 1, weight)?;
            }
        }
        _ => {}
    }
    Ok(())
}

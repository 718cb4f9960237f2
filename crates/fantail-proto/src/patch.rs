//! `body-patch` (spec 5.5): a JSON Patch (RFC 6902) applied to the body that the origin gave with a
//! hold. Owns the limits that keep a short patch from making a huge or bottomless document.

use json_patch::{Patch, PatchOperation, jsonptr::Pointer};
use serde_json::Value;

use crate::json::Json;

/// Reads the value of `body-patch`; `None` when it is no list of at most 1,000 operations.
pub(crate) fn parse(json: &Json<'_>) -> Option<Patch> {
    let Json::Array(operations) = json else { return None };
    if operations.len() > MAX_OPERATIONS {
        return None;
    }
    serde_json::from_value(json.into()).ok()
}

/// The patched body, compact, with the line end that `body` had. `None` when an operation fails, when
/// `body` or the outcome is neither object nor list, or when a limit is passed: the caller then sends
/// `body` as it is.
pub fn apply(patch: &Patch, body: &[u8]) -> Option<Vec<u8>> {
    let line_end: &[u8] = match body {
        [.., b'\r', b'\n'] => b"\r\n",
        [.., b'\n'] => b"\n",
        _ => b"",
    };
    let mut document: Value = serde_json::from_slice(body).ok()?;
    if !is_container(&document) {
        return None;
    }
    let (mut room, mut effort) = (MAX_COPIED_BYTES, MAX_EFFORT);
    for operation in &patch.0 {
        let Cost { copied, touched } = cost(&document, operation)?;
        room = room.checked_sub(copied)?;
        effort = effort.checked_sub(touched)?;
        json_patch::patch_unsafe(&mut document, std::slice::from_ref(operation)).ok()?;
    }
    if !is_container(&document) {
        return None;
    }
    let mut patched = serde_json::to_vec(&document).ok()?;
    patched.extend_from_slice(line_end);
    Some(patched)
}

/// About how many bytes a patch holds.
pub fn weight(patch: &Patch) -> usize {
    let whole = |value: &Value| weigh(value, usize::MAX).unwrap_or(usize::MAX);
    let operation = |operation: &PatchOperation| match operation {
        PatchOperation::Add(add) => add.path.len() + whole(&add.value),
        PatchOperation::Replace(replace) => replace.path.len() + whole(&replace.value),
        PatchOperation::Test(test) => test.path.len() + whole(&test.value),
        PatchOperation::Move(mov) => mov.path.len() + mov.from.len(),
        PatchOperation::Copy(copy) => copy.path.len() + copy.from.len(),
        PatchOperation::Remove(remove) => remove.path.len(),
    };
    patch.0.iter().map(|of| operation(of) + size_of::<PatchOperation>()).sum()
}

fn is_container(value: &Value) -> bool {
    value.is_object() || value.is_array()
}

/// About how many bytes of a document an operation copies, and how many it has to look at or move.
struct Cost {
    copied: usize,
    touched: usize,
}

/// `None` when it would nest too deep.
fn cost(document: &Value, operation: &PatchOperation) -> Option<Cost> {
    let placed = |path: &Pointer, value| weigh(value, MAX_DEPTH.checked_sub(path.count())?);
    let beside = |path: &Pointer| neighbours(document, path) * SHIFTED_BYTES;
    Some(match operation {
        PatchOperation::Add(add) => {
            Cost { copied: 0, touched: placed(&add.path, &add.value)? + beside(&add.path) }
        }
        PatchOperation::Replace(replace) => {
            Cost { copied: 0, touched: placed(&replace.path, &replace.value)? }
        }
        PatchOperation::Move(mov) => {
            let size = placed(&mov.path, mov.from.resolve(document).ok()?)?;
            Cost { copied: 0, touched: size + beside(&mov.from) + beside(&mov.path) }
        }
        PatchOperation::Copy(copy) => {
            let copied = placed(&copy.path, copy.from.resolve(document).ok()?)?;
            Cost { copied, touched: copied + beside(&copy.path) }
        }
        PatchOperation::Remove(remove) => Cost { copied: 0, touched: beside(&remove.path) },
        PatchOperation::Test(_) => Cost { copied: 0, touched: 0 },
    })
}

/// How many elements may have to make room for one.
fn neighbours(document: &Value, path: &Pointer) -> usize {
    let parent = path.parent().and_then(|parent| parent.resolve(document).ok());
    parent.and_then(Value::as_array).map_or(0, Vec::len)
}

/// About how many bytes `value` holds; `None` when it is nested deeper than `depth`.
fn weigh(value: &Value, depth: usize) -> Option<usize> {
    let inner = || depth.checked_sub(1);
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => Some(NODE_BYTES),
        Value::String(text) => Some(NODE_BYTES + text.len()),
        Value::Array(elements) => {
            elements.iter().try_fold(NODE_BYTES, |sum, element| Some(sum + weigh(element, inner()?)?))
        }
        Value::Object(members) => members
            .iter()
            .try_fold(NODE_BYTES, |sum, (name, member)| Some(sum + name.len() + weigh(member, inner()?)?)),
    }
}

/// Every long-poll pays for every operation; libraries send a handful.
const MAX_OPERATIONS: usize = 1_000;

/// `copy` doubles a document each time: sixty bytes of patch for a thousandfold of body. Ten times a
/// held body's usual limit is enough for any honest copy.
const MAX_COPIED_BYTES: usize = 1_000_000;

/// What all operations of a patch together look at or move: some milliseconds. Forty times a held body's usual limit.
const MAX_EFFORT: usize = 4_000_000;

/// What an element costs that is moved over by one place, beside [`NODE_BYTES`] for one that is looked at.
const SHIFTED_BYTES: usize = 4;

/// serde_json's own limit for what it parses: values are dropped and written by recursion.
const MAX_DEPTH: usize = 128;

/// A guess of what a value costs besides its text.
const NODE_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(patch: &str, body: &str) -> Option<String> {
        let patch = parse(&Json::parse(patch.as_bytes()).unwrap())?;
        apply(&patch, body.as_bytes()).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn operations_follow_rfc_6902() {
        for (patch, body, expected) in [
            (r#"[{"op":"add","path":"/a/1","value":2}]"#, "{\"a\": [1, 3]}\n", "{\"a\":[1,2,3]}\n"),
            (r#"[{"op":"add","path":"/a/1","value":2}]"#, "{\"a\":[1]}\r\n", "{\"a\":[1,2]}\r\n"),
            (r#"[{"op":"add","path":"/-","value":{}}]"#, "[]", "[{}]"),
            (r#"[{"op":"remove","path":"/a"}]"#, r#"{"b":1,"a":2}"#, r#"{"b":1}"#),
            (r#"[{"op":"replace","path":"/a~1b","value":"é"}]"#, r#"{"a/b":1}"#, r#"{"a/b":"é"}"#),
            (r#"[{"op":"move","from":"/a","path":"/b"}]"#, r#"{"a":1}"#, r#"{"b":1}"#),
            (r#"[{"op":"copy","from":"/a","path":"/b"}]"#, r#"{"a":1}"#, r#"{"a":1,"b":1}"#),
            (r#"[{"op":"test","path":"/a","value":1}]"#, r#"{"a":1}"#, r#"{"a":1}"#),
            ("[]", "[ ]\n", "[]\n"),
        ] {
            assert_eq!(patched(patch, body).as_deref(), Some(expected), "{patch}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_none() {
        for (patch, body) in [
            (r#"[{"op":"test","path":"/a","value":2}]"#, r#"{"a":1}"#),
            (r#"[{"op":"add","path":"/a/2","value":2}]"#, r#"{"a":[1]}"#),
            (r#"[{"op":"remove","path":"/x"}]"#, "{}"),
            (r#"[{"op":"replace","path":"","value":1}]"#, "{}"),
            ("[]", "1"),
            ("[]", "no JSON"),
            ("{}", "{}"),
            (r#"[{"op":"dance","path":""}]"#, "{}"),
            (r#"[{"op":"move","from":"/a","path":"/a/b"}]"#, r#"{"a":{}}"#),
        ] {
            assert_eq!(patched(patch, body), None, "{patch}");
        }
    }

    /// A short patch that goes through a large document again and again.
    #[test]
    fn effort_is_limited() {
        let members = vec!["1"; 20_000].join(",");
        let there_and_back = r#"{"op":"move","from":"/a","path":"/b"},{"op":"move","from":"/b","path":"/a"}"#;
        let rotate = r#"{"op":"move","from":"/a/0","path":"/a/1"}"#;
        let body = format!(r#"{{"a":[{members}]}}"#);
        for (operations, few, many) in [(there_and_back, 1, 500), (rotate, 10, 1000)] {
            let patch = |count: usize| format!("[{}]", vec![operations; count].join(","));
            assert!(patched(&patch(few), &body).is_some(), "{operations}");
            assert_eq!(patched(&patch(many), &body), None, "{operations}");
        }
    }

    #[test]
    fn copies_neither_explode_nor_dig() {
        let double = r#"{"op":"copy","from":"","path":"/-"}"#;
        assert_eq!(patched(&format!("[{}]", [double; 18].join(",")), "[]"), None);
        assert!(patched(&format!("[{}]", [double; 3].join(",")), "[]").is_some());

        let deep = format!("{}{}", r#"{"a":"#.repeat(100), format_args!("1{}", "}".repeat(100)));
        let dig = format!(r#"[{{"op":"copy","from":"","path":"{}"}}]"#, "/a".repeat(100));
        assert_eq!(patched(&dig, &deep), None);
        assert!(patched(r#"[{"op":"copy","from":"/a","path":"/b"}]"#, &deep).is_some());
    }

    #[test]
    fn too_many_operations_are_refused() {
        let test = r#"{"op":"test","path":"/a","value":1}"#;
        assert!(patched(&format!("[{}]", vec![test; MAX_OPERATIONS].join(",")), r#"{"a":1}"#).is_some());
        assert!(patched(&format!("[{}]", vec![test; MAX_OPERATIONS + 1].join(",")), r#"{"a":1}"#).is_none());
    }
}

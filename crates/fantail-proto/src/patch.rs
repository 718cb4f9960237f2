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
    let mut room = MAX_COPIED_BYTES;
    for operation in &patch.0 {
        room = room.checked_sub(growth(&document, operation)?)?;
        json_patch::patch_unsafe(&mut document, std::slice::from_ref(operation)).ok()?;
    }
    if !is_container(&document) {
        return None;
    }
    let mut patched = serde_json::to_vec(&document).ok()?;
    patched.extend_from_slice(line_end);
    Some(patched)
}

fn is_container(value: &Value) -> bool {
    value.is_object() || value.is_array()
}

/// How many bytes the operation copies inside the document; `None` when it would nest too deep.
fn growth(document: &Value, operation: &PatchOperation) -> Option<usize> {
    let placed = |path: &Pointer, value| weigh(value, MAX_DEPTH.checked_sub(path.count())?);
    match operation {
        PatchOperation::Add(add) => placed(&add.path, &add.value).map(|_| 0),
        PatchOperation::Replace(replace) => placed(&replace.path, &replace.value).map(|_| 0),
        PatchOperation::Move(mov) => placed(&mov.path, mov.from.resolve(document).ok()?).map(|_| 0),
        PatchOperation::Copy(copy) => placed(&copy.path, copy.from.resolve(document).ok()?),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => Some(0),
    }
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

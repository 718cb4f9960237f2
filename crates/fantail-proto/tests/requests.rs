//! The corpus of requests, against the parser alone: the same vectors that the server gets over sockets.

#![expect(unreachable_pub, reason = "the corpus is a module of two test binaries")]

#[path = "../../fantail/tests/it/corpus.rs"]
mod corpus;

use std::collections::HashSet;

use corpus::{Expect, vectors};
use fantail_proto::request::{Body, Head, Limits, Refusal};

/// The server's defaults.
const LIMITS: Limits = Limits { head_bytes: 32768, headers: 100, target_bytes: 8192, body_bytes: 1 << 30 };

/// Bytes of the message, `None` if it goes on.
fn read(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
    let Some(head) = Head::check(bytes, &LIMITS)? else { return Ok(None) };
    let Some(mut body) = Body::new(head.framing, &LIMITS) else { return Ok(Some(head.len)) };
    let mut at = head.len;
    loop {
        match body.take(&bytes[at..])? {
            (used, true) => return Ok(Some(at + used)),
            (0, false) => return Ok(None),
            (used, false) => at += used,
        }
    }
}

#[test]
fn each_vector_has_its_verdict() {
    let mut wrong = Vec::new();
    for vector in vectors() {
        let found = read(&vector.bytes);
        let right = match vector.expect {
            Expect::Accept => found == Ok(Some(vector.bytes.len())),
            Expect::Refuse => found.is_err(),
        };
        if !right {
            wrong.push(format!("{:?}: {:?}, but {found:?}", vector.name, vector.expect));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_corpus_is_large_and_has_no_doubles() {
    let all = vectors();
    let mut names = HashSet::new();
    let doubles: Vec<_> = all.iter().filter(|vector| !names.insert(&vector.name)).collect();
    assert!(doubles.is_empty(), "{doubles:?}");
    assert!(all.len() >= 1000, "{}", all.len());
}

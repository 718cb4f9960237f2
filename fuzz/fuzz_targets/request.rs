//! Any bytes are a request, the beginning of one, or refused, however they are split; and what is
//! accepted is accepted by hyper's parser with the same length.
#![no_main]

use fantail_proto::request::{Body, Framing, Head, Limits, Parser, Refusal};

const LIMITS: Limits = Limits { head_bytes: 4096, headers: 16, target_bytes: 200, body_bytes: 1 << 20 };

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let whole = read(bytes, bytes.len().max(1));
    assert_eq!(whole, read(bytes, usize::from(step).max(1)));
    if let Ok(Some(head)) = Head::check(bytes, &LIMITS) {
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut request = httparse::Request::new(&mut fields);
        assert_eq!(request.parse(bytes), Ok(httparse::Status::Complete(head.len)));
        let target = request.path.expect("a complete request");
        assert!(target.parse::<http::Uri>().is_ok(), "{target}");
        assert!(head.framing != Framing::Chunked || request.version == Some(1));
    }
});

/// Bytes of the message, `None` if it goes on.
fn read(bytes: &[u8], step: usize) -> Result<Option<usize>, Refusal> {
    let mut parser = Parser::default();
    let mut end = 0;
    let head = loop {
        end = (end + step).min(bytes.len());
        match parser.push(&bytes[..end], &LIMITS)? {
            Some(head) => break head,
            None if end == bytes.len() => return Ok(None),
            None => {}
        }
    };
    let Some(mut body) = Body::new(head.framing, &LIMITS) else { return Ok(Some(head.len)) };
    let mut at = head.len;
    while at < bytes.len() {
        let (used, ended) = body.take(&bytes[at..(at + step).min(bytes.len())])?;
        at += used;
        if ended {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

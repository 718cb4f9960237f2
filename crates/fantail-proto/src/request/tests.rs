use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { head_bytes: 600, headers: 8, target_bytes: 100, body_bytes: 1000 };

#[derive(Debug, Eq, PartialEq)]
enum Verdict {
    /// Bytes of the whole message.
    Message(usize),
    More,
    Refused(Refusal),
}

/// Feeds the pieces as a socket would: the head again with each, the body once.
fn verdict<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Verdict {
    let mut parser = Parser::default();
    let (mut seen, mut rest) = (Vec::new(), 0);
    let mut body: Option<Body> = None;
    for piece in pieces {
        seen.extend_from_slice(piece);
        if body.is_none() {
            match parser.push(&seen, &LIMITS) {
                Ok(None) => continue,
                Ok(Some(head)) => {
                    rest = head.len;
                    match Body::new(head.framing, &LIMITS) {
                        Some(new) => body = Some(new),
                        None => return Verdict::Message(head.len),
                    }
                }
                Err(refusal) => return Verdict::Refused(refusal),
            }
        }
        let body = body.as_mut().unwrap();
        while rest < seen.len() {
            match body.take(&seen[rest..]) {
                Ok((used, true)) => return Verdict::Message(rest + used),
                Ok((used, false)) => rest += used,
                Err(refusal) => return Verdict::Refused(refusal),
            }
        }
    }
    Verdict::More
}

fn whole(bytes: &str) -> Verdict {
    verdict([bytes.as_bytes()])
}

/// A head with one more field.
fn with(field: &str) -> String {
    format!("POST /a HTTP/1.1\r\nHost: a.example\r\n{field}\r\n\r\n")
}

fn chunked(body: &str) -> String {
    with("Transfer-Encoding: chunked") + body
}

#[test]
fn request_lines() {
    let check = |line: &str, expected: Result<(), Refusal>| {
        let found = whole(&format!("{line}\r\nHost: a.example\r\n\r\n"));
        match expected {
            Ok(()) => assert!(matches!(found, Verdict::Message(_)), "{line:?}: {found:?}"),
            Err(refusal) => assert_eq!(found, Verdict::Refused(refusal), "{line:?}"),
        }
    };
    for good in [
        "GET / HTTP/1.1",
        "get /a//b/../%2e%2E/?x=[1]&y={z|w} HTTP/1.0",
        "M-SEARCH /;a,b HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET http://a.example/x HTTP/1.1",
        "GET HTTP://A.Example HTTP/1.1",
        "GET http://a.example?x HTTP/1.1",
        "\r\nGET / HTTP/1.1",
    ] {
        check(good, Ok(()));
    }
    for (bad, refusal) in [
        (" GET / HTTP/1.1", Refusal::Method),
        ("G\u{e9}T / HTTP/1.1", Refusal::Method),
        ("GET\t/ HTTP/1.1", Refusal::Method),
        ("GET", Refusal::Method),
        ("\r\n\r\nGET / HTTP/1.1", Refusal::RequestLine),
        ("\nGET / HTTP/1.1", Refusal::LineEnd),
        ("GET /", Refusal::RequestLine),
        ("GET  / HTTP/1.1", Refusal::RequestLine),
        ("GET / HTTP/1.1 ", Refusal::RequestLine),
        ("GET / http/1.1", Refusal::RequestLine),
        ("GET / HTTP/1.1\r", Refusal::RequestLine),
        ("GET / HTTP/2.0", Refusal::Version),
        ("PRI * HTTP/2.0", Refusal::Version),
        ("GET / HTTP/0.9", Refusal::Version),
        ("GET / HTTP/3", Refusal::Version),
        ("CONNECT a.example:443 HTTP/1.1", Refusal::Connect),
        ("GET * HTTP/1.1", Refusal::Target),
        ("GET a.example/ HTTP/1.1", Refusal::Target),
        ("GET https://a.example/ HTTP/1.1", Refusal::Target),
        ("GET http:/// HTTP/1.1", Refusal::Target),
        ("GET http://u@a.example/ HTTP/1.1", Refusal::Target),
        ("GET http://b.example/ HTTP/1.1", Refusal::HostDiffers),
        ("GET /%zz HTTP/1.1", Refusal::Target),
        ("GET /% HTTP/1.1", Refusal::Target),
        ("GET /a%2 HTTP/1.1", Refusal::Target),
        ("GET /%41%00 HTTP/1.1", Refusal::Target),
        ("GET /a#b HTTP/1.1", Refusal::Target),
        ("GET /a\\b HTTP/1.1", Refusal::Target),
        ("GET /\u{e9} HTTP/1.1", Refusal::Target),
        ("GET /a\tb HTTP/1.1", Refusal::Target),
    ] {
        check(bad, Err(refusal));
    }
}

#[test]
fn fields() {
    for good in [
        "X:",
        "x-tab:\ta\tb\t",
        "!#$%&'*+-.^_`|~09azAZ: all of a token",
        "X: \u{e9}",
        "Connection: close, , TE",
        "Connection:",
        "Content-Length: 0",
        "Content-Length:\t000 ",
        "Expect: 100-Continue",
        "Upgrade: h2c",
    ] {
        assert!(matches!(whole(&with(good)), Verdict::Message(_)), "{good:?}");
    }
    for (bad, refusal) in [
        ("X : a", Refusal::FieldName),
        (": a", Refusal::FieldName),
        ("no colon", Refusal::FieldName),
        ("nocolon", Refusal::FieldName),
        ("X\u{e9}: a", Refusal::FieldName),
        ("X(: a", Refusal::FieldName),
        (" X: a", Refusal::Fold),
        ("\tX: a", Refusal::Fold),
        ("X: a\r\n b", Refusal::Fold),
        ("X: a\nY: b", Refusal::LineEnd),
        ("X: a\n", Refusal::LineEnd),
        ("X: a\rY: b", Refusal::FieldValue),
        ("X: a\r", Refusal::FieldValue),
        ("X: a\0", Refusal::FieldValue),
        ("X: a\u{7f}", Refusal::FieldValue),
        ("Host: a.example", Refusal::HostRepeated),
        ("Content-Length: ", Refusal::ContentLength),
        ("Content-Length: +5", Refusal::ContentLength),
        ("Content-Length: -5", Refusal::ContentLength),
        ("Content-Length: 5, 5", Refusal::ContentLength),
        ("Content-Length: 5 5", Refusal::ContentLength),
        ("Content-Length: 0x5", Refusal::ContentLength),
        ("Content-Length: 18446744073709551616", Refusal::ContentLength),
        ("Content-Length: 5\r\nContent-Length: 5", Refusal::ContentLengthRepeated),
        ("Content-Length: 1001", Refusal::BodyTooLarge),
        ("Content-Length: 0\r\nTransfer-Encoding: chunked", Refusal::TwoLengths),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0", Refusal::TwoLengths),
        ("Transfer-Encoding: gzip, chunked", Refusal::TransferEncoding),
        ("Transfer-Encoding: chunked, chunked", Refusal::TransferEncoding),
        ("Transfer-Encoding: identity", Refusal::TransferEncoding),
        ("Transfer-Encoding: chunked;x", Refusal::TransferEncoding),
        ("Transfer-Encoding:", Refusal::TransferEncoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", Refusal::TransferEncoding),
        ("Connection: a b", Refusal::Connection),
        ("Connection: \"close\"", Refusal::Connection),
        ("Expect: 200-ok", Refusal::Expect),
        ("Expect:", Refusal::Expect),
        ("a: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\ne: 5\r\nf: 6\r\ng: 7\r\nh: 8", Refusal::TooManyFields),
    ] {
        assert_eq!(whole(&with(bad)), Verdict::Refused(refusal), "{bad:?}");
    }
}

#[test]
fn hosts() {
    let check = |host: &str| whole(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    for good in ["a", "a.example.", "A_b-c.1:0", "127.0.0.1:65535", "[::1]", "[::ffff:1.2.3.4]:80"] {
        assert!(matches!(check(good), Verdict::Message(_)), "{good:?}");
    }
    for bad in [
        "",
        ".",
        "a..b",
        ".a",
        "a:",
        ":80",
        "a:65536",
        "a:000080",
        "a:8x",
        "u@a",
        "a/b",
        "a b",
        "a,b",
        "a;b",
        "a%2e",
        "[::1",
        "[::1]x",
        "[]",
        "[::1%25eth0]",
        "[v1.a]",
        "a:80:80",
        "a\\b",
        "\u{e9}",
        "a?b",
        "a#b",
    ] {
        assert_eq!(check(bad), Verdict::Refused(Refusal::Host), "{bad:?}");
    }
    assert_eq!(whole("GET / HTTP/1.1\r\n\r\n"), Verdict::Refused(Refusal::HostMissing));
    assert_eq!(whole("GET / HTTP/1.0\r\n\r\n"), Verdict::Message(18));
}

#[test]
fn http_1_0() {
    let check = |field: &str| whole(&format!("POST / HTTP/1.0\r\n{field}\r\n\r\n"));
    assert_eq!(check("Transfer-Encoding: chunked"), Verdict::Refused(Refusal::TransferEncoding));
    assert!(matches!(check("Expect: anything"), Verdict::Message(_)));
}

#[test]
fn what_a_head_says() {
    let head = |text: &str| Head::check(text.as_bytes(), &LIMITS).unwrap().unwrap();
    let plain = head("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET");
    assert_eq!(
        plain,
        Head {
            len: 27,
            framing: Framing::None,
            version: Version::HTTP_11,
            keep_alive: true,
            upgrade: false,
            expect: false,
            forwarded_for: false
        }
    );
    assert!(head(&with("x-forwarded-FOR: 1.2.3.4")).forwarded_for);
    let asks = head(&with(
        "Content-Length: 7\r\nconnection: x, Close\r\nCONNECTION: keep-alive\r\nUPGRADE: y\r\nexpect: 100-continue",
    ));
    assert_eq!(asks.framing, Framing::Length(7));
    assert!(!asks.keep_alive && asks.upgrade && asks.expect);
    assert!(head("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").keep_alive);
    assert!(!head("GET / HTTP/1.0\r\n\r\n").keep_alive);
    assert_eq!(head(&with("transfer-encoding:CHUNKED")).framing, Framing::Chunked);
}

#[test]
fn bodies() {
    let check = |body: &str, expected: Result<usize, Refusal>| {
        let request = chunked(body);
        let expected = match expected {
            Ok(after) => Verdict::Message(request.len() - after),
            Err(refusal) => Verdict::Refused(refusal),
        };
        assert_eq!(whole(&request), expected, "{body:?}");
    };
    for (good, after) in [
        ("0\r\n\r\n", 0),
        ("000\r\n\r\nGET ", 4),
        ("a\r\n0123456789\r\n0\r\n\r\n", 0),
        ("00000000000000A\r\n0123456789\r\n0\r\n\r\n", 0),
        ("1;a\r\nx\r\n0;b=c;d=\"e \\\" \u{e9}\";f\r\n\r\n", 0),
        ("0\r\nA: b\r\nc:\r\n\r\n", 0),
    ] {
        check(good, Ok(after));
    }
    for (bad, refusal) in [
        ("\r\n", Refusal::ChunkSize),
        (" 1\r\nx\r\n", Refusal::ChunkSize),
        ("1 \r\nx\r\n", Refusal::ChunkSize),
        ("+1\r\nx\r\n", Refusal::ChunkSize),
        ("-1\r\n", Refusal::ChunkSize),
        ("0x1\r\nx\r\n", Refusal::ChunkSize),
        ("1g\r\n", Refusal::ChunkSize),
        ("1_0\r\n", Refusal::ChunkSize),
        ("1\nx\r\n", Refusal::ChunkSize),
        ("1\rx", Refusal::ChunkSize),
        ("0000000000000000\r\n", Refusal::ChunkSize),
        ("1\r\nxy\r\n", Refusal::ChunkEnd),
        ("1\r\nx\n", Refusal::ChunkEnd),
        ("1\r\nx\r0", Refusal::ChunkEnd),
        ("3e9\r\n", Refusal::BodyTooLarge),
        ("1;\r\n", Refusal::ChunkExtension),
        ("1; a\r\n", Refusal::ChunkExtension),
        ("1;a \r\n", Refusal::ChunkExtension),
        ("1;a=\r\n", Refusal::ChunkExtension),
        ("1;a=b c\r\n", Refusal::ChunkExtension),
        ("1;a=\"b\r\n", Refusal::ChunkExtension),
        ("1;a=\"b\"c\r\n", Refusal::ChunkExtension),
        ("1;a\nx", Refusal::ChunkExtension),
        ("1;=b\r\n", Refusal::ChunkExtension),
        ("0\r\n a: b\r\n", Refusal::Trailer),
        ("0\r\na : b\r\n", Refusal::Trailer),
        ("0\r\na: b\n", Refusal::Trailer),
        ("0\r\na: b\r\n c\r\n", Refusal::Trailer),
        ("0\r\na\r\n", Refusal::Trailer),
        ("0\r\n: b\r\n", Refusal::Trailer),
        ("0\r\n\n", Refusal::Trailer),
        ("0\r\n\rx", Refusal::Trailer),
    ] {
        check(bad, Err(refusal));
    }
    check(&format!("0\r\n{}\r\n", "a: b\r\n".repeat(64)), Ok(0));
    check(&format!("0\r\n{}\r\n", "a: b\r\n".repeat(65)), Err(Refusal::TrailersTooLarge));
    check(&format!("0\r\na: {}\r\n\r\n", "b".repeat(8192)), Err(Refusal::TrailersTooLarge));
    check(&format!("0;{}\r\n\r\n", "b".repeat(8192)), Err(Refusal::TrailersTooLarge));
    check(&format!("3e8\r\n{}\r\n0\r\n\r\n", "b".repeat(1000)), Ok(0));
    check(&format!("3e8\r\n{}\r\n1\r\n", "b".repeat(1000)), Err(Refusal::BodyTooLarge));
    let sized = with("Content-Length: 5");
    assert_eq!(whole(&(sized.clone() + "hello")), whole(&(sized + "helloGET")));
}

#[test]
fn limits_of_a_head() {
    let target = |n: usize| whole(&format!("GET /{} HTTP/1.0\r\n\r\n", "a".repeat(n - 1)));
    assert!(matches!(target(100), Verdict::Message(_)));
    assert_eq!(target(101), Verdict::Refused(Refusal::TargetTooLong));
    let unfinished = format!("GET /{}", "a".repeat(100));
    assert_eq!(whole(&unfinished), Verdict::Refused(Refusal::TargetTooLong));
    let head = |n: usize| {
        let start = "GET / HTTP/1.0\r\nX: ";
        whole(&format!("{start}{}\r\n\r\n", "a".repeat(n - start.len() - 4)))
    };
    assert_eq!(head(600), Verdict::Message(600));
    assert_eq!(head(601), Verdict::Refused(Refusal::HeadTooLarge));
    let unfinished = format!("GET / HTTP/1.0\r\nX: {}", "a".repeat(600));
    assert_eq!(whole(&unfinished), Verdict::Refused(Refusal::HeadTooLarge));
    assert_eq!(whole(&"A".repeat(33)), Verdict::Refused(Refusal::Method));
    assert_eq!(whole("\x16\x03\x01"), Verdict::Refused(Refusal::Method));
}

/// hyper must take each target that is accepted here: its own refusals have other texts and counters.
#[test]
fn accepted_targets_are_uris() {
    for byte in 0..=255_u8 {
        for prefix in ["/", "/?"] {
            let head = [b"GET ", prefix.as_bytes(), &[byte], b" HTTP/1.0\r\n\r\n"].concat();
            let target = [prefix.as_bytes(), &[byte]].concat();
            if matches!(verdict([&head[..]]), Verdict::Message(_)) {
                assert!(http::Uri::try_from(&target[..]).is_ok(), "{byte:#x}");
            }
        }
        let head = [b"GET / HTTP/1.0\r\n", &[byte][..], b"x: y\r\n\r\n"].concat();
        if matches!(verdict([&head[..]]), Verdict::Message(_)) {
            assert!(http::HeaderName::from_bytes(&[byte, b'x']).is_ok(), "{byte:#x}");
        }
    }
}

fn pieces(bytes: &[u8], mut cuts: Vec<usize>) -> Vec<&[u8]> {
    cuts.extend([0, bytes.len()]);
    cuts.iter_mut().for_each(|cut| *cut = (*cut).min(bytes.len()));
    cuts.sort_unstable();
    cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect()
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just("Host: a.example\r\n".to_owned()),
        Just("Content-Length: 12\r\n".to_owned()),
        Just("Transfer-Encoding: chunked\r\n".to_owned()),
        Just(format!("X: {}\r\n", "y".repeat(590))),
        "[ -~\r\n\t]{0,12}\r?\n",
    ];
    let body = prop_oneof![
        Just("5;a=b\r\nhello\r\n0\r\nT: u\r\n\r\n".to_owned()),
        "[0-9a-f]{1,2}[;\r]\n?[a-z\r\n]{0,30}",
    ];
    let start = prop_oneof![
        Just("GET / HTTP/1.1\r\n".to_owned()),
        Just("\r\nPOST http://a.example/ HTTP/1.1\r\n".to_owned()),
        "[A-Z]{1,33} /[a-z%0 ]{1,110} ?HTTP/[12]\\.[01]\r?\n",
    ];
    (start, proptest::collection::vec(line, 0..4), body)
        .prop_map(|(start, lines, body)| format!("{start}{}\r\n{body}", lines.concat()).into_bytes())
}

proptest! {
    #[test]
    fn any_split_gives_the_same_verdict(
        mut bytes in request(),
        flip in proptest::option::of((any::<proptest::sample::Index>(), any::<u8>())),
        cuts in proptest::collection::vec(0..700_usize, 0..6),
    ) {
        if let Some((at, byte)) = flip {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let expected = verdict([&bytes[..]]);
        prop_assert_eq!(&verdict(pieces(&bytes, cuts)), &expected);
        prop_assert_eq!(&verdict(bytes.chunks(1)), &expected);
    }

    #[test]
    fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        verdict([&bytes[..]]);
        verdict([&b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"[..], &bytes[..]]);
    }
}

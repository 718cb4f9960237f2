use proptest::{collection::vec, prelude::*};

use super::*;

fn inflate(payload: &[u8]) -> Result<Vec<u8>, Violation> {
    Inflater::new().inflate(payload, 1000).map(Vec::from)
}

/// The examples of RFC 7692 section 7.2.3, and other ways to end.
#[test]
fn payloads() {
    let table: [(&[u8], &[u8]); 9] = [
        (b"\xf2\x48\xcd\xc9\xc9\x07\x00", b"Hello"),
        (b"\x00\x05\x00\xfa\xffHello\x00", b"Hello"),
        (b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00", b"Hello"),
        (b"\xf3\x48\xcd\xc9\xc9\x07\x00", b"Hello"),
        (b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00", b"Hello"),
        (b"\x00", b""),
        (b"", b""),
        (b"\x01", b""),
        (b"\x02\x00", b""),
    ];
    for (payload, message) in table {
        assert_eq!(inflate(payload), Ok(message.to_vec()), "{payload:x?}");
    }
}

#[test]
fn garbage() {
    let table: [&[u8]; 7] = [
        b"\xff",
        b"\x06\x00",
        b"\xf2\x48\xcd",
        b"\xf2\x48\xcd\xc9\xc9\x07",
        b"\x00\x05\x00\xfa\xffHel",
        b"\x00\x05\x00\xfa\xf0Hello\x00",
        b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00\xf2\x48",
    ];
    for payload in table {
        assert_eq!(inflate(payload), Err(Violation::Deflate), "{payload:x?}");
    }
}

/// "Hello" as a reference to the message before (RFC 7692 section 7.2.3.2), which is another client's.
#[test]
fn a_message_cannot_refer_to_the_one_before() {
    let mut inflater = Inflater::new();
    assert!(inflater.inflate(b"\xf2\x48\xcd\xc9\xc9\x07\x00", 1000).is_ok());
    assert_eq!(inflater.inflate(b"\xf2\x00\x11\x00\x00", 1000), Err(Violation::Deflate));
}

#[test]
fn inflation_stops_at_the_limit() {
    let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
    for len in [1000, SCRATCH - 1, SCRATCH, SCRATCH + 1, 3 * SCRATCH] {
        let payload = deflater.deflate(&vec![b'x'; len]).unwrap();
        assert_eq!(inflater.inflate(payload, len).map(|message| message.len()), Ok(len));
        assert_eq!(inflater.inflate(payload, len - 1), Err(Violation::TooLong));
    }
    let bomb = deflater.deflate(&vec![0; 64 << 20]).unwrap();
    assert_eq!(inflater.inflate(bomb, 1000), Err(Violation::TooLong));
    assert!(inflater.stream.total_out() <= SCRATCH as u64);
}

#[test]
fn what_does_not_shrink_is_left_alone() {
    let mut deflater = Deflater::new();
    assert_eq!(deflater.deflate(b""), None);
    assert_eq!(deflater.deflate(b"Hello"), None);
    assert!(deflater.deflate(b"Hello Hello Hello Hello").is_some());
}

#[test]
fn offers() {
    type Expected = Option<(u8, &'static str)>;
    let table: [(&[&str], Expected); 18] = [
        (&[], None),
        (&["foo"], None),
        (&["permessage-deflate"], Some((15, ""))),
        (&["permessage-deflate; client_max_window_bits"], Some((15, ""))),
        (&["permessage-deflate; client_max_window_bits=9"], Some((15, ""))),
        (&["permessage-deflate; server_max_window_bits=10"], Some((10, "; server_max_window_bits=10"))),
        (&["permessage-deflate; server_max_window_bits=\"15\""], Some((15, "; server_max_window_bits=15"))),
        (
            &[
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=8; client_max_window_bits",
            ],
            Some((8, "; server_max_window_bits=8")),
        ),
        (&["permessage-deflate; server_max_window_bits"], None),
        (&["permessage-deflate; server_max_window_bits=7"], None),
        (&["permessage-deflate; server_max_window_bits=16"], None),
        (&["permessage-deflate; server_max_window_bits=08"], None),
        (&["permessage-deflate; client_max_window_bits=7"], None),
        (&["permessage-deflate; server_no_context_takeover=1"], None),
        (&["permessage-deflate; server_no_context_takeover; server_no_context_takeover"], None),
        (&["permessage-deflate; other, foo", "permessage-deflate; client_max_window_bits"], Some((15, ""))),
        (
            &["permessage-deflate; server_max_window_bits=9, permessage-deflate"],
            Some((9, "; server_max_window_bits=9")),
        ),
        (&["permessage-deflate; server_max_window_bits=99, permessage-deflate"], Some((15, ""))),
    ];
    for (lines, expected) in table {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(line));
        }
        let expected = expected.map(|(bits, added)| Agreed {
            window: Window { bits },
            answer: HeaderValue::from_str(&format!("{OFFER}{added}")).unwrap(),
        });
        assert_eq!(Agreed::from_offers(&headers), expected, "{lines:?}");
    }
}

#[test]
fn a_small_window_takes_short_messages() {
    let window = Window { bits: 9 };
    assert!(window.fits(512) && !window.fits(513));
    assert!(Window::MAX.fits(1 << 20));
}

/// Messages that differ in how well they compress.
fn message() -> impl Strategy<Value = Vec<u8>> {
    (vec(any::<u8>(), 1..200), 1..400usize).prop_map(|(part, times)| part.repeat(times))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_deflated_inflates(messages in vec(message(), 1..4)) {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        for message in messages {
            if let Some(payload) = deflater.deflate(&message) {
                prop_assert!(payload.len() < message.len());
                prop_assert_eq!(inflater.inflate(payload, message.len()).unwrap(), &message);
                prop_assert_eq!(inflater.inflate(payload, message.len() - 1), Err(Violation::TooLong));
            }
        }
    }

    #[test]
    fn a_small_window_is_enough_for_what_fits(message in message(), bits in 9..15u8) {
        let mut deflater = Deflater::new();
        let cut = &message[..message.len().min(1 << bits)];
        let fits = Window { bits }.fits(cut.len());
        prop_assert!(fits);
        if let Some(payload) = deflater.deflate(cut) {
            let mut small = Decompress::new_with_window_bits(false, bits);
            let mut out = Vec::with_capacity(cut.len() + 1);
            small.decompress_vec(payload, &mut out, FlushDecompress::None).unwrap();
            prop_assert_eq!(&out[..], cut);
        }
    }

    #[test]
    fn any_bytes_inflate_within_the_limit(payload in vec(any::<u8>(), 0..300), max in 0..2000usize) {
        if let Ok(message) = Inflater::new().inflate(&payload, max) {
            prop_assert!(message.len() <= max);
        }
    }
}

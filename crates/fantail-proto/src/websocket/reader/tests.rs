use proptest::{collection::vec, prelude::*};

use super::*;
use crate::websocket::{deflate::Deflater, frame::Frame};

const LIMITS: Limits = Limits { message: 1 << 20, fragments: FRAGMENTS_MAX };
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What a reader made of its input: the events, and the violation that ended them.
type Outcome = (Vec<Event>, Option<Violation>);
/// First bytes and payloads.
type Frames<'t> = &'t [(u8, &'t [u8])];

fn read(
    reader: &mut Reader,
    mut input: &mut [u8],
    limits: &Limits,
    events: &mut Vec<Event>,
) -> Option<Violation> {
    let mut inflater = Inflater::new();
    loop {
        match reader.read(&mut input, limits, &mut inflater) {
            Ok(Some(event)) => events.push(event),
            Ok(None) => {
                assert!(input.is_empty(), "everything is used");
                return None;
            }
            Err(violation) => return Some(violation),
        }
    }
}

/// `input` in pieces of at most `step` bytes.
fn outcome(reader: &mut Reader, input: &[u8], step: usize, limits: &Limits) -> Outcome {
    let mut events = Vec::new();
    for piece in input.to_vec().chunks_mut(step) {
        let violation = read(reader, piece, limits, &mut events);
        if violation.is_some() {
            return (events, violation);
        }
    }
    (events, None)
}

/// As a server without deflate, in one piece; the outcome must be the same byte by byte.
fn served(input: &[u8]) -> Outcome {
    let whole = outcome(&mut Reader::new(Role::Server, false), input, usize::MAX, &LIMITS);
    let bytes = outcome(&mut Reader::new(Role::Server, false), input, 1, &LIMITS);
    assert_eq!(whole, bytes, "{input:x?}");
    whole
}

/// A masked frame with any first byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Frame::new(Opcode::Binary, payload).append_masked(KEY, &mut bytes);
    bytes[0] = first;
    bytes
}

fn sent(frames: Frames<'_>) -> Vec<u8> {
    frames.iter().flat_map(|(first, payload)| frame(*first, payload)).collect()
}

fn text(text: &str, fragmented: bool) -> Event {
    Event::Text { payload: Bytes::copy_from_slice(text.as_bytes()), fragmented }
}

fn ping(payload: &'static str) -> Event {
    Event::Ping(payload.as_bytes().into())
}

#[test]
fn messages() {
    let table: [(Frames<'_>, &[Event]); 9] = [
        (&[(0x81, b"Hello")], &[text("Hello", false)]),
        (&[(0x81, b""), (0x82, b"")], &[text("", false), Event::Binary(Bytes::new())]),
        (&[(0x82, b"\xff\xfe")], &[Event::Binary(Bytes::from_static(b"\xff\xfe"))]),
        (&[(0x01, b"Hel"), (0x80, b"lo")], &[text("Hello", true)]),
        (&[(0x01, b"Hello"), (0x80, b"")], &[text("Hello", true)]),
        (&[(0x01, b"\xe2"), (0x00, b"\x82"), (0x80, b"\xac")], &[text("€", true)]),
        (&[(0x01, b"Hel"), (0x89, b"p"), (0x80, b"lo")], &[ping("p"), text("Hello", true)]),
        (
            &[(0x02, b"a"), (0x80, b"b"), (0x82, b"c")],
            &[Event::Binary(Bytes::from_static(b"ab")), Event::Binary(Bytes::from_static(b"c"))],
        ),
        (
            &[(0x8a, b"p"), (0x88, b"\x03\xe8bye"), (0x81, b"after")],
            &[
                Event::Pong(Bytes::from_static(b"p")),
                Event::Close(Some(Close { code: Code::NORMAL, reason: "bye".to_owned() })),
            ],
        ),
    ];
    for (frames, expected) in table {
        let input = sent(frames);
        assert_eq!(served(&input), (expected.to_vec(), None), "{frames:x?}");
    }
}

#[test]
fn violations() {
    use Violation::*;
    let table: [(Frames<'_>, Violation); 21] = [
        (&[(0xc1, b"")], ReservedBit),
        (&[(0xa1, b"")], ReservedBit),
        (&[(0x91, b"")], ReservedBit),
        (&[(0x83, b"")], ReservedOpcode),
        (&[(0x87, b"")], ReservedOpcode),
        (&[(0x8b, b"")], ReservedOpcode),
        (&[(0x09, b"")], ControlFragmented),
        (&[(0x89, &[0; 126])], ControlTooLong),
        (&[(0x80, b"")], NothingToContinue),
        (&[(0x00, b"")], NothingToContinue),
        (&[(0x01, b""), (0x81, b"")], Interleaved),
        (&[(0x01, b""), (0x02, b"")], Interleaved),
        (&[(0x01, b"a"), (0x80, b"b"), (0x80, b"c")], NothingToContinue),
        (&[(0x81, b"\xff")], Utf8),
        (&[(0x81, b"\xe2\x82")], Utf8),
        (&[(0x81, b"\xed\xa0\x80")], Utf8),
        (&[(0x01, b"\xe2\x82"), (0x80, b"")], Utf8),
        (&[(0x01, b"\xf4\x90"), (0x80, b"\x80\x80")], Utf8),
        (&[(0x88, b"\x03")], CloseLength),
        (&[(0x88, b"\x03\xed")], CloseCode),
        (&[(0x88, b"\x03\xe8\xff")], CloseReason),
    ];
    for (frames, expected) in table {
        let input = sent(frames);
        assert_eq!(served(&input).1, Some(expected), "{frames:x?}");
    }
}

#[test]
fn heads_that_are_refused_alone() {
    let mask = [0; 4];
    let head = |bytes: &[u8]| [bytes, &mask].concat();
    assert_eq!(served(b"\x81\x05").1, Some(Violation::Unmasked));
    assert_eq!(served(&head(b"\x81\xfe\x00\x7d")).1, Some(Violation::Length));
    assert_eq!(served(&head(b"\x81\xff\x00\x00\x00\x00\x00\x00\xff\xff")).1, Some(Violation::Length));
    assert_eq!(served(&head(b"\x81\xff\x80\x00\x00\x00\x00\x00\x00\x00")).1, Some(Violation::Length));
    assert_eq!(served(&head(b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff")).1, Some(Violation::TooLong));
    assert_eq!(served(&head(b"\x81\xff\x00\x00\x00\x00\x00\x10\x00\x01")).1, Some(Violation::TooLong));
    assert_eq!(served(&head(b"\x81\xff\x00\x00\x00\x00\x00\x10\x00\x00")).1, None);
    let masked = frame(0x81, b"Hello");
    assert_eq!(
        outcome(&mut Reader::new(Role::Client, false), &masked, 1, &LIMITS).1,
        Some(Violation::Masked)
    );
    let plain = Frame::new(Opcode::Text, b"Hello").to_bytes();
    let read = outcome(&mut Reader::new(Role::Client, false), &plain, 1, &LIMITS);
    assert_eq!(read, (vec![text("Hello", false)], None));
}

#[test]
fn fragments_count_together_against_the_limit() {
    let limits = Limits { message: 4, fragments: 3 };
    let read = |frames: Frames<'_>| {
        let input = sent(frames);
        outcome(&mut Reader::new(Role::Server, false), &input, usize::MAX, &limits)
    };
    assert_eq!(read(&[(0x01, b"ab"), (0x00, b"c"), (0x80, b"d")]).0.len(), 1);
    assert_eq!(read(&[(0x01, b"ab"), (0x80, b"cde")]).1, Some(Violation::TooLong));
    assert_eq!(
        read(&[(0x01, b""), (0x00, b""), (0x00, b""), (0x80, b"")]).1,
        Some(Violation::TooManyFragments)
    );
    assert_eq!(Violation::TooManyFragments.code(), Code::TOO_BIG);
}

/// Autobahn 6.4: the text is refused before the frame has ended.
#[test]
fn a_text_fails_with_the_first_byte_that_is_wrong() {
    let start = "κόσμε".as_bytes();
    let whole = frame(0x81, &[start, b"\xf4\x90\x80\x80edited"].concat());
    let mut reader = Reader::new(Role::Server, false);
    let (before, after) = whole.split_at(6 + start.len() + 1);
    assert_eq!(outcome(&mut reader, before, usize::MAX, &LIMITS), (vec![], None));
    assert_eq!(outcome(&mut reader, &after[..1], usize::MAX, &LIMITS).1, Some(Violation::Utf8));
}

#[test]
fn nothing_is_read_after_the_end() {
    for end in [frame(0x88, b""), frame(0x83, b"")] {
        let mut reader = Reader::new(Role::Server, false);
        outcome(&mut reader, &end, usize::MAX, &LIMITS);
        let hello = frame(0x81, b"Hello");
        assert_eq!(outcome(&mut reader, &hello, usize::MAX, &LIMITS), (vec![], None));
        assert!(!reader.is_partial());
    }
}

#[test]
fn compressed_messages() {
    let read = |input: &[u8], step| outcome(&mut Reader::new(Role::Server, true), input, step, &LIMITS);
    let hello = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
    let in_two = [frame(0x41, &hello[..3]), frame(0x89, b"p"), frame(0x80, &hello[3..])].concat();
    for step in [1, 2, usize::MAX] {
        assert_eq!(read(&frame(0xc1, hello), step), (vec![text("Hello", false)], None));
        assert_eq!(read(&in_two, step), (vec![ping("p"), text("Hello", true)], None));
        assert_eq!(read(&frame(0x81, b"Hello"), step), (vec![text("Hello", false)], None));
        assert_eq!(read(&frame(0xc1, b"\xff\xff"), step).1, Some(Violation::Deflate));
        assert_eq!(read(&frame(0xc9, b""), step).1, Some(Violation::ReservedBit));
        assert_eq!(
            read(&[frame(0x41, hello), frame(0xc0, b"")].concat(), step).1,
            Some(Violation::ReservedBit)
        );
    }
    let mut deflater = Deflater::new();
    let not_text = frame(0xc1, deflater.deflate(&[0xff; 100]).unwrap());
    assert_eq!(read(&not_text, 1).1, Some(Violation::Utf8));
    let bomb = frame(0xc2, deflater.deflate(&vec![0; LIMITS.message + 1]).unwrap());
    assert_eq!(read(&bomb, usize::MAX).1, Some(Violation::TooLong));
}

/// Bytes that a reader has on the heap.
fn held(reader: &Reader) -> usize {
    reader.partial.as_ref().map_or(0, |partial| {
        let message = partial.message.as_ref().map_or(0, |message| message.data.capacity());
        size_of::<Partial>() + partial.head_bytes.capacity() + partial.control.capacity() + message
    })
}

#[test]
fn what_is_announced_is_not_allocated() {
    let mut reader = Reader::new(Role::Server, false);
    let announced = b"\x82\xff\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00abc";
    assert_eq!(outcome(&mut reader, announced, usize::MAX, &LIMITS), (vec![], None));
    assert!(reader.is_partial() && held(&reader) < 300, "{}", held(&reader));
}

#[test]
fn a_reader_is_empty_between_messages() {
    let mut reader = Reader::new(Role::Server, false);
    let input = [frame(0x01, b"a"), frame(0x89, b"p"), frame(0x80, b"b")].concat();
    for step in 1..=input.len() {
        assert_eq!(outcome(&mut reader, &input, step, &LIMITS).0.len(), 2);
        assert_eq!(held(&reader), 0);
    }
}

#[test]
fn a_flood_of_fragments_ends() {
    let one = frame(0x00, b"x");
    let mut flood = [frame(0x01, b"x"), one.repeat(99_999)].concat();
    let mut reader = Reader::new(Role::Server, false);
    let (mut events, mut most) = (Vec::new(), 0);
    let mut violation = None;
    for piece in flood.chunks_mut(4096) {
        violation = read(&mut reader, piece, &LIMITS, &mut events);
        most = most.max(held(&reader));
        if violation.is_some() {
            break;
        }
    }
    assert_eq!((events, violation), (vec![], Some(Violation::TooManyFragments)));
    assert!(most <= 2 * FRAGMENTS_MAX as usize + 300, "{most}");
}

/// A message as the frames of a client that cuts it at will, pings between them.
fn fragments(opcode: Opcode, deflated: bool, payload: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (payload.len() + 1)).collect();
    cuts.sort_unstable();
    let mut first = opcode as u8 | if deflated { 0x40 } else { 0 };
    let (mut bytes, mut start) = (Vec::new(), 0);
    for cut in cuts {
        bytes.extend(frame(first, &payload[start..cut]));
        bytes.extend(frame(0x89, b"p"));
        (start, first) = (cut, 0);
    }
    bytes.extend(frame(first | 0x80, &payload[start..]));
    bytes
}

proptest! {
    #[test]
    fn a_message_is_the_same_however_it_is_cut(
        message in ".{0,300}",
        is_text: bool,
        deflated: bool,
        cuts in vec(any::<usize>(), 0..6),
        step in 1..400usize,
    ) {
        let mut deflater = Deflater::new();
        let smaller = if deflated { deflater.deflate(message.as_bytes()) } else { None };
        let opcode = if is_text { Opcode::Text } else { Opcode::Binary };
        let input = fragments(opcode, smaller.is_some(), smaller.unwrap_or(message.as_bytes()), &cuts);
        let mut reader = Reader::new(Role::Server, true);
        let (mut events, violation) = outcome(&mut reader, &input, step, &LIMITS);
        prop_assert_eq!(violation, None);
        let expected = if is_text {
            text(&message, !cuts.is_empty())
        } else {
            Event::Binary(Bytes::copy_from_slice(message.as_bytes()))
        };
        prop_assert_eq!(events.pop(), Some(expected));
        prop_assert_eq!(events, vec![ping("p"); cuts.len()]);
        prop_assert!(!reader.is_partial());
    }

    #[test]
    fn any_bytes_have_one_outcome(
        frames in vec((any::<u8>(), vec(any::<u8>(), 0..140)), 0..4),
        noise in vec(any::<u8>(), 0..40),
        client: bool,
        deflate: bool,
        step in 1..50usize,
    ) {
        let frames = frames.iter().flat_map(|(first, payload)| frame(*first, payload));
        let mut input: Vec<u8> = if client { noise } else { frames.chain(noise).collect() };
        let role = if client { Role::Client } else { Role::Server };
        let whole = outcome(&mut Reader::new(role, deflate), &input, usize::MAX, &LIMITS);
        let mut reader = Reader::new(role, deflate);
        let (mut events, mut arrived, mut violation) = (Vec::new(), 0, None);
        for piece in input.chunks_mut(step) {
            arrived += piece.len();
            violation = read(&mut reader, piece, &LIMITS, &mut events);
            prop_assert!(held(&reader) <= 2 * arrived + 300);
            if violation.is_some() {
                break;
            }
        }
        prop_assert_eq!((events, violation), whole);
    }
}

/// What a reader that relays makes of messages: each kind and its parts, whatever they are.
fn relayed(input: &[u8], step: usize, limits: &Limits) -> (Vec<(Opcode, Vec<u8>)>, Option<Violation>) {
    let mut reader = Reader::new(Role::Server, false);
    reader.relay(true);
    let (events, violation) = outcome(&mut reader, input, step, limits);
    let mut messages: Vec<(Opcode, Vec<u8>)> = Vec::new();
    let mut open = None;
    for event in events {
        match event {
            Event::Text { payload, .. } => messages.push((Opcode::Text, payload.to_vec())),
            Event::Binary(payload) => messages.push((Opcode::Binary, payload.to_vec())),
            Event::Part { opcode, payload, last } => {
                match opcode {
                    Opcode::Continuation => {
                        let (_, message): &mut (Opcode, Vec<u8>) = open.as_mut().expect("one has begun");
                        message.extend_from_slice(&payload);
                    }
                    first => assert!(open.replace((first, payload.to_vec())).is_none(), "one at a time"),
                }
                if last {
                    messages.extend(open.take());
                }
            }
            other => messages.push((Opcode::Ping, format!("{other:?}").into())),
        }
    }
    (messages, violation)
}

#[test]
fn what_is_over_the_limits_comes_in_parts() {
    let limits = Limits { message: 4, fragments: 3 };
    let frames: Frames<'_> = &[
        (0x01, "aé".as_bytes()),
        (0x00, b"bcdef\xc3"),
        (0x00, b"\xa9"),
        (0x00, b""),
        (0x80, b"g"),
        (0x82, &[7; 100]),
        (0x81, b"x"),
    ];
    for step in [1, 2, 3, usize::MAX] {
        let (messages, violation) = relayed(&sent(frames), step, &limits);
        let expected = [
            (Opcode::Text, "aébcdefég".as_bytes().to_vec()),
            (Opcode::Binary, vec![7; 100]),
            (Opcode::Text, b"x".to_vec()),
        ];
        assert_eq!((messages, violation), (expected.to_vec(), None), "{step}");
    }
    for end in [&b"\xc3"[..], b"\xff"] {
        let cut = sent(&[(0x01, b"abcdef"), (0x80, end)]);
        assert_eq!(relayed(&cut, 1, &limits).1, Some(Violation::Utf8));
    }
    // Compressed, it must be had whole.
    let mut reader = Reader::new(Role::Server, true);
    reader.relay(true);
    let deflated = sent(&[(0x41, &[1; 200])]);
    assert_eq!(outcome(&mut reader, &deflated, usize::MAX, &limits).1, Some(Violation::TooLong));
}

#[test]
fn what_has_come_may_be_passed_on() {
    let mut reader = Reader::new(Role::Server, false);
    let take = |reader: &mut Reader, input: &[u8]| {
        assert_eq!(outcome(reader, input, usize::MAX, &LIMITS), (vec![], None));
        (reader.may_part(), reader.take_part())
    };
    let part = |opcode, payload: &'static str| {
        Some(Event::Part { opcode, payload: Bytes::from_static(payload.as_bytes()), last: false })
    };
    assert_eq!(take(&mut reader, &frame(0x01, b"a")), (false, None));
    reader.relay(true);
    assert_eq!(take(&mut reader, b""), (true, part(Opcode::Text, "a")));
    assert_eq!(take(&mut reader, b""), (true, None));
    assert_eq!(
        outcome(&mut reader, &frame(0x00, b"b\xc3"), usize::MAX, &LIMITS).0,
        [part(Opcode::Continuation, "b").unwrap()]
    );
    let end =
        Event::Part {
            opcode: Opcode::Continuation, payload: Bytes::from_static("é".as_bytes()), last: true
        };
    assert_eq!(outcome(&mut reader, &frame(0x80, b"\xa9"), usize::MAX, &LIMITS).0, [end]);
    assert!(!reader.is_partial());
}

proptest! {
    /// Relayed or not, a message is the same.
    #[test]
    fn parts_are_the_message(payloads in vec(vec(any::<u8>(), 0..12), 1..8), step in 1..20_usize, most in 1..20_usize) {
        let last = payloads.len() - 1;
        let input: Vec<u8> = payloads.iter().enumerate().flat_map(|(at, payload)| {
            frame(if at == 0 { 0x02 } else { 0 } | if at == last { 0x80 } else { 0 }, payload)
        }).collect();
        let (messages, violation) = relayed(&input, step, &Limits { message: most, fragments: 4 });
        prop_assert_eq!(violation, None);
        prop_assert_eq!(messages, [(Opcode::Binary, payloads.concat())]);
    }
}

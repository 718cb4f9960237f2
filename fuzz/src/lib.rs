//! What each fuzz target does with its input, and what must then be true. The test `seeds` of
//! fantail-proto calls the same functions with the inputs that are checked in.

use bytes::{Bytes, BytesMut};
use fantail_proto::{
    address::{self, Block},
    grip::{Hold, Instruct},
    item::{self, HttpResponse, HttpStream, Item, ResponseBody, WsKind, record},
    journal::{self, Head, Header, Piece, Pieces},
    link::Place,
    log::Durability,
    patch,
    render::{Chunk, Rendered, StreamPart},
    reply::{self, Framing, Version},
    request::{self, Head as RequestHead, Parser, Refusal},
    route::{Asked, Table},
    sockjs::{self, Endpoint},
    tnetstring,
    webhook::{
        envelope::envelope,
        signature::{Secret, signatures},
        target::{Host, MAX_URL, Target},
    },
    websocket::{
        close::Close,
        control::{Control, MAX_CONTROL_BYTES, Message, Verdict},
        deflate::{Agreed, Deflater, Inflater},
        events::{self, MAX_EVENTS, MAX_PING_BYTES},
        frame::{Frame, Opcode},
        handshake::Grip,
        reader::{Event, Limits, Reader, Role, Violation},
    },
    xmpp::{CLIENT, MAX_STANZA_BYTES, jid::Jid, request::Request, stanza::Stanza, stream, xml::Element},
    zhttp::Packet,
    zmtp::{self, Decoder},
};
use http::{HeaderMap, HeaderName, HeaderValue, header::SEC_WEBSOCKET_EXTENSIONS, uri::PathAndQuery};

/// Lines of `Name: value`, as an origin would send them.
pub fn grip_headers(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(100) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(parts.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(parts.next().unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    check(Instruct::parse(200, "OK", &headers, Bytes::from_static(b"body")).ok());
}

/// A request, the beginning of one, or what is refused, however it is split; what is accepted, hyper's parser accepts with
/// the same length.
pub fn request(data: &[u8]) {
    let whole = read_request(data, data.len().max(1));
    for step in [1, 7, data.len() % 251 + 1] {
        assert_eq!(whole, read_request(data, step));
    }
    if let Ok(Some(head)) = RequestHead::check(data, &REQUEST) {
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut parsed = httparse::Request::new(&mut fields);
        assert_eq!(parsed.parse(data), Ok(httparse::Status::Complete(head.len)));
        let target = parsed.path.expect("a complete request");
        assert!(target.parse::<http::Uri>().is_ok(), "{target}");
        assert!(head.framing != request::Framing::Chunked || parsed.version == Some(1));
    }
}

const REQUEST: request::Limits =
    request::Limits { head_bytes: 4096, headers: 16, target_bytes: 200, body_bytes: 1 << 20 };

/// Bytes of the message, `None` if it goes on.
fn read_request(bytes: &[u8], step: usize) -> Result<Option<usize>, Refusal> {
    let mut parser = Parser::default();
    let mut end = 0;
    let head = loop {
        end = (end + step).min(bytes.len());
        match parser.push(&bytes[..end], &REQUEST)? {
            Some(head) => break head,
            None if end == bytes.len() => return Ok(None),
            None => {}
        }
    };
    let Some(mut body) = request::Body::new(head.framing, &REQUEST) else { return Ok(Some(head.len)) };
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

/// A body of type `application/grip-instruct`.
pub fn instruct(data: &[u8]) {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/grip-instruct"));
    check(Instruct::parse(200, "OK", &headers, Bytes::copy_from_slice(data)).ok());
}

/// Lines: a document's authority, its path, and links in it, each in the document of the one before.
pub fn links(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let (authority, path) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let Some(mut place) = Place::new(false, authority, path) else { return };
    for reference in lines.take(20) {
        let Some(next) = place.resolve(reference) else { continue };
        assert!(next.path_and_query().starts_with('/'));
        assert!(next.path_and_query().parse::<PathAndQuery>().is_ok());
        assert!(!next.host().is_empty() && HeaderValue::from_str(next.authority()).is_ok());
        assert!(next.is_beside(&next) && next.port() > 0 || next.authority().ends_with(":0"));
        place = next;
    }
}

/// What a client of SockJS asks for and says.
pub fn sockjs(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(Endpoint::Session(id, _)) = Endpoint::find(&text) {
        assert!(!id.is_empty() && !id.contains(['/', '.']));
    }
    let payload = sockjs::form(data).unwrap_or_else(|_| data.to_vec());
    let Ok(messages) = sockjs::messages(&payload) else { return };
    let frames: Vec<Bytes> = messages
        .iter()
        .map(|message| Frame::new(Opcode::Text, sockjs::message(message.as_bytes()).as_bytes()).to_bytes())
        .collect();
    match sockjs::merged(frames.iter().map(|frame| &frame[..])) {
        Some(merged) => {
            assert!(!merged.contains('<'));
            assert_eq!(sockjs::messages(&merged.as_bytes()[1..]).as_ref(), Ok(&messages));
        }
        None => assert!(messages.is_empty()),
    }
}

/// The body of a publish request.
pub fn items(data: &[u8]) {
    for channel in [None, Some("c")] {
        let Ok(items) = item::decode(data, channel) else { continue };
        for item in items {
            if let Some(HttpResponse::Send(response)) = &item.response {
                let stored = HeaderMap::new();
                check_head(response.code, &response.reason, &reply::merged(&stored, response));
                if let ResponseBody::Patch(change) = &response.body {
                    let patched = patch::apply(change, br#"{"a":[1,{"b":"c"}],"d":{}}"#);
                    assert!(patched.is_none_or(|body| matches!(body.first(), Some(b'{' | b'['))));
                }
            }
            let sent = match &item.stream {
                Some(HttpStream::Send(content)) => Some(content.clone()),
                _ => None,
            };
            if let Some(request) = &item.request {
                assert!(request.headers.len() <= 100 && request.method != http::Method::CONNECT);
                assert!(request.headers.iter().all(|(name, _)| !item::is_of_webhook(name)));
            }
            let rendered = Rendered::from(item);
            if let Some(body) = envelope("c", &rendered) {
                let body = [br#"{"items":["#, &body[..], b"]}"].concat();
                assert_eq!(item::decode(&body, Some("c")).map(|items| items.len()), Ok(1));
            }
            if let Some(StreamPart::Send(chunk)) = rendered.stream {
                assert_eq!(Some(chunk.content()), sent);
                assert_eq!(chunk.framed().is_empty(), chunk.content().is_empty());
                assert_eq!(Chunk::concat(&[&chunk, &chunk]).content(), chunk.content().repeat(2));
            }
        }
    }
}

/// A file of logs, or what is noted of it: pieces lie side by side, and what is read is what was written.
pub fn journal(data: &[u8]) {
    if let Some(head) = Head::parse(data) {
        assert_eq!(head.to_bytes(), data);
    }
    let header = Header { number: 1, salt: 7, cut: None };
    let known = Header::parse(data);
    if let Some(header) = known {
        assert_eq!(header.to_bytes(), data[..Header::BYTES]);
    }
    pieces(data, known.unwrap_or(header));
    // A file of entries with this content, and one that was damaged where the content says. Its salt is nothing that a
    // record in the content can have been made for.
    let salt = data.iter().fold(7, |sum: u64, byte| sum.wrapping_mul(0x100_0000_01b3) ^ u64::from(*byte));
    let header = Header { salt, ..header };
    let mut file = header.to_bytes().to_vec();
    let mut written = Vec::new();
    for (content, position) in data.split(|byte| *byte == b'\n').take(8).zip(1..) {
        let channel = std::str::from_utf8(content.get(..4).unwrap_or_default()).unwrap_or("c");
        let entry = journal::Entry {
            copied: content.len() % 2 == 0,
            promised: Durability::ALL[content.len() % 3],
            realm: "default",
            channel,
            epoch: 3,
            position,
            at_ms: 5,
            record: content,
        };
        journal::Record::Entry(entry).append(header.salt, &mut file);
        written.push(journal::Record::Entry(entry));
    }
    assert_eq!(pieces(&file, header), written);
    let place = data.iter().fold(0, |sum, byte| (sum * 31 + usize::from(*byte)) % file.len());
    let mut damaged = file;
    damaged[place] ^= 0x10;
    assert!(pieces(&damaged, header).iter().all(|record| written.contains(record)));
}

fn pieces(file: &[u8], header: Header) -> Vec<journal::Record<'_>> {
    let mut upto = Header::BYTES.min(file.len());
    let mut records = Vec::new();
    for piece in Pieces::new(file, header) {
        let range = match piece {
            Piece::Record(record, range) => {
                let mut again = Vec::new();
                record.append(header.salt, &mut again);
                assert_eq!(again, file[range.clone()]);
                records.push(record);
                range
            }
            Piece::Damage(range) => range,
        };
        assert!(range.start == upto && range.end > upto);
        upto = range.end;
    }
    assert_eq!(upto, file.len().max(upto));
    records
}

/// An item as a log keeps it: what is read is written the same way again, and its id is that which is looked for.
pub fn item_record(data: &[u8]) {
    let id = record::id(data);
    let Some(item) = Item::from_record("c", data) else { return };
    assert_eq!(item.id.as_deref(), id);
    let again = item.to_record();
    assert_eq!(Item::from_record("c", &again).map(|item| item.to_record()), Some(again));
    drop(Rendered::from(item));
}

/// Any text is a table or a list of errors with lines; a table's routes make absolute paths.
pub fn routes(text: &str) {
    match Table::parse(text) {
        Ok(table) => {
            for route in table.routes() {
                let path =
                    format!("{}rest?query", if route.path_beg.is_empty() { "/" } else { &route.path_beg });
                table.find(Asked { host: "a", path: &path, tls: true, ws: false, id: Some(&route.id) });
                for target in &route.targets {
                    let outgoing = route.outgoing(target, &path, "a");
                    assert!(outgoing.path_and_query.starts_with('/'));
                    assert!(outgoing.path_and_query.ends_with("?query"));
                    assert!(outgoing.host.bytes().all(|b| b.is_ascii_graphic()));
                }
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            assert!(errors.iter().all(|error| (1..=text.lines().count()).contains(&error.line)));
            assert!(errors.iter().all(|error| !error.to_string().contains('\n')));
        }
    }
}

/// A webhook's URL, its secret, or a block of addresses.
pub fn webhook(text: &str) {
    if let Ok(target) = Target::parse(text) {
        assert!(text.len() <= MAX_URL && target.path.starts_with('/') && target.port > 0);
        let url = target.url();
        assert!(url.bytes().all(|byte| byte.is_ascii_graphic()) && !url.contains('#'));
        assert_eq!(Target::parse(&url).as_ref(), Ok(&target));
        match target.host {
            Host::Address(ip) => _ = address::special(ip),
            Host::Name(name) => assert!(name.parse::<std::net::Ipv4Addr>().is_err() && !name.contains('@')),
        }
    }
    if let Ok(secret) = Secret::parse(text) {
        assert_eq!(Secret::parse(&secret.text()).as_ref(), Ok(&secret));
        assert!(signatures(&[secret], "id", 1, b"body").starts_with("v1"));
    }
    if let Some(block) = Block::parse(text) {
        let base = text.split('/').next().unwrap_or_default();
        assert!(block.contains(base.parse().expect("it was read")));
    }
}

/// A body of `application/websocket-events`: what is read is written, and read again the same.
pub fn events(data: &[u8]) {
    let Ok(events) = events::decode(&Bytes::copy_from_slice(data)) else { return };
    assert!(events.len() <= MAX_EVENTS);
    let mut body = Vec::new();
    events.iter().for_each(|event| events::encode(event, &mut body));
    assert_eq!(events::decode(&body.into()), Ok(events));
}

/// A text message from an origin that speaks GRIP, whose message prefix is its first letter.
pub fn control(data: &[u8]) {
    let first = data.first().copied().filter(u8::is_ascii).map(char::from);
    let prefix = first.map(String::from).unwrap_or_default();
    for fragmented in [false, true] {
        let message = Message { kind: WsKind::Text, content: Bytes::copy_from_slice(data), fragmented };
        match message.classify(Some(prefix.as_bytes())) {
            Verdict::Control(control) => {
                assert!(!fragmented && data.len() <= MAX_CONTROL_BYTES);
                check_control(&control);
            }
            Verdict::Data(content) => assert!(!data.starts_with(b"c:") && data.ends_with(&content)),
            Verdict::Dropped(why) => assert!(!why.to_string().contains('\n'), "{why}"),
            Verdict::Close(_) => assert!(!fragmented),
        }
    }
}

fn check_control(control: &Control) {
    let sendable = |kind: WsKind, content: &[u8]| match kind {
        WsKind::Text => std::str::from_utf8(content).is_ok(),
        WsKind::Binary => true,
        WsKind::Ping | WsKind::Pong => content.len() <= MAX_PING_BYTES,
    };
    match control {
        Control::Subscribe { channel, filters, .. } => assert!(!channel.is_empty() && filters.len() <= 5),
        Control::Unsubscribe { channel: name } | Control::SetMeta { name, .. } => assert!(!name.is_empty()),
        Control::KeepAlive(Some(keep)) => {
            assert!(keep.timeout.as_secs() >= 1 && sendable(keep.kind, &keep.content));
        }
        Control::SendDelayed { kind, content, .. } => assert!(sendable(*kind, content)),
        Control::Session { id } => assert!(id.as_ref().is_none_or(|id| !id.is_empty())),
        Control::KeepAlive(None) | Control::Detach | Control::FlushDelayed => {}
    }
}

/// A stanza that is published; the same as a server's bytes behind the opening of a stream, in pieces; and an address.
/// What is read is written, and read again the same; the events of a stream do not depend on the pieces.
pub fn xmpp(data: &[u8]) {
    if let Ok(element) = Element::parse(data) {
        assert_eq!(Element::parse(element.to_xml("").as_bytes()).as_ref(), Ok(&element));
        Request::of(&element);
    }
    if let Ok(stanza) = Stanza::published(data) {
        let mut copy = Vec::new();
        stanza.sealed("push.example.com", "").write("a@b/c'<&", &mut copy);
        let copy = Element::parse(&copy).expect("what is sent is well-formed");
        assert_eq!(
            (copy.ns.as_str(), copy.attr("from"), copy.attr("to")),
            (CLIENT, Some("push.example.com"), Some("a@b/c'<&"))
        );
        Element::parse(stanza.payload().as_bytes()).expect("so is its payload");
    }
    if let Ok(Ok(jid)) = str::from_utf8(data).map(Jid::parse) {
        assert!(jid.as_str().starts_with(jid.bare()) && jid.bare().ends_with(jid.domain()));
        assert!(!jid.as_str().contains(char::is_control) && !jid.domain().is_empty());
    }
    assert_eq!(streamed(data, 1), streamed(data, data.len().max(1)));
}

fn streamed(data: &[u8], step: usize) -> (Vec<stream::Event>, bool) {
    const OPEN: &[u8] =
        b"<s:stream xmlns:s='http://etherx.jabber.org/streams' xmlns='jabber:component:accept' id='1'>";
    let (mut reader, mut events) = (stream::Reader::default(), Vec::new());
    // What is wrong with the last piece may be said with the next.
    for mut piece in [OPEN].into_iter().chain(data.chunks(step)).chain([&b" "[..]]) {
        loop {
            match reader.read(&mut piece) {
                Ok(Some(stream::Event::Stanza(stanza))) => {
                    assert!(reader.bytes() <= MAX_STANZA_BYTES);
                    events.push(stream::Event::Stanza(stanza));
                }
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(_) => return (events, true),
            }
        }
    }
    (events, false)
}

/// A packet of a worker, and the bytes of a connection: values are written and read again the same, and a message
/// is no longer than it may be.
pub fn zhttp(data: &[u8]) {
    if let Ok(packet) = Packet::decode(data) {
        assert!(!packet.ids.is_empty());
        let value = tnetstring::decode(&data[1..]).expect("what a packet is made of");
        let mut again = Vec::new();
        tnetstring::encode(&value, &mut again);
        assert_eq!(tnetstring::decode(&again), Ok(value));
    }
    let (mut decoder, mut input) = (Decoder::new(100), BytesMut::from(data));
    while let Ok(Some(event)) = decoder.next(&mut input) {
        if let zmtp::Event::Message(frames) = event {
            assert!(!frames.is_empty() && frames.iter().map(Bytes::len).sum::<usize>() <= 100);
        }
    }
}

/// Flags and the size of the pieces, then what a peer sends: events and their end do not depend on the
/// pieces, and what was read can be sent and read again. The same bytes are also a list of extensions.
pub fn websocket(data: &[u8]) {
    let Some(([flags, step], sent)) = data.split_first_chunk() else { return };
    let reader = || Reader::new(if flags & 1 == 0 { Role::Server } else { Role::Client }, flags & 2 != 0);
    let (events, violation) = received(reader(), sent, sent.len().max(1));
    assert_eq!((events.clone(), violation), received(reader(), sent, usize::from(*step).max(1)));
    // Nothing is different for a message that is within the limits.
    let mut relaying = reader();
    relaying.relay(true);
    let relayed = received(relaying, sent, usize::from(*step).max(1));
    if violation.is_none() && !relayed.0.iter().any(|event| matches!(event, Event::Part { .. })) {
        assert_eq!(relayed, (events.clone(), None));
    }
    let mut again = Vec::new();
    let mut deflater = Deflater::new();
    for event in &events {
        frame_of(event, &mut deflater, &mut again);
    }
    let mut unfragmented = events;
    for event in &mut unfragmented {
        if let Event::Text { payload, fragmented } = event {
            assert!(str::from_utf8(payload).is_ok());
            *fragmented = false;
        }
    }
    assert_eq!(received(Reader::new(Role::Client, true), &again, 100), (unfragmented, None));

    let Ok(value) = HeaderValue::from_bytes(sent) else { return };
    let headers = HeaderMap::from_iter([(SEC_WEBSOCKET_EXTENSIONS, value)]);
    Grip::from_answer(&headers);
    if let Some(agreed) = Agreed::from_offers(&headers) {
        assert!(agreed.answer.to_str().is_ok_and(|answer| answer.starts_with("permessage-deflate; ")));
    }
}

fn received(mut reader: Reader, sent: &[u8], step: usize) -> (Vec<Event>, Option<Violation>) {
    let limits = Limits { message: 4096, fragments: 10 };
    let (mut events, mut inflater) = (Vec::new(), Inflater::new());
    for piece in sent.to_vec().chunks_mut(step) {
        let mut rest = piece;
        loop {
            match reader.read(&mut rest, &limits, &mut inflater) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break assert!(rest.is_empty()),
                Err(violation) => return (events, Some(violation)),
            }
        }
    }
    (events, None)
}

fn frame_of(event: &Event, deflater: &mut Deflater, out: &mut Vec<u8>) {
    let (opcode, payload) = match event {
        Event::Text { payload, .. } => (Opcode::Text, payload),
        Event::Binary(payload) => (Opcode::Binary, payload),
        Event::Ping(payload) => return Frame::new(Opcode::Ping, payload).append(out),
        Event::Pong(payload) => return Frame::new(Opcode::Pong, payload).append(out),
        Event::Close(close) => {
            let payload = close.as_ref().map(Close::payload).unwrap_or_default();
            return Frame::new(Opcode::Close, &payload).append(out);
        }
        Event::Part { opcode, payload, last } => return Frame::part(*opcode, payload, *last).append(out),
    };
    assert!(payload.len() <= 4096);
    match deflater.deflate(payload) {
        Some(payload) => Frame::deflated(opcode, payload).append(out),
        None => Frame::new(opcode, payload).append(out),
    }
}

fn check(instruct: Option<Instruct>) {
    let Some(instruct) = instruct else { return };
    match &instruct.hold {
        Some(Hold::Response { timeout }) => assert!(timeout.as_secs() >= 5),
        Some(Hold::Stream { keep_alive: Some(keep_alive) }) => {
            assert!(keep_alive.timeout.as_secs() >= 1 && !keep_alive.content.is_empty());
        }
        _ => {}
    }
    assert!(instruct.channels.iter().all(|channel| channel.filters.len() <= 5));
    check_head(instruct.reply.code, &instruct.reply.reason, &instruct.reply.headers);
}

/// A head is a status line and one line a header, whatever was in them.
fn check_head(code: u16, reason: &str, headers: &HeaderMap) {
    assert!((200..=999).contains(&code));
    assert!(!headers.keys().any(|name| name.as_str().starts_with("grip-") || name == "content-length"));
    let mut head = Vec::new();
    let framing = Framing::Length(7);
    reply::Head { version: Version::Http11, code, reason, headers, framing, keep_alive: true, date: "now" }
        .write(&mut head);
    let lines = head.iter().filter(|byte| **byte == b'\n').count();
    let added = usize::from(!headers.contains_key("date")) + usize::from(reply::allows_body(code));
    assert_eq!(lines, 1 + headers.len() + added + 1);
    assert!(head.ends_with(b"\r\n\r\n") && !head.contains(&0));
}

use proptest::{collection::vec, prelude::*};

use super::*;

type Headers = [(&'static str, &'static str)];

/// A session and what the time is.
struct Rig {
    session: Session,
    now_ms: u64,
}

impl Rig {
    fn with(limit: u32, one_event: bool) -> Self {
        Self { session: Session::new(limit, one_event), now_ms: 1_000_000 }
    }

    /// Opened, with these headers in the opening answer.
    fn open(headers: &Headers) -> Self {
        let mut rig = Self::with(1000, false);
        rig.asks("OPEN\r\n");
        assert_eq!(rig.answer(headers, "OPEN\r\n"), [Action::Open]);
        rig
    }

    fn asks(&mut self, body: &str) {
        let asked = self.session.next(self.now_ms).map(|body| body.escape_ascii().to_string());
        assert_eq!(asked.as_deref(), Some(&*body.as_bytes().escape_ascii().to_string()));
    }

    fn asks_nothing(&mut self) {
        assert_eq!(self.session.next(self.now_ms), None);
    }

    fn says(&mut self, text: &str) {
        assert!(self.session.push(WsKind::Text, text.as_bytes()));
    }

    fn answer(&mut self, headers: &Headers, body: &str) -> Vec<Action> {
        self.answer_as(200, events::MEDIA_TYPE, headers, body)
    }

    fn answer_as(
        &mut self,
        status: u16,
        media_type: &'static str,
        headers: &Headers,
        body: &str,
    ) -> Vec<Action> {
        let mut all = HeaderMap::new();
        all.insert("content-type", HeaderValue::from_static(media_type));
        for (name, value) in headers {
            all.append(*name, HeaderValue::from_static(value));
        }
        let status = StatusCode::from_u16(status).unwrap();
        self.session.answered(status, &all, &Bytes::copy_from_slice(body.as_bytes()), self.now_ms)
    }

    fn header(&self, name: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert("content-bytes-replayed", HeaderValue::from_static("99"));
        self.session.write_headers(&mut headers);
        headers.get(name).map(|value| value.to_str().unwrap().to_owned())
    }
}

fn text(content: &'static str) -> Action {
    Action::Message(WsKind::Text, content.into())
}

fn dropped(cause: Cause) -> [Action; 1] {
    [Action::Drop(cause)]
}

const CLOSE: Action = Action::Close(None);
const EVERY_MINUTE: (&str, &str) = ("keep-alive-interval", "60");
const ACCEPTS_NOTHING: (&str, &str) = ("content-bytes-accepted", "0");

#[test]
fn a_conversation() {
    let mut rig = Rig::with(1000, false);
    rig.asks("OPEN\r\n");
    rig.asks_nothing();
    let opened = rig.answer(&[("set-meta-user", "ann")], "OPEN\r\nTEXT 5\r\nhello\r\nPING\r\n");
    assert_eq!(opened, [Action::Open, text("hello"), Action::Message(WsKind::Ping, Bytes::new())]);
    rig.asks_nothing();
    rig.says("hi");
    rig.asks("TEXT 2\r\nhi\r\n");
    assert_eq!(rig.header("meta-user").as_deref(), Some("ann"));
    assert_eq!(rig.header("accept").as_deref(), Some(events::MEDIA_TYPE));
    assert_eq!(rig.header("content-type").as_deref(), Some(events::MEDIA_TYPE));
    assert_eq!(rig.header("content-bytes-replayed"), None);
    rig.says("and");
    rig.session.push(WsKind::Binary, b"");
    rig.session.close(Some((1000, b"bye")));
    rig.says("too late");
    rig.asks_nothing();
    assert_eq!(rig.answer(&[], "TEXT 1\r\na\r\n"), [text("a")]);
    let Some(body) = rig.session.next(rig.now_ms) else { panic!() };
    assert_eq!(body, &b"TEXT 3\r\nand\r\nBINARY\r\nCLOSE 5\r\n\x03\xe8bye\r\n"[..]);
    let closed = rig.answer(&[], "TEXT 1\r\nb\r\nCLOSE 2\r\n\0\0\r\nTEXT 1\r\nc\r\n");
    assert_eq!(closed, [text("b"), Action::Close(Some((0, Bytes::new())))]);
    assert!(rig.session.is_ended());
    rig.asks_nothing();
    assert_eq!(rig.session.due_ms(), None);
}

#[test]
fn what_the_first_answer_can_be() {
    let open = |status, media_type, headers: &Headers, body: &str| {
        let mut rig = Rig::with(1000, false);
        rig.asks("OPEN\r\n");
        let actions = rig.answer_as(status, media_type, headers, body);
        (actions, rig.session.is_ended())
    };
    const EVENTS: &str = events::MEDIA_TYPE;
    type Row<'r> = (u16, &'static str, &'r Headers, &'r str, &'r [Action], bool);
    let table: [Row<'_>; 15] = [
        (200, EVENTS, &[], "OPEN\r\n", &[Action::Open], false),
        (200, "Application/WebSocket-Events; charset=x", &[], "OPEN\r\n", &[Action::Open], false),
        (200, EVENTS, &[], "OPEN\r\nCLOSE\r\nTEXT\r\n", &[Action::Open, CLOSE], false),
        (
            200,
            EVENTS,
            &[],
            "OPEN\r\nDISCONNECT\r\n",
            &[Action::Open, Action::Drop(Cause::Disconnected)],
            true,
        ),
        (200, EVENTS, &[], "OPEN\r\nOPEN\r\n", &[Action::Open, Action::Drop(Cause::OpenedTwice)], false),
        (200, EVENTS, &[EVERY_MINUTE], "", &[], false),
        (200, EVENTS, &[ACCEPTS_NOTHING], "OPEN\r\n", &[Action::Open], false),
        (403, "text/plain", &[], "no", &[Action::Reject], true),
        (200, "text/plain", &[], "OPEN\r\n", &[Action::Reject], true),
        (201, EVENTS, &[], "OPEN\r\n", &[Action::Reject], true),
        (302, EVENTS, &[("location", "/b")], "OPEN\r\n", &[Action::Reject], true),
        (200, EVENTS, &[], "", &dropped(Cause::NotOpened), true),
        (200, EVENTS, &[EVERY_MINUTE], "TEXT\r\nOPEN\r\n", &dropped(Cause::NotOpened), true),
        (200, EVENTS, &[("content-bytes-accepted", "1")], "OPEN\r\n", &dropped(Cause::Unacceptable), true),
        (200, EVENTS, &[], "OPEN", &dropped(Cause::Events(EventsError::Unended { at: 0 })), true),
    ];
    for (status, media_type, headers, body, actions, ended) in table {
        assert_eq!(open(status, media_type, headers, body), (actions.to_vec(), ended), "{status} {body:?}");
    }
}

#[test]
fn an_origin_may_take_its_time_to_open() {
    let mut rig = Rig::with(1000, false);
    rig.asks("OPEN\r\n");
    assert_eq!(rig.answer(&[EVERY_MINUTE], ""), []);
    rig.session.refresh();
    rig.says("early");
    rig.asks_nothing();
    assert_eq!(rig.session.due_ms(), Some(rig.now_ms + 60_000));
    rig.now_ms += 60_000;
    rig.asks("OPEN\r\n");
    assert_eq!(rig.answer(&[], ""), []);
    rig.now_ms += 60_000;
    rig.asks("OPEN\r\n");
    assert_eq!(rig.answer(&[], "OPEN\r\n"), [Action::Open]);
    rig.asks("TEXT 5\r\nearly\r\n");
}

#[test]
fn an_origin_that_breaks_off_later() {
    let table: [(u16, &'static str, &Headers, &str, Cause, bool); 8] = [
        (500, "text/plain", &[], "", Cause::NotEvents, false),
        (200, "text/plain", &[], "", Cause::NotEvents, false),
        (200, events::MEDIA_TYPE, &[], "TEXT", Cause::Events(EventsError::Unended { at: 0 }), true),
        (200, events::MEDIA_TYPE, &[], "OPEN\r\nTEXT\r\n", Cause::OpenedTwice, true),
        (200, events::MEDIA_TYPE, &[], "DISCONNECT\r\nTEXT\r\n", Cause::Disconnected, false),
        (200, events::MEDIA_TYPE, &[("content-bytes-accepted", "3")], "TEXT\r\n", Cause::Unacceptable, true),
        (200, events::MEDIA_TYPE, &[("content-bytes-accepted", "-1")], "", Cause::Unacceptable, true),
        (200, events::MEDIA_TYPE, &[("content-bytes-accepted", "all")], "", Cause::Unacceptable, true),
    ];
    for (status, media_type, headers, body, cause, is_told) in table {
        let mut rig = Rig::open(&[]);
        rig.says("hi");
        rig.asks("TEXT 2\r\nhi\r\n");
        rig.says("more");
        assert_eq!(rig.answer_as(status, media_type, headers, body), dropped(cause));
        if is_told {
            rig.asks("DISCONNECT\r\n");
            assert_eq!(rig.answer_as(404, "text/html", &[], "gone"), []);
        }
        assert!(rig.session.is_ended(), "{cause}");
        rig.asks_nothing();
    }
    let mut rig = Rig::open(&[]);
    rig.session.refresh();
    rig.asks("");
    let actions = rig.answer(&[], "TEXT 1\r\na\r\nOPEN\r\n");
    assert_eq!(actions, [text("a"), Action::Drop(Cause::OpenedTwice)]);
}

/// The origin heard the request, and may have taken the WebSocket for open.
#[test]
fn a_spoilt_answer_is_followed_by_a_farewell() {
    for cause in [Cause::Cut, Cause::TooLarge] {
        let mut rig = Rig::open(&[]);
        assert_eq!(rig.session.spoilt(cause), []);
        rig.says("hi");
        rig.asks("TEXT 2\r\nhi\r\n");
        rig.says("more");
        assert_eq!(rig.session.spoilt(cause), dropped(cause));
        rig.asks("DISCONNECT\r\n");
        assert_eq!(rig.session.spoilt(cause), []);
        assert!(rig.session.is_ended());

        let mut opening = Rig::with(1000, false);
        opening.asks("OPEN\r\n");
        assert_eq!(opening.session.spoilt(cause), dropped(cause));
        opening.asks("DISCONNECT\r\n");
    }
    let mut leaving = Rig::open(&[]);
    leaving.says("hi");
    leaving.asks("TEXT 2\r\nhi\r\n");
    leaving.session.leave(Farewell::Disconnect);
    assert_eq!(leaving.session.spoilt(Cause::Cut), []);
    leaving.asks("DISCONNECT\r\n");
}

#[test]
fn answers_too_many_are_ignored() {
    let mut rig = Rig::open(&[]);
    assert_eq!(rig.answer(&[], "TEXT 1\r\na\r\n"), []);
    assert_eq!(rig.answer_as(500, "text/plain", &[], ""), []);
    rig.says("hi");
    rig.asks("TEXT 2\r\nhi\r\n");
    assert_eq!(rig.session.failed(Failure::NotReached, 0, rig.now_ms), []);
    assert_eq!(rig.answer(&[], "CLOSE\r\n"), []);
    assert_eq!(rig.session.failed(Failure::Fatal, 0, rig.now_ms), []);
    rig.now_ms += 1000;
    rig.asks("TEXT 2\r\nhi\r\n");
    assert_eq!(rig.answer(&[], ""), []);
    assert!(!rig.session.is_ended());
}

#[test]
fn polling_is_sticky_and_can_be_turned_off() {
    for (value, seconds) in [
        ("60", Some(60)),
        ("5", Some(20)),
        (" 20 ", Some(20)),
        ("99999999999", Some(u64::from(u32::MAX))),
        ("0", None),
        ("-1", None),
        ("soon", None),
        ("1.5", None),
    ] {
        let mut rig = Rig::open(&[EVERY_MINUTE]);
        rig.says("a");
        rig.asks("TEXT 1\r\na\r\n");
        rig.now_ms += 5;
        let headers = [("keep-alive-interval", value)];
        assert_eq!(rig.answer(&headers, ""), []);
        assert_eq!(rig.session.due_ms(), seconds.map(|s| rig.now_ms + s * 1000), "{value}");
    }
    let mut rig = Rig::open(&[EVERY_MINUTE]);
    for _ in 0..3 {
        rig.now_ms += 59_999;
        rig.asks_nothing();
        rig.now_ms += 1;
        rig.asks("");
        assert_eq!(rig.session.due_ms(), None);
        assert_eq!(rig.answer(&[], ""), []);
    }
    assert_eq!(Rig::open(&[]).session.due_ms(), None);
}

#[test]
fn a_refresh_asks_once_more_after_the_one_on_its_way() {
    let mut rig = Rig::open(&[]);
    rig.session.refresh();
    rig.session.refresh();
    rig.asks("");
    rig.session.refresh();
    assert_eq!(rig.answer(&[], ""), []);
    rig.asks("");
    assert_eq!(rig.answer(&[], ""), []);
    rig.asks_nothing();
    rig.says("ab");
    rig.asks("TEXT 2\r\nab\r\n");
    rig.session.refresh();
    assert_eq!(rig.answer(&[("content-bytes-accepted", "1")], ""), []);
    rig.asks("TEXT 1\r\nb\r\n");
}

#[test]
fn what_was_not_accepted_waits_for_a_reason() {
    let mut rig = Rig::open(&[EVERY_MINUTE]);
    rig.says("hello");
    rig.asks("TEXT 5\r\nhello\r\n");
    assert_eq!(rig.answer(&[("content-bytes-accepted", "3")], "TEXT 1\r\na\r\n"), [text("a")]);
    rig.asks_nothing();
    rig.says("you");
    rig.asks("TEXT 2\r\nlo\r\nTEXT 3\r\nyou\r\n");
    assert_eq!(rig.header("content-bytes-replayed").as_deref(), Some("2"));
    assert_eq!(rig.answer(&[ACCEPTS_NOTHING], ""), []);
    rig.asks_nothing();
    rig.now_ms += 60_000;
    rig.asks("TEXT 2\r\nlo\r\nTEXT 3\r\nyou\r\n");
    assert_eq!(rig.header("content-bytes-replayed").as_deref(), Some("5"));
    assert_eq!(rig.answer(&[("content-bytes-accepted", "5")], ""), []);
    rig.says("!");
    rig.asks("TEXT 1\r\n!\r\n");
    assert_eq!(rig.header("content-bytes-replayed"), None);
}

#[test]
fn a_full_backlog_is_offered_again_as_long_as_some_is_accepted() {
    let mut rig = Rig::with(18, false);
    rig.asks("OPEN\r\n");
    rig.answer(&[], "OPEN\r\n");
    rig.says("");
    assert!(!rig.session.push(WsKind::Text, b"0123456789"));
    rig.asks("TEXT\r\nTEXT a\r\n0123456789\r\n");
    assert!(!rig.session.has_room());
    assert_eq!(rig.answer(&[("content-bytes-accepted", "1")], ""), []);
    rig.asks("TEXT 9\r\n123456789\r\n");
    assert_eq!(rig.answer(&[("content-bytes-accepted", "2")], ""), []);
    assert!(rig.session.has_room());
    rig.asks_nothing();

    assert!(!rig.session.push(WsKind::Text, b"x"));
    rig.asks("TEXT 7\r\n3456789\r\nTEXT 1\r\nx\r\n");
    assert_eq!(rig.answer(&[ACCEPTS_NOTHING], ""), dropped(Cause::Stalled));
    rig.asks("DISCONNECT\r\n");
}

#[test]
fn events_that_wait_are_limited_in_number() {
    let mut session = Session::new(u32::MAX, false);
    assert!((1..MAX_PENDING_EVENTS).all(|_| session.push(WsKind::Ping, b"")));
    assert!(!session.push(WsKind::Ping, b""));
}

#[test]
fn one_event_a_request() {
    let mut rig = Rig::with(1000, true);
    rig.asks("OPEN\r\n");
    rig.answer(&[], "OPEN\r\n");
    for message in ["", "ab", "c"] {
        rig.says(message);
    }
    rig.session.close(None);
    rig.asks("TEXT\r\n");
    assert_eq!(rig.answer(&[], ""), []);
    rig.asks("TEXT 2\r\nab\r\n");
    assert_eq!(rig.answer(&[("content-bytes-accepted", "1")], ""), []);
    rig.asks("TEXT 1\r\nb\r\n");
    assert_eq!(rig.header("content-bytes-replayed").as_deref(), Some("1"));
    assert_eq!(rig.answer(&[], ""), []);
    rig.asks("TEXT 1\r\nc\r\n");
    assert_eq!(rig.answer(&[], ""), []);
    rig.asks("CLOSE\r\n");
    assert_eq!(rig.answer(&[], "CLOSE\r\n"), [CLOSE]);
    assert!(rig.session.is_ended());

    for gone in [false, true] {
        let mut rig = Rig::with(1000, true);
        rig.asks("OPEN\r\n");
        rig.answer(&[], "OPEN\r\n");
        rig.says("a");
        rig.says("b");
        rig.asks("TEXT 1\r\na\r\n");
        if gone {
            rig.session.leave(Farewell::Disconnect);
        }
        let actions = rig.answer(&[ACCEPTS_NOTHING], "");
        assert_eq!(actions.is_empty(), gone);
        assert_eq!(rig.session.is_ended(), gone);
    }
}

#[test]
fn a_client_that_closes_is_answered_now_or_by_a_poll() {
    let closing = |headers: &Headers| {
        let mut rig = Rig::open(headers);
        rig.session.close(None);
        rig.session.close(Some((1001, b"again")));
        rig.asks("CLOSE\r\n");
        rig
    };
    let mut rig = closing(&[]);
    assert_eq!(rig.answer(&[], "TEXT 1\r\na\r\n"), [text("a"), Action::Drop(Cause::CloseIgnored)]);
    assert!(rig.session.is_ended());

    let mut rig = closing(&[EVERY_MINUTE]);
    assert_eq!(rig.answer(&[], ""), []);
    rig.asks_nothing();
    rig.now_ms += 60_000;
    rig.asks("");
    assert_eq!(rig.answer(&[], "CLOSE\r\n"), [CLOSE]);
    assert!(rig.session.is_ended());

    let mut rig = closing(&[EVERY_MINUTE]);
    rig.answer(&[], "");
    rig.now_ms += 60_000;
    rig.asks("");
    assert_eq!(rig.answer(&[("keep-alive-interval", "0")], ""), dropped(Cause::CloseIgnored));

    let mut rig = closing(&[EVERY_MINUTE]);
    rig.answer(&[], "");
    rig.session.leave(Farewell::Disconnect);
    assert!(rig.session.is_ended());
}

#[test]
fn a_close_waits_until_what_is_before_it_is_accepted() {
    let closing = |headers: &Headers| {
        let mut rig = Rig::open(headers);
        rig.says("ab");
        rig.session.close(Some((1000, b"")));
        let Some(body) = rig.session.next(rig.now_ms) else { panic!() };
        assert!(body.starts_with(b"TEXT 2\r\nab\r\nCLOSE 2\r\n"));
        rig
    };
    let mut rig = closing(&[]);
    assert_eq!(rig.answer(&[("content-bytes-accepted", "1")], ""), []);
    assert!(rig.session.next(rig.now_ms).unwrap().starts_with(b"TEXT 1\r\nb\r\nCLOSE 2\r\n"));
    assert_eq!(rig.header("content-bytes-replayed").as_deref(), Some("3"));
    assert_eq!(rig.answer(&[("content-bytes-accepted", "3")], "CLOSE\r\n"), [CLOSE]);
    assert!(rig.session.is_ended());

    let mut rig = closing(&[]);
    assert_eq!(rig.answer(&[("content-bytes-accepted", "2")], "CLOSE\r\n"), dropped(Cause::Unacceptable));

    let mut rig = closing(&[]);
    assert_eq!(rig.answer(&[ACCEPTS_NOTHING], ""), dropped(Cause::Stalled));

    let mut rig = closing(&[EVERY_MINUTE]);
    assert_eq!(rig.answer(&[ACCEPTS_NOTHING], ""), []);
    rig.asks_nothing();
    rig.now_ms += 60_000;
    assert!(rig.session.next(rig.now_ms).unwrap().starts_with(b"TEXT 2\r\nab\r\nCLOSE 2\r\n"));
}

#[test]
fn an_origin_that_closes_hears_the_client_close() {
    let mut rig = Rig::open(&[EVERY_MINUTE]);
    rig.session.refresh();
    rig.asks("");
    rig.says("crossing");
    assert_eq!(rig.answer(&[], "CLOSE\r\nTEXT\r\nCLOSE\r\nDISCONNECT\r\n"), [CLOSE]);
    rig.asks_nothing();
    assert_eq!(rig.session.due_ms(), None);
    rig.session.close(None);
    rig.asks("TEXT 8\r\ncrossing\r\nCLOSE\r\n");
    assert_eq!(rig.answer(&[], "TEXT 1\r\na\r\nCLOSE\r\nOPEN\r\n"), []);
    assert!(rig.session.is_ended());

    let mut rig = Rig::open(&[]);
    rig.session.refresh();
    rig.asks("");
    rig.session.close(None);
    assert_eq!(rig.answer(&[], "CLOSE\r\n"), [CLOSE]);
    rig.asks("CLOSE\r\n");
    assert_eq!(rig.answer_as(500, "text/plain", &[], ""), []);
    assert!(rig.session.is_ended());
}

#[test]
fn a_client_that_does_not_hear_the_close_cannot_fill_the_backlog() {
    let closed = || {
        let mut rig = Rig::with(20, false);
        rig.asks("OPEN\r\n");
        assert_eq!(rig.answer(&[], "OPEN\r\nCLOSE\r\n"), [Action::Open, CLOSE]);
        rig.says("a");
        rig.asks_nothing();
        assert!(!rig.session.push(WsKind::Text, b"b"));
        rig.asks("TEXT 1\r\na\r\nTEXT 1\r\nb\r\n");
        rig
    };
    let mut rig = closed();
    assert_eq!(rig.answer(&[], "TEXT 1\r\nc\r\n"), []);
    assert!(rig.session.has_room());
    rig.asks_nothing();
    assert_eq!(closed().answer(&[ACCEPTS_NOTHING], ""), dropped(Cause::Stalled));
}

#[test]
fn a_client_that_is_gone_is_told_of_behind_what_it_said() {
    let mut rig = Rig::open(&[]);
    rig.says("hi");
    rig.asks("TEXT 2\r\nhi\r\n");
    rig.says("more");
    rig.session.leave(Farewell::Disconnect);
    rig.session.leave(Farewell::Disconnect);
    rig.session.leave(Farewell::Close);
    rig.session.close(None);
    rig.session.refresh();
    rig.asks_nothing();
    assert_eq!(rig.answer(&[("content-bytes-accepted", "1")], "TEXT 1\r\na\r\nCLOSE\r\n"), []);
    rig.asks("TEXT 1\r\ni\r\nTEXT 4\r\nmore\r\nDISCONNECT\r\n");
    assert_eq!(rig.answer(&[("content-bytes-accepted", "4")], ""), []);
    rig.asks("TEXT 1\r\ne\r\nDISCONNECT\r\n");
    assert_eq!(rig.answer(&[ACCEPTS_NOTHING], ""), []);
    assert!(rig.session.is_ended());

    let mut rig = Rig::open(&[]);
    rig.session.leave(Farewell::Disconnect);
    rig.asks("DISCONNECT\r\n");
    assert_eq!(rig.answer(&[], "anything"), []);
    assert!(rig.session.is_ended());
}

#[test]
fn a_client_that_is_gone_before_it_was_let_in() {
    let mut rig = Rig::with(1000, false);
    rig.session.leave(Farewell::Disconnect);
    assert!(rig.session.is_ended());
    rig.asks_nothing();

    let leaving = || {
        let mut rig = Rig::with(1000, false);
        rig.asks("OPEN\r\n");
        rig.session.leave(Farewell::Disconnect);
        assert!(!rig.session.is_ended());
        rig
    };
    let mut rig = leaving();
    assert_eq!(rig.answer(&[], "OPEN\r\nTEXT\r\n"), []);
    rig.asks("DISCONNECT\r\n");
    let mut rig = leaving();
    assert_eq!(rig.answer_as(403, "text/plain", &[], ""), []);
    assert!(rig.session.is_ended());
    let mut rig = leaving();
    assert_eq!(rig.session.failed(Failure::NotReached, 0, rig.now_ms), []);
    assert!(rig.session.is_ended());
}

#[test]
fn a_detached_origin_gets_a_close_and_no_more() {
    let mut rig = Rig::open(&[EVERY_MINUTE]);
    rig.says("hi");
    rig.session.leave(Farewell::Close);
    rig.says("unheard");
    rig.asks("TEXT 2\r\nhi\r\nCLOSE\r\n");
    assert_eq!(rig.session.due_ms(), None);
    assert_eq!(rig.answer(&[], "TEXT 1\r\na\r\nCLOSE\r\n"), []);
    assert!(rig.session.is_ended());
}

#[test]
fn retries() {
    for (failure, retried) in [(Failure::NotReached, 5), (Failure::Unsent, 5), (Failure::Fatal, 0)] {
        for gone in [false, true] {
            let mut rig = Rig::open(&[]);
            rig.says("hi");
            rig.asks("TEXT 2\r\nhi\r\n");
            if gone {
                rig.session.leave(Farewell::Disconnect);
            } else {
                rig.says("more");
            }
            for delay_ms in [1000, 2000, 4000, 8000, 16_000].into_iter().take(retried) {
                assert_eq!(rig.session.failed(failure, 5000, rig.now_ms), []);
                assert_eq!(rig.session.due_ms(), Some(rig.now_ms + delay_ms + 999));
                rig.now_ms += delay_ms + 998;
                rig.asks_nothing();
                rig.now_ms += 1;
                rig.asks("TEXT 2\r\nhi\r\n");
                assert_eq!(rig.session.due_ms(), None);
            }
            let actions = rig.session.failed(failure, 0, rig.now_ms);
            assert_eq!(actions, if gone { vec![] } else { dropped(Cause::Unreachable).to_vec() });
            assert!(rig.session.is_ended());
        }
    }
    for failure in [Failure::NotReached, Failure::Unsent, Failure::Fatal] {
        let mut rig = Rig::with(1000, false);
        rig.asks("OPEN\r\n");
        assert_eq!(rig.session.failed(failure, 0, rig.now_ms), dropped(Cause::Unreachable));
        assert!(rig.session.is_ended());
    }
}

#[test]
fn meta_beyond_the_limit_ends_the_session() {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static(events::MEDIA_TYPE));
    headers.insert("set-meta-x", HeaderValue::try_from("x".repeat(MAX_META_BYTES)).unwrap());
    let mut session = Session::new(1000, false);
    session.next(0);
    let actions = session.answered(StatusCode::OK, &headers, &Bytes::from_static(b"OPEN\r\n"), 0);
    assert_eq!(actions, dropped(Cause::Meta));
}

#[test]
fn headers_of_the_opening_answer() {
    let mut answer = HeaderMap::new();
    for (name, value) in [
        ("content-type", "application/websocket-events"),
        ("content-length", "6"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("upgrade", "websocket"),
        ("keep-alive-interval", "60"),
        ("content-bytes-accepted", "0"),
        ("set-meta-user", "ann"),
        ("sec-websocket-accept", "x"),
        ("sec-websocket-extensions", "grip"),
        ("grip-channel", "a"),
        ("sec-websocket-protocol", "chat"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
    ] {
        answer.append(name, HeaderValue::from_static(value));
    }
    let headers = opening_headers(&answer);
    let kept: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    assert_eq!(kept.len(), 3);
    for line in ["sec-websocket-protocol: chat", "set-cookie: a=1", "set-cookie: b=2"] {
        assert!(kept.iter().any(|kept| kept == line), "{line}");
    }
}

/// What happens at one step between a client and an origin.
#[derive(Clone, Debug)]
enum Step {
    Say(WsKind, Vec<u8>),
    Ask,
    /// The origin takes so many of the bytes, if they are that many, and answers.
    Accept(Option<u8>),
    Fail(Failure),
    Wait(u16),
    Refresh,
}

fn any_step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(WsKind::Text), Just(WsKind::Binary), Just(WsKind::Ping), Just(WsKind::Pong)];
    let failure = prop_oneof![Just(Failure::NotReached), Just(Failure::Unsent)];
    prop_oneof![
        6 => (kind, vec(any::<u8>(), 0..12)).prop_map(|(kind, content)| Step::Say(kind, content)),
        5 => Just(Step::Ask),
        3 => Just(Step::Accept(None)),
        3 => (1_u8..20).prop_map(Some).prop_map(Step::Accept),
        1 => failure.prop_map(Step::Fail),
        2 => any::<u16>().prop_map(Step::Wait),
        1 => Just(Step::Refresh),
    ]
}

/// An origin that remembers what it accepted: the bytes of each message, and where it ended.
#[derive(Default)]
struct Origin {
    accepted: Vec<(WsKind, Vec<u8>)>,
    /// The last message goes on in the next request.
    partial: bool,
    over: bool,
}

impl Origin {
    /// Accepts `most` bytes of a request, and says how many it accepted if that is not all.
    fn accept(&mut self, body: &Bytes, most: Option<u64>) -> Option<u64> {
        let events = events::decode(body).unwrap();
        let length = |event: &Event| if let Event::Message(_, content) = event { content.len() } else { 0 };
        let offered: u64 = events.iter().map(length).sum::<usize>() as u64;
        let most = most.filter(|most| *most < offered);
        let mut left = most.unwrap_or(u64::MAX);
        for event in events {
            match event {
                Event::Message(..) if left == 0 => return most,
                Event::Message(kind, content) => {
                    let taken = content.len().min(usize::try_from(left).unwrap());
                    if self.partial {
                        let last = self.accepted.last_mut().unwrap();
                        assert_eq!(last.0, kind);
                        last.1.extend_from_slice(&content[..taken]);
                    } else {
                        self.accepted.push((kind, content[..taken].to_vec()));
                    }
                    self.partial = taken < content.len();
                    left -= taken as u64;
                }
                Event::Disconnect => self.over = true,
                other => panic!("{other:?}"),
            }
        }
        most
    }
}

fn accepting(accepted: Option<u64>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static(events::MEDIA_TYPE));
    if let Some(accepted) = accepted {
        headers.insert(ACCEPTED, accepted.into());
    }
    headers
}

proptest! {
    #[test]
    fn the_origin_accepts_what_the_client_said(steps in vec(any_step(), 0..80), one_event: bool, limit in 10_u32..60) {
        let mut session = Session::new(limit, one_event);
        let (mut now_ms, mut said, mut origin, mut asked) = (0, Vec::new(), Origin::default(), None);
        session.next(now_ms);
        session.answered(StatusCode::OK, &accepting(None), &Bytes::from_static(b"OPEN\r\n"), now_ms);
        for step in steps {
            match step {
                Step::Say(kind, content) if session.has_room() => {
                    session.push(kind, &content);
                    said.push((kind, content));
                }
                Step::Ask => {
                    if let Some(body) = session.next(now_ms) {
                        prop_assert!(asked.is_none());
                        asked = Some(body);
                    }
                }
                Step::Accept(most) => {
                    let Some(body) = asked.take() else { continue };
                    let headers = accepting(origin.accept(&body, most.map(u64::from)));
                    prop_assert_eq!(session.answered(StatusCode::OK, &headers, &Bytes::new(), now_ms), []);
                }
                Step::Fail(failure) if asked.is_some() && session.flight.as_ref().is_some_and(|f| f.retries < 5) => {
                    asked = None;
                    prop_assert_eq!(session.failed(failure, 500, now_ms), []);
                }
                Step::Wait(ms) => now_ms += u64::from(ms),
                Step::Refresh => {
                    session.refresh();
                }
                Step::Say(..) | Step::Fail(_) => {}
            }
            let flying = session.flight.as_ref().map_or(0, |flight| flight.offer.body.len());
            prop_assert!(session.backlog.size().0 + flying < limit as usize + "BINARY b\r\n\r\n".len() + 11);
        }
        session.leave(Farewell::Disconnect);
        while !session.is_ended() {
            now_ms += 20_000;
            let Some(body) = asked.take().or_else(|| session.next(now_ms)) else { panic!("stuck: {session:?}") };
            origin.accept(&body, None);
            session.answered(StatusCode::OK, &accepting(None), &Bytes::new(), now_ms);
        }
        prop_assert!(origin.over);
        prop_assert_eq!(origin.accepted, said);
    }

    #[test]
    fn nothing_panics_and_all_comes_to_an_end(
        answers in vec(("(OPEN\r\n|TEXT 1\r\na\r\n|CLOSE\r\n|DISCONNECT\r\n|PING|TEXT x\r\n){0,3}", any::<Option<i8>>(), 0..9), 0..12),
        one_event: bool,
    ) {
        let mut session = Session::new(50, one_event);
        let mut now_ms = 0;
        for (body, accepted, act) in answers {
            session.next(now_ms);
            match act {
                0 => session.close(None),
                1 => session.leave(Farewell::Close),
                2 => {
                    session.refresh();
                }
                3 => drop(session.failed(Failure::Unsent, 0, now_ms)),
                _ => drop(session.push(WsKind::Text, b"hello")),
            }
            let mut headers = accepting(None);
            if let Some(accepted) = accepted {
                headers.insert(ACCEPTED, i16::from(accepted).into());
                headers.insert(INTERVAL, i16::from(accepted).into());
            }
            session.answered(StatusCode::OK, &headers, &Bytes::from(body), now_ms);
            now_ms += 10_000;
        }
        session.leave(Farewell::Disconnect);
        for _ in 0..40 {
            now_ms += 20_000;
            session.next(now_ms);
            session.answered(StatusCode::OK, &accepting(None), &Bytes::new(), now_ms);
        }
        prop_assert!(session.is_ended());
        prop_assert!(session.flight.is_none() && session.backlog.is_empty());
    }
}

use proptest::prelude::*;

use super::*;

fn envelope(seq: u32, credits: u32) -> Envelope<'static> {
    Envelope { from: "fantail", id: "7", seq: Some(seq), credits }
}

fn text(said: Said<'_>, envelope: Envelope<'_>) -> String {
    let packet = String::from_utf8(said.encode(envelope)).expect("ASCII");
    let (length, members) = packet.split_once(':').expect("a length");
    let members = members.strip_suffix('}').expect("a map");
    assert_eq!(length, format!("T{}", members.len()));
    members.to_owned()
}

#[test]
fn what_is_sent() {
    let headers = HeaderMap::from_iter([(http::header::HOST, HeaderValue::from_static("a"))]);
    let request = Said::Request {
        method: "GET",
        uri: "http://a/",
        headers: &headers,
        body: b"",
        more: false,
        streams: true,
        flags: Flags::default(),
    };
    assert_eq!(
        text(request, envelope(0, CREDITS)),
        "4:from,7:fantail,2:id,1:7,3:seq,1:0#7:credits,6:200000#6:method,3:GET,3:uri,9:http://a/,\
         7:headers,15:11:4:host,1:a,]]6:stream,4:true!11:router-resp,4:true!"
    );
    assert_eq!(
        text(Said::Data { body: b"x", more: true, binary: true }, envelope(3, 0)),
        "4:from,7:fantail,2:id,1:7,3:seq,1:3#4:body,1:x,12:content-type,6:binary,4:more,4:true!"
    );
    assert_eq!(
        text(Said::Close(Some((1000, "bye"))), envelope(1, 0)),
        "4:from,7:fantail,2:id,1:7,3:seq,1:1#4:type,5:close,4:code,4:1000#4:body,3:bye,"
    );
    let bare = [
        (Said::Credit, "credit"),
        (Said::KeepAlive, "keep-alive"),
        (Said::HandoffProceed, "handoff-proceed"),
        (Said::Cancel, "cancel"),
        (Said::Close(None), "close"),
    ];
    for (said, name) in bare {
        assert!(text(said, envelope(1, 0)).ends_with(&format!("4:type,{}:{name},", name.len())));
    }
    let whole = Envelope { seq: None, ..envelope(0, 0) };
    let request = Said::Request {
        method: "PUT",
        uri: "x",
        headers: &HeaderMap::new(),
        body: b"b",
        more: false,
        streams: false,
        flags: Flags { ignore_policies: true, ..Flags::default() },
    };
    assert_eq!(
        text(request, whole),
        "4:from,7:fantail,2:id,1:7,6:method,3:PUT,3:uri,1:x,7:headers,0:]4:body,1:b,15:ignore-policies,4:true!"
    );
}

fn decode(members: &str) -> Result<Packet, Malformed> {
    Packet::decode(format!("T{}:{members}}}", members.len()).as_bytes())
}

#[test]
fn what_a_worker_sends() {
    let response = "4:from,1:w,2:id,1:7,3:seq,1:0#4:code,3:200#6:reason,2:OK,\
                    7:headers,12:9:1:A,2:bc,]]4:body,2:hi,4:more,4:true!7:credits,2:10#5:other,0:~";
    let packet = decode(response).expect("a packet");
    assert_eq!((&packet.from[..], packet.credits), (&b"w"[..], 10));
    assert_eq!(packet.ids, [Id { id: Bytes::from_static(b"7"), seq: Some(0) }]);
    let Content::Data { head: Some(head), body, more: true, binary: false } = packet.content else {
        panic!("data")
    };
    assert_eq!((head.status.as_u16(), &head.reason[..], &body[..]), (200, "OK", &b"hi"[..]));
    assert_eq!(head.headers.get("a").expect("a header"), "bc");

    let content = |members: &str| decode(&format!("2:id,1:7,{members}")).map(|packet| packet.content);
    assert_eq!(content("4:type,10:keep-alive,"), Ok(Content::KeepAlive));
    assert_eq!(content("4:type,13:handoff-start,"), Ok(Content::HandoffStart));
    assert_eq!(content("4:type,5:close,"), Ok(Content::Close(None)));
    let close = Content::Close(Some((1000, "x".into())));
    assert_eq!(content("4:type,5:close,4:code,4:1000#4:body,1:x,"), Ok(close));
    let error =
        |condition: &str| content(&format!("4:type,5:error,9:condition,{}:{condition},", condition.len()));
    assert_eq!(error("tls-error"), Ok(Content::Error(Condition::TlsError)));
    assert_eq!(error("whatever"), Ok(Content::Error(Condition::Other)));
    assert_eq!(error("rejected"), Err(Malformed::Member("code")));

    let several = "2:id,46:19:2:id,1:a,3:seq,1:4#}19:2:id,1:b,3:seq,1:0#}]4:type,10:keep-alive,";
    let ids = decode(several).expect("a packet").ids;
    assert_eq!(
        ids.iter().map(|id| (&id.id[..], id.seq)).collect::<Vec<_>>(),
        [(&b"a"[..], Some(4)), (b"b", Some(0))]
    );
}

#[test]
fn what_is_no_packet() {
    for (members, why) in [
        ("", Malformed::Id),
        ("2:id,0:,", Malformed::Id),
        ("2:id,0:]", Malformed::Id),
        ("2:id,1:7,4:code,4:1000#", Malformed::Member("code")),
        ("2:id,1:7,4:code,2:-1#", Malformed::Member("code")),
        ("2:id,1:7,4:code,3:200#6:reason,2:a\n,", Malformed::Member("reason")),
        ("2:id,1:7,4:code,3:200#7:headers,8:5:1:a,]]", Malformed::Value),
        ("2:id,1:7,4:code,3:200#7:headers,8:4:1:a,]]", Malformed::Value),
        ("2:id,1:7,4:code,3:200#7:headers,7:4:1:a,]]", Malformed::Member("headers")),
        ("2:id,1:7,4:code,3:200#7:headers,12:8:1: ,1:b,]]", Malformed::Value),
        ("2:id,1:7,4:code,3:200#7:headers,11:8:1: ,1:b,]]", Malformed::Member("headers")),
        ("2:id,1:7,4:body,1:1#", Malformed::Member("body")),
        ("2:id,1:7,3:seq,1:x,", Malformed::Member("seq")),
        ("2:id,1:7,4:type,1:x,", Malformed::Type),
    ] {
        assert_eq!(decode(members), Err(why), "{members}");
    }
    assert_eq!(Packet::decode(b""), Err(Malformed::Format));
    assert_eq!(Packet::decode(b"J{}"), Err(Malformed::Format));
    assert_eq!(Packet::decode(b"T1:a,"), Err(Malformed::NotMap));
}

const DATA: Content = Content::Data { head: None, body: Bytes::new(), more: true, binary: false };

#[test]
fn a_session_in_order() {
    let worker = Bytes::from_static(b"w");
    let mut session = Session::new(1000);
    assert_eq!((session.room(), session.worker(), session.may_speak()), (0, None, false));
    session.hear(&worker, Some(0), 50, &DATA, 2000).expect("the first");
    assert_eq!((session.room(), session.worker()), (50, Some(&worker)));
    assert_eq!((session.say(20, 2000), session.room()), (1, 30));
    session.hear(&Bytes::new(), Some(1), 5, &Content::Credit, 2000).expect("the second");
    assert_eq!((session.say(35, 2000), session.room()), (2, 0));

    session.hear(&worker, Some(2), 9, &Content::HandoffStart, 2000).expect("the third");
    assert_eq!((session.room(), session.may_speak()), (0, false), "nothing while it moves");
    let other = Bytes::from_static(b"v");
    session.hear(&other, Some(3), 0, &Content::KeepAlive, 2000).expect("the fourth");
    assert_eq!((session.room(), session.worker()), (9, Some(&other)));
}

#[test]
fn a_session_that_breaks() {
    let worker = Bytes::from_static(b"w");
    let hear = |from: &Bytes, seq, content: &Content| Session::new(0).hear(from, seq, 0, content, 0);
    assert_eq!(hear(&worker, Some(1), &DATA), Err(Broken::Sequence));
    assert_eq!(hear(&Bytes::new(), Some(0), &DATA), Err(Broken::Nameless));
    let last = Content::Data { head: None, body: Bytes::new(), more: false, binary: false };
    assert_eq!(hear(&Bytes::new(), None, &last), Ok(()), "a whole answer in one packet");
    assert_eq!(hear(&worker, Some(9), &Content::Cancel), Err(Broken::Cancelled));
    let error = Content::Error(Condition::TlsError);
    assert_eq!(hear(&worker, None, &error), Err(Broken::Said(Condition::TlsError)));
    let mut session = Session::new(0);
    session.hear(&worker, Some(0), 0, &DATA, 0).expect("the first");
    assert_eq!(session.hear(&worker, Some(0), 0, &DATA, 0), Err(Broken::Sequence), "twice the same");
}

#[test]
fn leases() {
    let mut session = Session::new(0);
    assert_eq!(session.due_ms(), 60_000, "nobody to keep alive");
    assert!(!session.is_silent(59_999) && session.is_silent(60_000));
    session.hear(&Bytes::from_static(b"w"), Some(0), 0, &Content::KeepAlive, 10_000).expect("the first");
    assert_eq!(session.due_ms(), 45_000);
    assert!(session.keep_alive_is_due(45_000) && !session.keep_alive_is_due(44_999));
    session.say(0, 45_000);
    assert_eq!(session.due_ms(), 70_000);
    assert!(session.is_silent(70_000));
}

proptest! {
    #[test]
    fn what_is_said_is_understood(
        body in prop::collection::vec(any::<u8>(), 0..100),
        more in any::<bool>(),
        binary in any::<bool>(),
        seq in any::<u32>(),
        credits in 0..MAX_CREDITS,
    ) {
        let bytes = Said::Data { body: &body, more, binary }.encode(envelope(seq, credits));
        let packet = Packet::decode(&bytes).expect("a packet");
        prop_assert_eq!(packet.credits, credits);
        prop_assert_eq!(packet.ids, [Id { id: Bytes::from_static(b"7"), seq: Some(seq) }]);
        prop_assert_eq!(packet.content, Content::Data { head: None, body: body.into(), more, binary });
    }

    #[test]
    fn garbage_is_harmless(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        drop(Packet::decode(&bytes));
        drop(Packet::decode(&[b"T", &bytes[..]].concat()));
    }

    #[test]
    fn no_order_of_packets_goes_unnoticed(seqs in prop::collection::vec(0_u32..6, 1..8)) {
        let mut session = Session::new(0);
        let from = Bytes::from_static(b"w");
        let taken = seqs.iter().take_while(|seq| session.hear(&from, Some(**seq), 0, &DATA, 0).is_ok()).count();
        let expected = seqs.iter().zip(0..).take_while(|(seq, n)| **seq == *n).count();
        prop_assert_eq!(taken, expected);
    }
}

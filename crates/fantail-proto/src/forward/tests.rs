use proptest::prelude::*;

use super::*;

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    lines.iter().map(pair).collect()
}

/// The sorted lines that an origin sees of `lines`.
fn seen(lines: &[(&str, &str)], forward: &Forward<'_>) -> Vec<String> {
    let mut headers = headers(lines);
    assert!(!forward.apply(&mut headers));
    let mut seen: Vec<String> =
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    seen.sort_unstable();
    seen
}

fn plain<'f>(route: &'f Route, rules: &'f Rules) -> Forward<'f> {
    Forward {
        trusted: false,
        tls: false,
        websocket: false,
        peer: None,
        signature: None,
        last_ids: &[],
        route,
        rules,
    }
}

/// A route without GRIP, so that only what the test is about is seen.
fn no_grip() -> Route {
    Route { no_grip: true, ..Route::default() }
}

const FEATURE_LINE: &str = "grip-feature: status, link:next, link:gone, filter:skip-self, filter:skip-users, filter:require-sub, \
                            filter:build-id, filter:var-subst, filter:http-check, filter:http-modify";

#[test]
fn what_concerns_one_connection_stays() {
    let lines = [
        ("host", "a"),
        ("content-length", "3"),
        ("connection", "keep-alive, x-hop, content-length, host"),
        ("x-hop", "1"),
        ("keep-alive", "1"),
        ("proxy-connection", "1"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
        ("transfer-encoding", "chunked"),
        ("expect", "100-continue"),
        ("accept-encoding", "gzip"),
        ("content-encoding", "gzip"),
        ("cookie", "c"),
    ];
    let seen = seen(&lines, &plain(&no_grip(), &Rules::default()));
    assert_eq!(seen, ["content-encoding: gzip", "content-length: 3", "cookie: c", "host: a"]);
}

#[test]
fn grip_headers_are_ours_and_there_once() {
    let lines = [
        ("grip-sig", "x"),
        ("Grip-Sig", "y"),
        ("grip-last", "y"),
        ("grip-foo", "z"),
        ("grip-feature", "all"),
        ("grip_sig", "x"),
        ("GRIP_hold", "stream"),
        ("connection", "grip-sig, grip-feature"),
    ];
    let (route, rules) = (Route::default(), Rules::default());
    let ids = [("a".into(), "1".into()), ("b".into(), "2".into()), ("c\r\nx: 1".into(), "3".into())];
    let signature = Some(HeaderValue::from_static("token"));
    let ours = Forward { signature, last_ids: &ids, ..plain(&route, &rules) };
    let expected = [FEATURE_LINE, "grip-last: a; last-id=1", "grip-last: b; last-id=2", "grip-sig: token"];
    assert_eq!(seen(&lines, &ours), expected);
    assert_eq!(seen(&lines, &plain(&route, &rules)), [FEATURE_LINE]);

    let no_grip = no_grip();
    let unsigned = Forward { signature: Some(HeaderValue::from_static("token")), ..plain(&no_grip, &rules) };
    assert_eq!(seen(&lines, &unsigned), [""; 0]);
}

#[test]
fn a_trusted_client_speaks_grip_itself() {
    let (route, rules) = (Route::default(), Rules::default());
    let trusted =
        Forward { trusted: true, signature: Some(HeaderValue::from_static("t")), ..plain(&route, &rules) };
    let lines = [("grip-sig", "its"), ("grip-feature", "its"), ("grip_sig", "x")];
    assert_eq!(seen(&lines, &trusted), ["grip-feature: its", "grip-sig: its"]);
}

#[test]
fn disguised_names_are_dropped() {
    let lines = [
        ("x_forwarded_for", "1.1.1.1"),
        ("x-forwarded_for", "1.1.1.1"),
        ("x_forwarded_proto", "https"),
        ("X_Forwarded_Protocol", "https"),
        ("cdn_loop", "x"),
        ("content_length", "7"),
        ("transfer_encoding", "chunked"),
        ("pushpin_route", "x"),
        ("eb9bf0f5_grip_sig", "x"),
        ("grip_", "x"),
        ("gri_p-sig", "x"),
        ("x_my_own", "1"),
        ("_", "1"),
    ];
    let seen = seen(&lines, &plain(&no_grip(), &Rules::default()));
    assert_eq!(seen, ["_: 1", "gri_p-sig: x", "x_my_own: 1"]);
}

#[test]
fn headers_of_the_route() {
    let own = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let route = Route { headers: vec![own("x-a", "1"), own("x-b", ""), own("x-a", "2")], ..no_grip() };
    let lines = [("x-a", "c"), ("x_a", "c"), ("x-b", "c"), ("x-c", "c"), ("connection", "x-a")];
    assert_eq!(seen(&lines, &plain(&route, &Rules::default())), ["x-a: 1", "x-a: 2", "x-c: c"]);
}

#[test]
fn marked_copies() {
    let rules = Rules { need_mark: vec![HeaderName::from_static("x-b")], ..Rules::default() };
    let rules = Rules { cdn_loop: Some(HeaderValue::from_static("mine")), ..rules };
    let own = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let route = Route { orig_headers: true, headers: vec![own("x-own", "ours")], ..no_grip() };
    let lines = [
        ("x-a", "1"),
        ("x-a", "2"),
        ("x-b", "3"),
        ("grip-sig", "g"),
        ("eb9bf0f5-x-c", "4"),
        ("accept-encoding", "br"),
        ("connection", "x-hop, eb9bf0f5-x-d"),
        ("x-hop", "5"),
        ("eb9bf0f5-x-d", "6"),
        ("cdn-loop", "other"),
        ("x-own", "theirs"),
    ];
    let expected = [
        "cdn-loop: other, mine",
        "eb9bf0f5-accept-encoding: br",
        "eb9bf0f5-cdn-loop: other",
        "eb9bf0f5-connection: x-hop, eb9bf0f5-x-d",
        "eb9bf0f5-grip-sig: g",
        "eb9bf0f5-x-a: 1",
        "eb9bf0f5-x-a: 2",
        "eb9bf0f5-x-c: 4",
        "eb9bf0f5-x-hop: 5",
        "eb9bf0f5-x-own: theirs",
        "x-a: 1",
        "x-a: 2",
        "x-b: 3",
        "x-own: ours",
    ];
    assert_eq!(seen(&lines, &plain(&route, &rules)), expected);
    let rest = ["x-a: 1", "x-a: 2", "x-b: 3", "x-own: ours"];
    let trusted = Forward { trusted: true, ..plain(&route, &rules) };
    let passed = ["cdn-loop: other, mine", "eb9bf0f5-x-c: 4", "grip-sig: g"];
    assert_eq!(seen(&lines, &trusted), [&passed[..], &rest].concat());
    let unmarked = Route { orig_headers: false, ..route };
    assert_eq!(seen(&lines, &plain(&unmarked, &rules)), [&passed[..1], &rest].concat());
}

#[test]
fn protocols() {
    let claimed = [("x-forwarded-proto", "https"), ("x-forwarded-protocol", "https")];
    let route = no_grip();
    let seen = |tls, set_protocol, accept_protocol| {
        let rules = Rules { set_protocol, accept_protocol, ..Rules::default() };
        seen(&claimed, &Forward { tls, ..plain(&route, &rules) })
    };
    let both = ["x-forwarded-proto: https", "x-forwarded-protocol: https"];
    assert_eq!(seen(false, SetProtocol::ProtoOnly, false), [""; 0]);
    assert_eq!(seen(true, SetProtocol::ProtoOnly, false), both[..1]);
    assert_eq!(seen(true, SetProtocol::Both, false), both);
    assert_eq!(seen(true, SetProtocol::Off, false), both);
    assert_eq!(seen(true, SetProtocol::Off, true), [""; 0]);
}

#[test]
fn who_claims_tls() {
    for (lines, expected) in [
        (&[("x-forwarded-proto", "https")][..], true),
        (&[("x-forwarded-proto", "wss")], true),
        (&[("x-forwarded-proto", "HTTPS")], false),
        (&[("x-forwarded-proto", "http"), ("x-forwarded-protocol", "https")], false),
        (&[("x-forwarded-proto", ""), ("x-forwarded-protocol", "https")], true),
        (&[], false),
    ] {
        assert_eq!(claims_tls(&headers(lines)), expected, "{lines:?}");
    }
}

#[test]
fn forwarded_for() {
    let peer: IpAddr = "::ffff:9.9.9.9".parse().unwrap();
    let came = [("x-forwarded-for", "1.1.1.1, 2.2.2.2"), ("x-forwarded-for", " ,3.3.3.3")];
    let route = no_grip();
    for (rules, lines, expected) in [
        ("", &came[..1], Some("1.1.1.1, 2.2.2.2")),
        ("", &came[..], Some("1.1.1.1, 2.2.2.2, 3.3.3.3")),
        ("append", &came[..1], Some("1.1.1.1, 2.2.2.2, 9.9.9.9")),
        ("append", &[], Some("9.9.9.9")),
        ("truncate:0,append", &came[..], Some("9.9.9.9")),
        ("truncate:1 , append", &came[..1], Some("2.2.2.2, 9.9.9.9")),
        ("truncate:9", &came[..], Some("1.1.1.1, 2.2.2.2, 3.3.3.3")),
        ("truncate:1", &came[..1], Some("2.2.2.2")),
        ("truncate:0", &came[..], None),
        ("", &[], None),
    ] {
        let forwarded_for = ForwardedFor::parse(rules).unwrap();
        let all = Rules { forwarded_for: forwarded_for.clone(), ..Rules::default() };
        let expected: Vec<String> = expected.iter().map(|list| format!("x-forwarded-for: {list}")).collect();
        assert_eq!(seen(lines, &Forward { peer: Some(peer), ..plain(&route, &all) }), expected, "{rules}");
        let trusted = Rules { forwarded_for_trusted: forwarded_for, ..Rules::default() };
        let forward = Forward { peer: Some(peer), trusted: true, ..plain(&route, &trusted) };
        assert_eq!(seen(lines, &forward), expected, "trusted {rules}");
    }
    for wrong in ["prepend", "truncate", "truncate:-1", "append,", "append append"] {
        assert!(ForwardedFor::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn who_a_request_is_from() {
    let peer: IpAddr = "9.9.9.9".parse().unwrap();
    for (rules, came, expected) in [
        ("", &["1.1.1.1, 2.2.2.2", "3.3.3.3"][..], "1.1.1.1"),
        ("append", &["1.1.1.1, 2.2.2.2"], "1.1.1.1"),
        ("truncate:2,append", &["1.1.1.1, 2.2.2.2", "3.3.3.3"], "2.2.2.2"),
        ("truncate:9", &[" ,2001:db8::1"], "2001:db8::1"),
        ("truncate:0,append", &["1.1.1.1"], "9.9.9.9"),
        ("", &["unknown, 1.1.1.1"], "9.9.9.9"),
        ("", &[], "9.9.9.9"),
    ] {
        let lines: Vec<_> = came.iter().map(|value| ("x-forwarded-for", *value)).collect();
        let own = ForwardedFor::parse(rules).unwrap();
        let rules = Rules { forwarded_for_trusted: own, ..Rules::default() };
        let from = rules.client(true, &headers(&lines), Some(peer));
        assert_eq!(from, Some(expected.parse().unwrap()), "{came:?}");
    }
}

#[test]
fn loops_are_seen() {
    let rules = Rules { cdn_loop: Some(HeaderValue::from_static("mine")), ..Rules::default() };
    let route = no_grip();
    let lines = [("cdn-loop", "a; v=\"1\", b"), ("cdn-loop", "notmine, mine-too")];
    let expected = ["cdn-loop: a; v=\"1\", b, notmine, mine-too, mine"];
    assert_eq!(seen(&lines, &plain(&route, &rules)), expected);
    assert_eq!(seen(&[], &plain(&route, &rules)), ["cdn-loop: mine"]);
    for passed in ["mine", "a, Mine ; v=1", "a,mine,b"] {
        assert!(
            plain(&route, &rules).apply(&mut headers(&[("cdn-loop", "x"), ("cdn-loop", passed)])),
            "{passed}"
        );
        assert_eq!(
            seen(&[("cdn-loop", passed)], &plain(&route, &Rules::default())),
            [format!("cdn-loop: {passed}")]
        );
    }
}

proptest! {
    #[test]
    fn no_client_speaks_for_us(lines in proptest::collection::vec((
        "(grip|GRIP|x|eb9bf0f5)[_-](sig|forwarded)?[_-]?(for|proto|hold)?|connection|cdn-loop",
        "[ -~]{0,20}",
    ), 0..12)) {
        let mut headers: HeaderMap = lines
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<Vec<(HeaderName, HeaderValue)>>()
            .into_iter()
            .collect();
        let (route, mut rules) = (Route::default(), Rules::default());
        rules.forwarded_for = ForwardedFor::parse("truncate:0,append").unwrap();
        let forward = Forward { peer: "9.9.9.9".parse().ok(), signature: Some(HTTPS), ..plain(&route, &rules) };
        prop_assert!(!forward.apply(&mut headers));
        let ours: Vec<_> = headers
            .iter()
            .filter(|(name, _)| {
                let name = name.as_str().replace('_', "-");
                name.starts_with("grip-") || name.starts_with("eb9bf0f5-") || name.starts_with("x-forwarded-") && name != "x-forwarded-"
                    && name != "x-forwarded-hold"
            })
            .collect();
        prop_assert_eq!(ours.len(), 3, "{:?}", ours);
    }
}

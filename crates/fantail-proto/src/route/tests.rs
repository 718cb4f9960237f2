use std::borrow::Cow;

use proptest::prelude::*;

use super::{line::Section, *};

fn table(text: &str) -> Table {
    Table::parse(text).unwrap_or_else(|errors| panic!("{text}: {errors:?}"))
}

/// The only route of a line.
fn route(line: &str) -> Arc<Route> {
    table(line).routes()[0].clone()
}

/// All errors of a text as they are printed.
fn errors(text: &str) -> Vec<String> {
    let errors = Table::parse(text).expect_err(text);
    errors.iter().map(ToString::to_string).collect()
}

fn sections(line: &str) -> Vec<Section> {
    line::sections(line).unwrap_or_else(|reason| panic!("{line}: {reason}"))
}

#[test]
fn sections_of_a_line() {
    let flag = |name: &str| (name.to_owned(), String::new());
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let section = |value: &str, parameters: &[(String, String)]| Section {
        value: value.to_owned(),
        parameters: parameters.to_vec(),
    };
    let table = [
        ("", vec![]),
        ("   ", vec![]),
        ("# * test", vec![]),
        ("* test", vec![section("*", &[]), section("test", &[])]),
        ("  *   test  ", vec![section("*", &[]), section("test", &[])]),
        ("* test#x", vec![section("*", &[]), section("test", &[])]),
        ("*,a,b=c", vec![section("*", &[flag("a"), pair("b", "c")])]),
        (",id=x", vec![section("", &[pair("id", "x")])]),
        ("id=x,debug", vec![section("", &[pair("id", "x"), flag("debug")])]),
        (r#""" x"#, vec![section("", &[]), section("x", &[])]),
        (r#"*,a="b, c #d",e"#, vec![section("*", &[pair("a", "b, c #d"), flag("e")])]),
        (r#"*,a=b" "c"\"\\"d"#, vec![section("*", &[pair("a", r#"b c"\d"#)])]),
        (r"*,a=b\c", vec![section("*", &[pair("a", r"b\c")])]),
        ("*,a=b=c", vec![section("*", &[pair("a", "b=c")])]),
        ("*,a=", vec![section("*", &[flag("a")])]),
    ];
    for (line, wanted) in table {
        assert_eq!(sections(line), wanted, "{line}");
    }
}

#[test]
fn lines_that_do_not_fall_into_sections() {
    let table = [
        (r#"*,a="b"#, Reason::OpenQuote),
        (r#"*,a="b\"#, Reason::OpenQuote),
        (r#"*,a="\n""#, Reason::Escape('n')),
        ("*,", Reason::NoName),
        ("*,,a", Reason::NoName),
        ("*,=a", Reason::NoName),
        ("=a", Reason::NoName),
        ("*\ttest", Reason::Control('\t')),
        ("* test\0", Reason::Control('\0')),
        ("*,a=\"\x1b\"", Reason::Control('\x1b')),
    ];
    for (line, wanted) in table {
        assert_eq!(line::sections(line), Err(wanted), "{line:?}");
    }
}

#[test]
fn conditions() {
    let line = "Example.COM,proto=http,ssl=yes,path_beg=/a%20b/,id=i,sig_iss=s,sig_key=k,prefix=p-,\
                orig_headers=no,as_host=other:81,path_rem=3,replace_beg=/v2/,debug=no,header=\"X-A:  1 \",\
                header=x-b:,no_grip,realm=r,slow=newest";
    let route = route(&format!("{line} test"));
    assert_eq!(route.host, Host::Exact("example.com".into()));
    assert_eq!((route.ws, route.tls), (Some(false), Some(true)));
    assert_eq!((route.path_beg.as_str(), route.id.as_str()), ("/a%20b/", "i"));
    assert_eq!((route.sig_iss.as_deref(), route.sig_key.as_deref()), (Some("s"), Some("k")));
    assert_eq!((route.prefix.as_str(), route.as_host.as_deref()), ("p-", Some("other:81")));
    assert_eq!((route.path_rem, route.replace_beg.as_deref()), (3, Some("/v2/")));
    assert!(route.orig_headers && route.debug && route.no_grip);
    assert_eq!((route.realm.as_deref(), route.slow, route.line), (Some("r"), Slow::Newest, 1));
    let headers: Vec<_> =
        route.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(headers, [("x-a", &b"1"[..]), ("x-b", &b""[..])]);
}

#[test]
fn targets() {
    let line = "* a:80 [::1]:443,ssl,insecure,trust_connect_host,untrusted,host=h:1,sub=x,sub=\"y,z\" \
                b:1,client_cert=c,client_key=k test,sub=s";
    let route = route(line);
    let addresses: Vec<_> = route.targets.iter().map(|target| target.address.clone()).collect();
    let tcp = |host: &str, port| Address::Tcp(host.into(), port);
    assert_eq!(addresses, [tcp("a", 80), tcp("::1", 443), tcp("b", 1), Address::Test]);
    let second = &route.targets[1];
    assert!(second.tls && second.insecure && second.trust_connect_host && second.untrusted);
    assert_eq!((second.host.as_deref(), &second.subs[..]), (Some("h:1"), &["x".into(), "y,z".into()][..]));
    let third = &route.targets[2];
    assert_eq!((third.client_cert.as_deref(), third.client_key.as_deref()), (Some("c"), Some("k")));
    assert!(!third.tls && !third.insecure && third.subs.is_empty());
}

#[test]
fn the_last_of_repeated_parameters_wins() {
    let route = route("*,id=a,path_beg=/x,id=b,path_beg=/y a:1,host=g,host=h");
    assert_eq!((route.id.as_str(), route.path_beg.as_str()), ("b", "/y"));
    assert_eq!(route.targets[0].host.as_deref(), Some("h"));
}

#[test]
fn refused_lines_say_why() {
    let table = [
        ("*", "no target"),
        ("test", "no target"),
        ("\"\" test", "neither a host nor an id"),
        (",debug test", "neither a host nor an id"),
        ("*.example.com test", "only * alone"),
        ("example.com:80 test", "no port here"),
        ("::1 test", "IPv6 needs brackets"),
        ("exämple.com test", "xn--"),
        ("a/b test", "a name, an address or *"),
        ("*,proto=https test", "http or ws"),
        ("*,ssl=1 test", "yes or no"),
        ("*,ssl test", "yes or no"),
        ("*,path_beg= test", "must begin with /"),
        ("*,path_beg=a test", "must begin with /"),
        ("*,path_beg=/a?b test", "without query"),
        ("*,path_beg=\"/a b\" test", "percent-encoded"),
        ("*,path_beg=/é test", "percent-encoded"),
        ("*,replace_beg=/a#b test", "no target"),
        ("*,replace_beg=\"/a#b\" test", "without query"),
        ("*,path_rem=-1 test", "a number of bytes"),
        ("*,id= test", "must not be empty"),
        ("*,realm test", "must not be empty"),
        ("*,slow=drop test", "close, repair or newest"),
        ("*,as_host= test", "a host, or host:port"),
        ("*,as_host=a:b test", "a host, or host:port"),
        ("*,as_host=a:0 test", "a host, or host:port"),
        ("*,as_host=::1 test", "a host, or host:port"),
        ("*,as_host=\"a\tb\" test", "a host, or host:port"),
        ("*,header=X test", "Name:Value"),
        ("*,header=:x test", "Name:Value"),
        ("*,header=\"a b:c\" test", "Name:Value"),
        ("*,header=X:é\u{7f} test", "control character"),
        ("*,header=Host:x test", "not a route's to set"),
        ("*,header=transfer-encoding:chunked test", "not a route's to set"),
        ("*,header=Content-Length:0 test", "not a route's to set"),
        ("* localhost", "write HOST:PORT"),
        ("* a:", "1 to 65535"),
        ("* a:0", "1 to 65535"),
        ("* a:65536", "1 to 65535"),
        ("* a:+80", "1 to 65535"),
        ("* ::1:80", "IPv6 in brackets"),
        ("* [::g]:80", "IPv6 in brackets"),
        ("* :80", "the host is a name"),
        ("* \"\"", "write HOST:PORT"),
        ("* a:1,sub=", "must not be empty"),
        ("* a:1,sub", "must not be empty"),
        ("* a:1,client_cert=x", "only work together"),
        ("* test,ssl", "no connection that ssl"),
        ("* test,host=x", "no connection that host"),
        ("* a:1,path_beg=/x", "path_beg is a parameter of the condition"),
        ("*,untrusted a:1", "untrusted is a parameter of a target"),
        ("*,path_bag=/ a:1", "did you mean path_beg?"),
        ("*,no-grip a:1", "did you mean no_grip?"),
        ("*,jsonp_mode=x a:1", "basic or extended"),
        ("*,jsonp_defcb=a(b a:1", "letters, digits"),
        ("*,jsonp_defmethod=CONNECT a:1", "a method"),
        ("* a:1,unstrusted", "did you mean untrusted?"),
        ("*,SSL=yes a:1", "unknown parameter \"SSL\""),
        ("*,weight=3 a:1", "unknown parameter \"weight\""),
    ];
    for (line, part) in table {
        let errors = errors(line);
        assert!(errors.iter().any(|error| error.contains(part)), "{line}: {errors:?}");
    }
}

#[test]
fn workers() {
    let target =
        |text: &str| Table::parse(&format!("* {text}")).map(|table| table.routes()[0].targets[0].clone());
    for text in [
        "zhttp/ipc:///tmp/x",
        "zhttpreq/ipc://x",
        "zhttpreq/tcp://127.0.0.1:65535",
        "zhttp/tcp://[::1]:65533",
        "zhttp/tcp://eth0.100:65533",
        "zhttpreq/tcp://wg-0_a:1",
    ] {
        assert_eq!(target(text).expect("a target").address.to_string(), text);
    }
    let any = target("zhttp/tcp://*:1,ipc_file_mode=770,ssl,over_http,sub=c").expect("a target");
    assert_eq!((any.address.to_string().as_str(), any.ipc_file_mode), ("zhttp/tcp://0.0.0.0:1", Some(0o770)));
    for (line, why) in [
        ("zhttp/x", "write ipc://PATH"),
        ("zhttp/ipc://", "a path of 1 to 90 bytes"),
        ("zhttp/ipc://@x", "a path of 1 to 90 bytes"),
        ("zhttp/tcp://localhost:1", "an IP address, an interface"),
        ("zhttp/tcp://10.0.0.300:1", "an IP address, an interface"),
        ("zhttp/tcp://backend.example.com:1", "an IP address, an interface"),
        ("zhttp/tcp://eth0:65534", "the two that follow"),
        ("zhttp/tcp://127.0.0.1:65534", "the two that follow"),
        ("zhttpreq/tcp://127.0.0.1:0", "1 to 65535"),
        ("zhttp/ipc://x,client_cert=a,client_key=b", "client_cert"),
        ("zhttp/ipc://x,ipc_file_mode=8", "in octal"),
        ("zhttp/ipc://x,ipc_file_mode=+7", "in octal"),
        ("zhttp/ipc://x,ipc_file_mode=1777", "in octal"),
        ("a:1,ipc_file_mode=777", "for zhttp and zhttpreq targets"),
    ] {
        let error = errors(&format!("* {line}")).concat();
        assert!(error.contains(why), "{line}: {error}");
    }
}

/// A header's value may be a token, and errors are logged.
#[test]
fn errors_do_not_tell_what_a_header_says() {
    for line in ["*,header=X@Token:s3cret a:1", "*,header=Host:s3cret a:1", "*,header=s3cret a:1"] {
        let error = errors(line).concat();
        assert!(error.contains("header=") && !error.contains("s3cr"), "{error}");
    }
}

#[test]
fn all_errors_come_at_once_with_their_lines() {
    let text = "# routes\n* test\r\n\n*,ssl=1,path_rem=x x\n*,path_beg=/a test\n* a:1\n*,path_beg=/a b:1\n";
    let lines: Vec<usize> =
        Table::parse(text).expect_err("bad lines").iter().map(|error| error.line).collect();
    assert_eq!(lines, [4, 4, 4, 6, 7]);
    assert!(errors(text)[3].starts_with("line 6: the same condition as line 2"));
}

#[test]
fn the_same_condition() {
    for text in [
        "* test\n* test",
        "a,ssl=yes test\nA,ssl=yes,debug test",
        "[::1] test\n[0:0:0:0:0:0:0:1] test",
        ",id=a test\n,id=a test",
    ] {
        assert!(errors(text)[0].contains("same condition as line 1"), "{text}");
    }
    for text in
        ["* test\n*,ssl=no test", "* test\na test", ",id=a test\n,id=b test", "*,proto=http test\n* test"]
    {
        assert_eq!(table(text).routes().len(), 2, "{text}");
    }
}

fn asked(host: &'static str, path: &'static str) -> Asked<'static> {
    Asked { host, path, tls: false, ws: false, id: None }
}

#[test]
fn matching() {
    let text = "* a:1\n\
                *,path_beg=/a a:2\n\
                *,path_beg=/a/b a:3\n\
                *,path_beg=/a/b,ssl=yes a:4\n\
                *,ssl=yes a:5\n\
                h,path_beg=/x a:6\n\
                [::1] a:7\n\
                p a:8\n\
                p,proto=http a:9\n\
                p,path_beg=/long a:10\n\
                ,id=only a:11";
    let reversed: String = text.lines().rev().map(|line| format!("{line}\n")).collect();
    for text in [text, &reversed] {
        let table = table(text);
        let port = |asked| {
            table.find(asked).map(|route| match route.targets[0].address {
                Address::Tcp(_, port) => port,
                Address::Test | Address::Workers(_) => 0,
            })
        };
        let tls = |asked| Asked { tls: true, ..asked };
        let ws = |asked| Asked { ws: true, ..asked };
        let id = |id, asked| Asked { id: Some(id), ..asked };
        assert_eq!(port(asked("x", "/")), Some(1));
        assert_eq!(port(asked("x", "/ab")), Some(2), "a prefix of bytes, not of segments");
        assert_eq!(port(asked("x", "/a/b/c")), Some(3));
        assert_eq!(port(tls(asked("x", "/a/b/c"))), Some(4));
        assert_eq!(port(tls(asked("x", "/a"))), Some(2), "a longer path comes before ssl");
        assert_eq!(port(tls(asked("x", "/"))), Some(5));
        assert_eq!(port(asked("h", "/x")), Some(6));
        assert_eq!(port(asked("h", "/y")), None, "a known host never falls back to *");
        assert_eq!(port(asked("::1", "/")), Some(7));
        assert_eq!(port(asked("[::1]", "/")), Some(7));
        assert_eq!(port(asked("p", "/long")), Some(9), "proto comes before a longer path");
        assert_eq!(port(ws(asked("p", "/long"))), Some(10));
        assert_eq!(port(ws(asked("p", "/"))), Some(8));
        assert_eq!(port(id("only", asked("p", "/"))), Some(11));
        assert_eq!(port(id("nope", asked("p", "/"))), None);
        assert_eq!(port(id("", asked("p", "/"))), Some(9));
        assert_eq!(port(asked("", "/")), Some(1));
    }
    assert!(table("").find(asked("x", "/")).is_none());
}

#[test]
fn an_id_looks_at_the_path_alone() {
    let table = table(
        "h,ssl=yes,proto=http,path_beg=/x,id=a test\n* test\n*,path_beg=/1,id=b test\n*,path_beg=/2,id=b test",
    );
    let line = |asked: Asked<'_>, id| table.find(Asked { id: Some(id), ..asked }).map(|route| route.line);
    assert_eq!(line(asked("other", "/xy"), "a"), Some(1));
    assert_eq!(line(Asked { ws: true, ..asked("other", "/xy") }, "a"), Some(1));
    assert_eq!(line(asked("other", "/y"), "a"), None);
    assert_eq!(line(asked("other", "/1"), "b"), None, "a shared id chooses nothing");
    assert_eq!(
        line(Asked { ws: true, ..asked("other", "/1") }, "b"),
        Some(3),
        "but WebSockets match as usual"
    );
}

/// Security row 26: what chooses the route is what the origin gets, byte for byte.
#[test]
fn a_path_is_never_normalised() {
    let table = table("* a:1\n*,path_beg=/admin a:2");
    for path in [
        "/%61dmin",
        "/./admin",
        "//admin",
        "/x/../admin",
        "/%2e%2e/admin",
        "/;/admin",
        "/Admin",
        "/%2Fadmin",
        "\\admin",
        "/%2561dmin",
        "/%00admin",
        "/ADMIN",
        "/x/%2e%2e%2fadmin",
        "/a%64min",
        "/.%2fadmin",
        "/%c0%af/admin",
    ] {
        let route =
            table.find(Asked { host: "h", path, tls: false, ws: false, id: None }).expect("* matches all");
        assert_eq!(route.line, 1, "{path}");
        if path.starts_with('/') {
            assert_eq!(route.outgoing(&route.targets[0], path, "h").path_and_query, path);
        }
    }
    for path in
        ["/admin/../x", "/admin%2f..", "/admin;x", "/admin\\x", "/administer", "/admin//", "/admin%00"]
    {
        let route =
            table.find(Asked { host: "h", path, tls: false, ws: false, id: None }).expect("* matches all");
        assert_eq!(route.line, 2, "{path}");
        assert_eq!(route.outgoing(&route.targets[0], path, "h").path_and_query, path);
    }
}

#[test]
fn uris() {
    let table = [
        ("* a:1", "/x?y=/z?", "/x?y=/z?", "client:81"),
        ("* a:1", "?q", "/?q", "client:81"),
        ("*,path_rem=4 a:1", "*", "*", "client:81"),
        ("*,as_host=h a:1", "/", "/", "h"),
        ("*,as_host=h:2 a:1", "/", "/", "h:2"),
        ("*,as_host=h:2 a:1,host=[::1]:3", "/", "/", "[::1]:3"),
        ("*,as_host=h:2 a:1,host=t", "/", "/", "t"),
        ("*,path_rem=4 a:1", "/api/x?y", "/x?y", "client:81"),
        ("*,path_rem=5 a:1", "/api/x?y", "/x?y", "client:81"),
        ("*,path_rem=6 a:1", "/api/x?y", "/?y", "client:81"),
        ("*,path_rem=99 a:1", "/api/x?y", "/?y", "client:81"),
        ("*,path_rem=3 a:1", "/é/x", "/x", "client:81"),
        ("*,path_rem=2 a:1", "/é/x", "/x", "client:81"),
        ("*,path_rem=2 a:1", "/%41", "/41", "client:81"),
        ("*,path_beg=/api/,replace_beg=/v2/ a:1", "/api/x?y=1", "/v2/x?y=1", "client:81"),
        ("*,path_beg=/api/,replace_beg= a:1", "/api/x", "/x", "client:81"),
        ("*,path_beg=/api/,replace_beg=v2/ a:1", "/api/x", "/v2/x", "client:81"),
        ("*,path_beg=/api,path_rem=1,replace_beg=/v2 a:1", "/api", "/v2", "client:81"),
        ("*,replace_beg=/v2 a:1", "/api?/v3", "/v2/api?/v3", "client:81"),
        ("*,path_beg=/t test", "/t/stream?channel=a", "/stream?channel=a", "client:81"),
        ("*,path_beg=/t/ test", "/t/stream", "/stream", "client:81"),
        ("*,path_beg=/t test", "/t", "/", "client:81"),
        ("*,path_beg=/t,path_rem=2 test", "/t/stream", "/stream", "client:81"),
    ];
    for (line, path_and_query, wanted, host) in table {
        let route = route(line);
        let outgoing = route.outgoing(&route.targets[0], path_and_query, "client:81");
        assert_eq!((&*outgoing.path_and_query, outgoing.host), (wanted, host), "{line} {path_and_query}");
    }
    let plain = route("* a:1");
    assert!(matches!(plain.outgoing(&plain.targets[0], "/x?y", "h").path_and_query, Cow::Borrowed(_)));
}

/// Writes a value so that nothing of it is grammar.
fn quote(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', r"\\").replace('"', "\\\""))
}

proptest! {
    #[test]
    fn parse_never_panics(text in "([*a-z0-9:/., =\"\\\\#_\n\t]|proto|ssl|path_beg|test|header|\\PC){0,60}") {
        if let Ok(table) = Table::parse(&text) {
            for route in table.routes() {
                prop_assert!(!route.targets.is_empty());
            }
        }
    }

    #[test]
    fn quoted_values_come_back(
        value in "[^\\p{Cc}=]{0,20}",
        parameters in proptest::collection::vec(("[^\\p{Cc}=]{1,8}", "[^\\p{Cc}]{0,20}"), 0..4),
        again in 1usize..4,
    ) {
        let mut text = quote(&value);
        for (name, value) in &parameters {
            text += &format!(",{}", quote(&format!("{name}={value}")));
        }
        let wanted: Vec<Section> =
            (0..again).map(|_| Section { value: value.clone(), parameters: parameters.clone() }).collect();
        prop_assert_eq!(line::sections(&vec![text; again].join(" ")), Ok(wanted));
    }

    #[test]
    fn outgoing_paths_are_absolute_and_keep_the_query(
        path_beg in "(/[a-z%/.]{0,4})?", path_rem in 0usize..12, replace in proptest::option::of("[/a-z]{0,4}"),
        rest in "[a-z/%.é]{0,8}", query in "(\\?[a-z/?]{0,6})?", test in any::<bool>(),
    ) {
        let route = Route { path_beg: path_beg.clone(), path_rem, replace_beg: replace, ..Route::default() };
        let address = if test { Address::Test } else { Address::Tcp("a".into(), 1) };
        let target = Target { address, ..Target::default() };
        let asked = if path_beg.is_empty() { format!("/{rest}{query}") } else { format!("{path_beg}{rest}{query}") };
        let outgoing = route.outgoing(&target, &asked, "h");
        prop_assert!(outgoing.path_and_query.starts_with('/'));
        prop_assert!(outgoing.path_and_query.ends_with(&query));
        prop_assert_eq!(outgoing.path_and_query.contains('?'), !query.is_empty());
    }

    /// The index agrees with the rule of the spec, taken literally over all lines.
    #[test]
    fn find_is_the_best_of_all_that_match(
        conditions in proptest::collection::vec(
            (0usize..3, 0usize..4, proptest::option::of(any::<bool>()), any::<bool>()), 1..12),
        host in 0usize..3, path in 0usize..4, tls in any::<bool>(), ws in any::<bool>(),
    ) {
        const HOSTS: [&str; 3] = ["*", "a", "b"];
        const PATHS: [&str; 4] = ["/", "/x", "/x/y", "/z"];
        let mut lines: Vec<String> = Vec::new();
        for (host, path, tls, http) in conditions {
            let tls = tls.map_or("", |tls| if tls { ",ssl=yes" } else { ",ssl=no" });
            let http = if http { ",proto=http" } else { "" };
            let line = format!("{},path_beg={}{tls}{http} test", HOSTS[host], PATHS[path]);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        let table = table(&lines.join("\n"));
        let host = ["other", "a", "b"][host];
        let asked = Asked { host, path: PATHS[path], tls, ws, id: None };
        let own = table.routes().iter().any(|route| route.host == Host::Exact(host.into()));
        let wanted = if own { Host::Exact(host.into()) } else { Host::Any };
        let mut best: Option<&Route> = None;
        for route in table.routes().iter().filter(|route| route.host == wanted && route.matches(asked)) {
            let better = best.is_none_or(|best| {
                if route.ws.is_some() != best.ws.is_some() { return route.ws.is_some() }
                if route.path_beg.len() != best.path_beg.len() { return route.path_beg.len() > best.path_beg.len() }
                route.tls.is_some() && best.tls.is_none()
            });
            if better { best = Some(route) }
        }
        prop_assert_eq!(table.find(asked).map(|route| route.line), best.map(|route| route.line));
    }
}

#[test]
fn a_lenient_table_has_what_can_be_used() {
    let text =
        "* test\nb.example\nodd.example,frobnicate,ssl test,over_http\n*,proto=x test\n* test,sub=x\n\"\n";
    let (table, errors) = Table::parse_leniently(text);
    let lines = |errors: &[LineError]| errors.iter().map(|error| error.line).collect::<Vec<_>>();
    assert_eq!(lines(&errors), [2, 3, 3, 3, 4, 5, 6]);
    assert_eq!(lines(&Table::parse(text).unwrap_err()), lines(&errors));
    assert_eq!(table.routes().iter().map(|route| route.line).collect::<Vec<_>>(), [1]);
    let (table, errors) = Table::parse_leniently("odd.example,frobnicate test,over_http\n* test\n");
    assert_eq!((lines(&errors), table.routes().len()), (vec![1, 1], 2));
    let found = |table: &Table, host| {
        table.find(Asked { host, path: "/", tls: false, ws: false, id: None }).is_some()
    };
    assert!(found(&table, "odd.example") && found(&table, "a.example"));
    let without = table.without(&[2]);
    assert!(found(&without, "odd.example") && !found(&without, "a.example"));
}

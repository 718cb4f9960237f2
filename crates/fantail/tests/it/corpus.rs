//! Requests with a known verdict: one request a vector, hand-written classes multiplied by spellings and
//! positions. Only bytes, and std: the parser's own test and the test over real sockets both read it.

#[path = "corpus/words.rs"]
#[rustfmt::skip]
mod words;

/// What must become of a vector.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expect {
    /// One whole, valid request.
    Accept,
    /// Refused, by the head or by the body; a request that must never be seen follows in the same bytes.
    Refuse,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Vector {
    /// `class/variant`, unique.
    pub name: String,
    pub bytes: Vec<u8>,
    pub expect: Expect,
}

/// What follows each refused request, and stands in the bodies of accepted ones.
pub const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";

/// All vectors, always the same ones.
pub fn vectors() -> Vec<Vector> {
    let mut all = Corpus::default();
    all.line_ends();
    all.bytes_out_of_place();
    all.request_lines();
    all.hosts();
    all.fields();
    all.lengths();
    all.codings();
    all.two_framings();
    all.hidden_framings();
    all.chunk_sizes();
    all.chunk_extensions();
    all.chunk_ends();
    all.trailers();
    all.expectations();
    all.sizes();
    all.accepted();
    all.accepted_bodies();
    all.0
}

#[derive(Debug, Default)]
struct Corpus(Vec<Vector>);

impl Corpus {
    fn refuse(&mut self, name: impl Into<String>, bytes: impl AsRef<[u8]>) {
        let bytes = [bytes.as_ref(), SMUGGLED].concat();
        self.0.push(Vector { name: name.into(), bytes, expect: Expect::Refuse });
    }

    fn accept(&mut self, name: impl Into<String>, bytes: impl AsRef<[u8]>) {
        self.0.push(Vector { name: name.into(), bytes: bytes.as_ref().to_vec(), expect: Expect::Accept });
    }

    /// Each CRLF of each kind of request in other spellings.
    fn line_ends(&mut self) {
        let bases = [
            ("get", get("X: y\r\n")),
            ("length", sized("X: y\r\n")),
            ("chunked", chunked("5;a=b\r\nhello\r\n0\r\nT: u\r\n\r\n")),
        ];
        for (kind, base) in bases {
            let empty = find(&base, "\r\n\r\n") + 2;
            for at in all(&base, "\r\n") {
                // A length decides where a body ends, and not what is in it.
                if kind == "length" && at > empty {
                    continue;
                }
                for (name, end) in words::LINE_ENDS {
                    let ends_message = at == empty && kind == "get" || at + 2 == base.len();
                    // After the end these are the beginning of the next request, or of a body.
                    if (ends_message || at == empty) && name.starts_with("fold") {
                        continue;
                    }
                    // Two fields in one line are one field.
                    if name == "none" && kind == "length" {
                        continue;
                    }
                    self.refuse(format!("line-end/{kind}-{at}-{name}"), splice(&base, at, 2, end));
                }
            }
        }
        self.refuse("line-end/two-empty-before", format!("\r\n\r\n{}", get("")));
        self.refuse("line-end/lf-before", format!("\n{}", get("")));
        self.refuse("line-end/cr-before", format!("\r{}", get("")));
        self.refuse("line-end/space-before", format!(" {}", get("")));
        self.refuse("line-end/space-line-before", format!(" \r\n{}", get("")));
        self.refuse("line-end/nul-before", format!("\0{}", get("")));
        self.refuse("line-end/bom-before", format!("\u{feff}{}", get("")));
    }

    /// Each byte that does not belong into a place.
    fn bytes_out_of_place(&mut self) {
        let controls: Vec<u8> = (0..0x20).chain([0x7f]).filter(|b| !matches!(b, b'\r' | b'\n')).collect();
        let high = [0x80, 0x85, 0xa0, 0xc0, 0xe9, 0xff];
        let delimiters = b"\"(),/;<=>?@[\\]{}";
        let places: [(&str, [&str; 2], Vec<u8>); 7] = [
            (
                "method",
                ["G", "T /v HTTP/1.1\r\nHost: a\r\n\r\n"],
                [&controls, &high[..], delimiters, b":"].concat(),
            ),
            (
                "target",
                ["GET /v", " HTTP/1.1\r\nHost: a\r\n\r\n"],
                [&controls, &high[..], b" \"#<>\\^`%"].concat(),
            ),
            ("version", ["GET /v HTTP/1.", "1\r\nHost: a\r\n\r\n"], [&controls, &high[..], b" 0.,"].concat()),
            (
                "name",
                ["GET /v HTTP/1.1\r\nHost: a\r\nX", "Y: z\r\n\r\n"],
                [&controls, &high[..], delimiters, b" "].concat(),
            ),
            (
                "name-start",
                ["GET /v HTTP/1.1\r\nHost: a\r\n", "XY: z\r\n\r\n"],
                [&controls, &high[..], delimiters, b" :"].concat(),
            ),
            (
                "name-end",
                ["GET /v HTTP/1.1\r\nHost: a\r\nXY", ": z\r\n\r\n"],
                [&controls, &high[..], delimiters, b" "].concat(),
            ),
            (
                "value",
                ["GET /v HTTP/1.1\r\nHost: a\r\nX: y", "z\r\n\r\n"],
                controls.iter().copied().filter(|b| *b != b'\t').collect(),
            ),
        ];
        for (place, [before, after], bytes) in places {
            for byte in bytes {
                let request = [before.as_bytes(), &[byte], after.as_bytes()].concat();
                self.refuse(format!("byte/{place}-{byte:02x}"), request);
            }
        }
        for byte in controls
            .iter()
            .copied()
            .filter(|b| *b != b'\t')
            .chain(high)
            .chain(*b" \"#%&'()*+,/;<=>?@[\\]^`{|}!$")
        {
            let request = [b"GET /v HTTP/1.1\r\nHost: a", &[byte][..], b"b\r\n\r\n"].concat();
            self.refuse(format!("byte/host-{byte:02x}"), request);
        }
    }

    fn request_lines(&mut self) {
        for (name, line) in words::REQUEST_LINES {
            self.refuse(format!("line/{name}"), format!("{line}\r\nHost: a.example\r\n\r\n"));
        }
        for version in words::VERSIONS {
            self.refuse(format!("version/{version}"), format!("GET /v {version}\r\nHost: a\r\n\r\n"));
        }
        self.refuse("version/h2-preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        self.refuse("version/tls", "\u{16}\u{3}\u{1}\0\u{5}hello");
    }

    fn hosts(&mut self) {
        for host in words::HOSTS {
            self.refuse(format!("host/{host}"), format!("GET /v HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        }
        for (name, fields) in words::HOST_FIELDS {
            self.refuse(format!("hosts/{name}"), format!("GET /v HTTP/1.1\r\n{fields}\r\n"));
        }
        self.refuse("hosts/http-1.0-twice", "GET /v HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n");
        self.refuse("hosts/http-1.0-bad", "GET /v HTTP/1.0\r\nHost: a/b\r\n\r\n");
    }

    fn fields(&mut self) {
        for (name, line) in words::FIELDS {
            self.refuse(format!("field/{name}"), get(&format!("{line}\r\n")));
            self.refuse(
                format!("field/{name}-first"),
                format!("GET /v HTTP/1.1\r\n{line}\r\nHost: a\r\n\r\n"),
            );
        }
    }

    fn lengths(&mut self) {
        for name in ["Content-Length", "content-length", "CONTENT-LENGTH", "cONTENT-lENGTH"] {
            for value in words::LENGTHS {
                let request = format!("POST /v HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\n\r\nhello");
                self.refuse(format!("length/{name}-{value}"), request);
            }
        }
        for (first, second) in [
            ("5", "5"),
            ("5", "6"),
            ("6", "5"),
            ("0", "5"),
            ("5", "0"),
            ("5", "05"),
            ("5", ""),
            ("", "5"),
            ("5", "+5"),
        ] {
            for name in ["Content-Length", "content-length"] {
                let fields = format!("Content-Length: {first}\r\nX: y\r\n{name}: {second}\r\n");
                let request = format!("POST /v HTTP/1.1\r\nHost: a\r\n{fields}\r\nhello");
                self.refuse(format!("lengths/{name}-{first}-{second}"), request);
            }
        }
        self.refuse(
            "length/over-the-limit",
            "POST /v HTTP/1.1\r\nHost: a\r\nContent-Length: 1073741825\r\n\r\n",
        );
        self.refuse("length/http-1.0-signed", "POST /v HTTP/1.0\r\nContent-Length: +5\r\n\r\nhello");
    }

    fn codings(&mut self) {
        for name in ["Transfer-Encoding", "transfer-encoding", "TRANSFER-ENCODING"] {
            for value in words::CODINGS {
                let request =
                    format!("POST /v HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
                self.refuse(format!("coding/{name}-{value}"), request);
            }
        }
        for (name, second) in [
            ("same", "Transfer-Encoding: chunked"),
            ("case", "transfer-encoding: Chunked"),
            ("identity", "Transfer-Encoding: identity"),
            ("gzip", "Transfer-Encoding: gzip"),
            ("empty", "Transfer-Encoding:"),
            ("x", "Transfer-encoding: x"),
        ] {
            for (order, fields) in [
                ("after", format!("Transfer-Encoding: chunked\r\n{second}\r\n")),
                ("before", format!("{second}\r\nTransfer-Encoding: chunked\r\n")),
            ] {
                let request = format!("POST /v HTTP/1.1\r\nHost: a\r\n{fields}\r\n0\r\n\r\n");
                self.refuse(format!("codings/{name}-{order}"), request);
            }
        }
        self.refuse(
            "coding/http-1.0",
            "POST /v HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        );
        self.refuse("coding/http-1.0-identity", "POST /v HTTP/1.0\r\nTransfer-Encoding: identity\r\n\r\n");
    }

    /// Both a length and a coding, in each order and spelling.
    fn two_framings(&mut self) {
        for length in ["0", "3", "5", "15", "100"] {
            for coding in ["chunked", "CHUNKED", "\tchunked", "chunked "] {
                for method in ["POST", "GET"] {
                    let (cl, te) =
                        (format!("Content-Length: {length}\r\n"), format!("Transfer-Encoding: {coding}\r\n"));
                    for (order, fields) in [
                        ("cl-te", format!("{cl}{te}")),
                        ("te-cl", format!("{te}{cl}")),
                        ("apart", format!("{te}X: y\r\n{cl}")),
                    ] {
                        let request = format!("{method} /v HTTP/1.1\r\nHost: a\r\n{fields}\r\n0\r\n\r\n");
                        self.refuse(format!("two-framings/{method}-{order}-{length}-{coding}"), request);
                    }
                }
            }
        }
    }

    /// A framing field in a spelling that some reader might take for it.
    fn hidden_framings(&mut self) {
        for (name, before) in words::HIDES {
            for (field, value) in [("Transfer-Encoding", "chunked"), ("Content-Length", "5")] {
                for (real, body) in [
                    ("Content-Length: 5\r\n", "hello"),
                    ("Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
                    ("", ""),
                ] {
                    let hidden = format!("{}{value}\r\n", before.replace("{}", field));
                    for (order, fields) in
                        [("first", format!("{hidden}{real}")), ("last", format!("{real}{hidden}"))]
                    {
                        let real = real.split(':').next().unwrap_or("");
                        self.refuse(
                            format!("hidden/{name}-{field}-{real}-{order}"),
                            format!("POST /v HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}"),
                        );
                    }
                }
            }
        }
    }

    fn chunk_sizes(&mut self) {
        for size in words::CHUNK_SIZES {
            self.refuse(format!("chunk-size/{size}"), chunked(&format!("{size}\r\nhello\r\n0\r\n\r\n")));
            self.refuse(
                format!("chunk-size/second-{size}"),
                chunked(&format!("1\r\nx\r\n{size}\r\nhello\r\n0\r\n\r\n")),
            );
        }
    }

    fn chunk_extensions(&mut self) {
        for extension in words::CHUNK_EXTENSIONS {
            self.refuse(
                format!("chunk-extension/{extension}"),
                chunked(&format!("5{extension}\r\nhello\r\n0\r\n\r\n")),
            );
            self.refuse(
                format!("chunk-extension/last-{extension}"),
                chunked(&format!("0{extension}\r\n\r\n")),
            );
        }
        self.refuse(
            "chunk-extension/long",
            chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(9000))),
        );
        self.refuse("chunk-extension/many", chunked(&"1;a=bcdefghi\r\nx\r\n".repeat(1000)));
    }

    fn chunk_ends(&mut self) {
        for end in words::CHUNK_ENDS {
            self.refuse(format!("chunk-end/{end}"), chunked(&format!("5\r\nhello{end}0\r\n\r\n")));
        }
        for (name, body) in [
            ("too-short", "6\r\nhello\r\n0\r\n\r\n"),
            ("too-long", "4\r\nhello\r\n0\r\n\r\n"),
            ("size-of-next", "5\r\nhello5\r\nworld\r\n0\r\n\r\n"),
            ("none", "hello"),
            ("form", "a=b&c=d"),
        ] {
            self.refuse(format!("chunk-end/{name}"), chunked(body));
        }
    }

    fn trailers(&mut self) {
        for line in words::TRAILERS {
            self.refuse(format!("trailer/{line}"), chunked(&format!("5\r\nhello\r\n0\r\n{line}\r\n\r\n")));
            self.refuse(format!("trailer/second-{line}"), chunked(&format!("0\r\nA: b\r\n{line}\r\n\r\n")));
        }
        self.refuse("trailer/many", chunked(&format!("0\r\n{}\r\n", "T: u\r\n".repeat(65))));
        self.refuse("trailer/long", chunked(&format!("0\r\nT: {}\r\n\r\n", "u".repeat(9000))));
    }

    fn expectations(&mut self) {
        for value in [
            "",
            "100",
            "continue",
            "100-continue, x",
            "100-continue;x",
            "100-continue 100-continue",
            "200-ok",
            "\"100-continue\"",
            "x=y",
        ] {
            self.refuse(format!("expect/{value}"), sized(&format!("Expect: {value}\r\n")));
        }
        self.refuse("expect/two", sized("Expect: 100-continue\r\nExpect: x\r\n"));
    }

    fn sizes(&mut self) {
        for over in [1, 2, 100, 10_000] {
            let target = "a".repeat(8191 + over);
            self.refuse(format!("size/target-{over}"), format!("GET /{target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let fields = "X: y\r\n".repeat(99 + over.min(2000));
            self.refuse(format!("size/fields-{over}"), get(&fields));
            let value = "y".repeat(32_768 + over);
            self.refuse(format!("size/value-{over}"), get(&format!("X: {value}\r\n")));
            self.refuse(format!("size/name-{over}"), get(&format!("{value}: x\r\n")));
        }
    }

    fn accepted(&mut self) {
        for (name, line) in words::GOOD_REQUEST_LINES {
            self.accept(format!("accept/{name}"), format!("{line}\r\nHost: a.example\r\n\r\n"));
        }
        for host in words::GOOD_HOSTS {
            for spelling in ["Host: ", "host:", "HOST:\t", "hOsT:  "] {
                self.accept(
                    format!("accept/{spelling}{host}"),
                    format!("GET /v HTTP/1.1\r\n{spelling}{host} \r\n\r\n"),
                );
            }
        }
        for (name, field) in [
            ("empty-value", "X:"),
            ("space-value", "X: \t "),
            ("tab-inside", "X: a\tb"),
            ("high", "X: \u{e9}\u{fffd}"),
            ("colons", "X: :a:b:"),
            ("token-name", "!#$%&'*+-.^_`|~09azAZ: x"),
            ("underscore-framing", "Content_Length: 100"),
            ("dot-framing", "Transfer.Encoding: chunked"),
            ("te", "TE: trailers"),
            ("connection-close", "Connection: close"),
            ("connection-list", "Connection: ,keep-alive, ,x,"),
            ("zero-length", "Content-Length: 0"),
            ("zeros", "Content-Length: 000"),
            ("expect-without-body", "Expect: 100-continue"),
            ("repeated", "X: a\r\nX: b\r\nx: c"),
            ("last-of-99", "X: y\r\n".repeat(98).trim_end()),
        ] {
            self.accept(format!("accept/{name}"), get(&format!("{field}\r\n")));
        }
    }

    /// Bodies that hold a request.
    fn accepted_bodies(&mut self) {
        let length = SMUGGLED.len();
        let body = String::from_utf8_lossy(SMUGGLED);
        for spelling in ["Content-Length: ", "content-length:", "CONTENT-LENGTH: \t", "Content-Length: 00"] {
            for method in ["POST", "GET", "PUT", "OPTIONS"] {
                let request = format!("{method} /v HTTP/1.1\r\nHost: a\r\n{spelling}{length} \r\n\r\n{body}");
                self.accept(format!("accept/{method}-{spelling}"), request);
            }
        }
        for spelling in
            ["Transfer-Encoding: chunked", "transfer-encoding:CHUNKED", "TRANSFER-ENCODING:\tChunked "]
        {
            for (name, size) in [
                ("", format!("{length:x}")),
                ("upper", format!("{length:X}")),
                ("zeros", format!("000{length:x}")),
                ("extension", format!("{length:x};a=b;c=\"d;\\\"\";e")),
            ] {
                for (trailers, last) in [("", "0\r\n\r\n"), ("trailers", "000;x\r\nT: u\r\nV:\r\n\r\n")] {
                    let request = format!(
                        "POST /v HTTP/1.1\r\nHost: a\r\n{spelling}\r\n\r\n{size}\r\n{body}\r\n{last}"
                    );
                    self.accept(format!("accept/{spelling}-{name}-{trailers}"), request);
                }
            }
        }
        self.accept("accept/empty-chunked", chunked("0\r\n\r\n"));
        self.accept("accept/byte-chunks", chunked(&("1\r\nx\r\n".repeat(100) + "0\r\n\r\n")));
        self.accept("accept/http-1.0", "GET /v HTTP/1.0\r\n\r\n");
        self.accept("accept/http-1.0-host", "GET /v HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
        self.accept(
            "accept/http-1.0-length",
            "POST /v HTTP/1.0\r\nContent-Length: 5\r\nExpect: x\r\n\r\nhello",
        );
        self.accept(
            "accept/target-at-limit",
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(8191)),
        );
    }
}

fn get(fields: &str) -> String {
    format!("GET /v HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n")
}

fn sized(fields: &str) -> String {
    format!("POST /v HTTP/1.1\r\nHost: a.example\r\n{fields}Content-Length: 5\r\n\r\nhello")
}

fn chunked(body: &str) -> String {
    format!("POST /v HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

fn splice(text: &str, at: usize, len: usize, with: &str) -> String {
    format!("{}{with}{}", &text[..at], &text[at + len..])
}

fn all(text: &str, part: &str) -> Vec<usize> {
    text.match_indices(part).map(|(at, _)| at).collect()
}

fn find(text: &str, part: &str) -> usize {
    text.find(part).unwrap_or(text.len())
}

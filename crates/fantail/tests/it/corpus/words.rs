//! The spellings that the corpus is made of: a list for each place in a request. What a list is not is
//! what makes its vectors refused.

/// Instead of a CRLF.
pub(super) const LINE_ENDS: [(&str, &str); 11] = [
    ("lf", "\n"),
    ("cr", "\r"),
    ("lfcr", "\n\r"),
    ("crcrlf", "\r\r\n"),
    ("lflf", "\n\n"),
    ("crcr", "\r\r"),
    ("vt-crlf", "\u{b}\r\n"),
    ("nul-crlf", "\0\r\n"),
    ("none", ""),
    ("fold-sp", "\r\n \r\n"),
    ("fold-tab", "\r\n\tx\r\n"),
];

/// No request lines.
pub(super) const REQUEST_LINES: [(&str, &str); 47] = [
    ("http-0.9", "GET /v"),
    ("http-0.9-space", "GET /v "),
    ("no-target", "GET HTTP/1.1"),
    ("no-target-2", "GET  HTTP/1.1"),
    ("only-method", "GET"),
    ("two-spaces", "GET  /v HTTP/1.1"),
    ("two-spaces-2", "GET /v  HTTP/1.1"),
    ("tab", "GET\t/v HTTP/1.1"),
    ("tab-2", "GET /v\tHTTP/1.1"),
    ("space-after", "GET /v HTTP/1.1 "),
    ("tab-after", "GET /v HTTP/1.1\t"),
    ("word-after", "GET /v HTTP/1.1 x"),
    ("space-in-target", "GET /v /w HTTP/1.1"),
    ("two-versions", "GET /v HTTP/1.1 HTTP/1.1"),
    ("no-method", " /v HTTP/1.1"),
    ("no-method-2", "/v HTTP/1.1"),
    ("long-method", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA /v HTTP/1.1"),
    ("connect", "CONNECT a.example:443 HTTP/1.1"),
    ("connect-path", "CONNECT /v HTTP/1.1"),
    ("authority-form", "GET a.example:80 HTTP/1.1"),
    ("no-slash", "GET v HTTP/1.1"),
    ("query-only", "GET ?v HTTP/1.1"),
    ("star", "GET * HTTP/1.1"),
    ("star-post", "POST * HTTP/1.1"),
    ("star-path", "OPTIONS */v HTTP/1.1"),
    ("https", "GET https://a.example/v HTTP/1.1"),
    ("ftp", "GET ftp://a.example/v HTTP/1.1"),
    ("file", "GET file:///etc/passwd HTTP/1.1"),
    ("no-authority", "GET http:///v HTTP/1.1"),
    ("one-slash", "GET http:/a.example/v HTTP/1.1"),
    ("no-scheme", "GET ://a.example/v HTTP/1.1"),
    ("user", "GET http://u@a.example/v HTTP/1.1"),
    ("user-password", "GET http://u:p@a.example/v HTTP/1.1"),
    ("other-authority", "GET http://b.example/v HTTP/1.1"),
    ("other-port", "GET http://a.example:81/v HTTP/1.1"),
    ("back-slash-authority", "GET http://a.example\\@b/v HTTP/1.1"),
    ("empty-port", "GET http://a.example:/v HTTP/1.1"),
    ("fragment", "GET /v#f HTTP/1.1"),
    ("nul-encoded", "GET /v%00 HTTP/1.1"),
    ("nul-encoded-query", "GET /v?a=%00 HTTP/1.1"),
    ("half-encoded", "GET /v%4 HTTP/1.1"),
    ("half-encoded-2", "GET /v% HTTP/1.1"),
    ("bad-encoded", "GET /v%zz HTTP/1.1"),
    ("bad-encoded-2", "GET /v%u0041 HTTP/1.1"),
    ("bad-encoded-3", "GET /v%-1 HTTP/1.1"),
    ("crlf-word", "GET /v\r HTTP/1.1"),
    ("utf-8", "GET /v\u{e9} HTTP/1.1"),
];

/// No versions, or none that is served.
pub(super) const VERSIONS: [&str; 38] = [
    "HTTP/2.0", "HTTP/2", "HTTP/3", "HTTP/1.2", "HTTP/1.9", "HTTP/0.9", "HTTP/1", "HTTP/1.", "HTTP/.1",
    "HTTP/11", "HTTP/1.10", "HTTP/01.1", "HTTP/1.01", "HTTP/1.1.1", "HTTP/ 1.1", "HTTP /1.1", "HTTP/1 .1",
    "HTTP/1,1", "http/1.1", "Http/1.1", "HTTPS/1.1", "HTP/1.1", "HTTP1.1", "HTTP\\1.1", "HTTP//1.1",
    "HTTP/1.1a", "HTTP/-1.1", "HTTP/+1.1", "HTTP/1.x", "HTTP/x.1", "SIP/2.0", "RTSP/1.0", "ICAP/1.0",
    "HTTP/９.１", "", "/", "HTTP/", "1.1",
];

/// No values of `Host`.
pub(super) const HOSTS: [&str; 56] = [
    "", " ", ".", "..", ".a", "a..b", "a:", ":", ":80", "a:b", "a:65536", "a:99999", "a:000080", "a:-1",
    "a:+1", "a:8 0", "a:80:80", "a::80", "u@a", "u:p@a", "@a", "a@", "http://a", "a/v", "a/", "a?v", "a#f",
    "a b", "a\tb", "a,b", "a, a", "[", "[]", "[::1", "::1", "::1]", "[::1]x", "[::1]:", "[::1]:x", "[:::1]",
    "[::1%25eth0]", "[::1%eth0]", "[v1.a]", "[1.2.3.4]", "[a]", "[[::1]]", "a[", "a]", "a%2eb", "a%",
    "\u{e9}.example", "a\\b", "\"a\"", "<a>", "a;b", "a=b",
];

/// Not exactly one `Host`.
pub(super) const HOST_FIELDS: [(&str, &str); 14] = [
    ("none", ""),
    ("only-x-host", "X-Forwarded-Host: a\r\n"),
    ("twice", "Host: a\r\nHost: a\r\n"),
    ("twice-other", "Host: a\r\nHost: b\r\n"),
    ("twice-case", "Host: a\r\nhOST: a\r\n"),
    ("twice-apart", "Host: a\r\nX: y\r\nHost: a\r\n"),
    ("twice-empty", "Host: a\r\nHost:\r\n"),
    ("three", "Host: a\r\nHost: a\r\nHost: a\r\n"),
    ("space", "Host : a\r\n"),
    ("folded", "Host:\r\n a\r\n"),
    ("folded-2", "Host: a\r\n b\r\n"),
    ("indented", " Host: a\r\n"),
    ("indented-second", "Host: a\r\n Host: b\r\n"),
    ("underscore", "Host_: a\r\n"),
];

/// No field lines.
pub(super) const FIELDS: [(&str, &str); 23] = [
    ("no-colon", "X"),
    ("no-colon-2", "X y"),
    ("no-name", ": y"),
    ("space-only", " "),
    ("tab-only", "\t"),
    ("fold", "X: y\r\n z"),
    ("fold-tab", "X: y\r\n\tz"),
    ("fold-empty", "X: y\r\n "),
    ("fold-colon", "X: y\r\n Z: z"),
    ("nul", "X: \0"),
    ("bare-cr", "X: y\rZ: z"),
    ("cr-before-value", "X:\ry"),
    ("bare-lf", "X: y\nZ: z"),
    ("escape", "X: \u{1b}[31m"),
    ("del", "X: \u{7f}"),
    ("equals", "X=y: z"),
    ("quoted-name", "\"X\": z"),
    ("connection-words", "Connection: keep alive"),
    ("connection-quoted", "Connection: \"close\""),
    ("connection-equals", "Connection: close=1"),
    ("connection-semicolon", "Connection: close; x"),
    ("connection-high", "Connection: \u{e9}"),
    ("request-line-again", "GET /smuggled HTTP/1.1"),
];

/// No chunk sizes before `hello`.
pub(super) const CHUNK_SIZES: [&str; 40] = [
    "", " 5", "5 ", "\t5", "5\t", "+5", "-5", "0x5", "0X5", "x5", "5h", "5 5", "5,", "5.0", "5_", "_5",
    "5\0", "\x005", "5\u{b}", "\u{c}5", "\u{e9}", "5\u{a0}", "g", "0x", "00000000000000005",
    "0000000000000005", "fffffffffffffffff", "ffffffffffffffff", "7fffffffffffffff", "8000000000000000",
    "10000000000000005", "100000000", "\"5\"", "5\r", "5\n", "%35", "５", "five", "5:", "5=",
];

/// No chunk extensions.
pub(super) const CHUNK_EXTENSIONS: [&str; 42] = [
    ";", ";;", "; ", " ;a", ";a ", "; a", ";a;", ";a;;b", ";=", ";=b", ";a=", ";a= b", ";a =b", ";a=b c",
    ";a=b=c", ";a=\"", ";a=\"b", ";a=\"b\"c", ";a=\"b\" ", ";a=b\"c\"", ";a=\"\\", ";a\0", ";a=\0",
    ";a=\"\0\"", ";\u{e9}", ";a=\u{e9}", ";a\u{b}=b", ";a,b", ";a:b", ";a/b", ";(a)", ",a", "=a",
    ";a=\"\u{7f}\"", ";a\n", ";a\r", ";a=\"b\nc\"", ";a=\"b\r\nc\"", "\n;a", ";\n", ";\r", ";\r;",
];

/// No end of a chunk.
pub(super) const CHUNK_ENDS: [&str; 15] = [
    "", "\n", "\r", "\r\r\n", "\n\r\n", " \r\n", "x\r\n", "\0\r\n", "\r\0\n", "\r\n\r\n", "\r\n\n", "\r\n ",
    "xx", "\t", "0\r\n",
];

/// No trailer lines.
pub(super) const TRAILERS: [&str; 26] = [
    " ", "\t", "T", "T u", ": u", " T: u", "\tT: u", "T : u", "T\t: u", "T: \0", "T: u\rV: w", "T: u\nV: w",
    "T: u\n", "T: u\r", "\n", "\r", "T: u\r\n v", "T: u\r\n\tv", "T\u{e9}: u", "T(: u", "\"T\": u",
    "T: \u{7f}", "T: \u{b}", "GET /smuggled HTTP/1.1", "T/1: u", "T\0: u",
];

/// All good, with `Host: a.example`.
pub(super) const GOOD_REQUEST_LINES: [(&str, &str); 22] = [
    ("get", "GET /v HTTP/1.1"),
    ("post", "POST /v HTTP/1.1"),
    ("delete", "DELETE /v HTTP/1.1"),
    ("unknown-method", "M-SEARCH /v HTTP/1.1"),
    ("lower-case-method", "get /v HTTP/1.1"),
    ("token-method", "!#$%&'*+-.^_`|~ /v HTTP/1.1"),
    ("query", "GET /v?a=b&c=%20d+e HTTP/1.1"),
    ("empty-query", "GET /v? HTTP/1.1"),
    ("two-questions", "GET /v?a?b HTTP/1.1"),
    ("double-slash", "GET //v//w HTTP/1.1"),
    ("dots", "GET /v/../w/./ HTTP/1.1"),
    ("encoded-dots", "GET /v/%2e%2E/w HTTP/1.1"),
    ("encoded-slash", "GET /v%2Fw HTTP/1.1"),
    ("encoded-crlf", "GET /v%0d%0aX:%20y HTTP/1.1"),
    ("encoded-percent", "GET /v%2500 HTTP/1.1"),
    ("semicolon", "GET /v;a=b,c HTTP/1.1"),
    ("brackets", "GET /v?a[]={b|c} HTTP/1.1"),
    ("colon", "GET /v:w@x HTTP/1.1"),
    ("smuggled-in-query", "GET /v?/smuggled HTTP/1.1"),
    ("absolute", "GET http://a.example/v HTTP/1.1"),
    ("absolute-case", "GET HTTP://A.EXAMPLE/v HTTP/1.1"),
    ("empty-line-before", "\r\nGET /v HTTP/1.1"),
];

/// All good.
pub(super) const GOOD_HOSTS: [&str; 12] = [
    "a", "A.Example", "a.example.", "a-b_c.d", "a:0", "a:80", "a:65535", "127.0.0.1", "1.2.3.4:80", "[::1]",
    "[2001:DB8::1]:80", "xn--e1afmkfd",
];

/// No values of `Content-Length`.
pub(super) const LENGTHS: [&str; 42] = [
    "", " ", "+5", "-5", "-0", "+0", "5,5", "5, 5", "5,", ",5", "5 5", "5;5", "5.0", "5.", "5e0", "0x5",
    "0X5", "0b101", "0o5", "5L", "five", "NaN", "null", "\"5\"", "'5'", "(5)", "[5]", "5_0", "5=5", "--5",
    "+-5", "5-", "5+", "\u{b}5", "5\u{c}", "\u{660}5", "18446744073709551615", "18446744073709551616",
    "18446744073709551621", "9223372036854775808", "99999999999999999999999999999999",
    "000000000000000000000005",
];

/// No values of `Transfer-Encoding`.
pub(super) const CODINGS: [&str; 38] = [
    "", " ", "chunked,", ",chunked", "chunked, chunked", "chunked chunked", "chunked,chunked", "gzip",
    "gzip, chunked", "chunked, gzip", "deflate, chunked", "identity", "identity, chunked",
    "chunked, identity", "x", "x, chunked", "chunked, x", "chunked;q=1", "chunked;", "chunked; a=b",
    "\"chunked\"", "'chunked'", "[chunked]", "chunke", "chunkedd", "xchunked", "ch unked", "chunked\u{b}",
    "\u{b}chunked", "\u{c}chunked", "chunked\0", "\0chunked", "chunked\u{a0}", "chunked=1", "trailers",
    "chunked\tx", "cow", "c\u{ff48}unked",
];

/// `{}` is the name of a framing field, in a disguise.
pub(super) const HIDES: [(&str, &str); 14] = [
    ("space", "{} : "),
    ("tab", "{}\t: "),
    ("vt", "{}\u{b}: "),
    ("nul", "{}\0: "),
    ("high", "{}\u{a0}: "),
    ("indented", " {}: "),
    ("indented-tab", "\t{}: "),
    ("vt-before", "\u{b}{}: "),
    ("after-lf", "X: y\n{}: "),
    ("after-cr", "X: y\r{}: "),
    ("after-crcr", "X: y\r\r{}: "),
    ("folded-name", "{}\r\n : "),
    ("folded-value", "{}:\r\n "),
    ("quoted", "\"{}\": "),
];

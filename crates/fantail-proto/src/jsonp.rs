//! JSON-P (spec 8.4): a page's `<script>` as a request, and the answer as a call of the page's function. What is called
//! is a name and nothing else, and what it is called with cannot end the script that it stands in.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde::de::IgnoredAny;

use crate::{
    hop,
    json::Json,
    query::{Query, decode},
    reply,
    sockjs::{is_callback, quote},
};

/// What a route says of JSON-P, where it has `aco`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rules {
    /// `jsonp_mode=basic`: the function gets the body alone.
    pub basic: bool,
    /// `jsonp_cb`: the parameter with the function's name.
    pub callback: Option<String>,
    /// `jsonp_body`: the parameter with the body, which is JSON then.
    pub body: Option<String>,
    /// `jsonp_defcb`: the function where the request names none.
    pub default_callback: Option<String>,
    /// `jsonp_defmethod`: the method where the request names none.
    pub default_method: Option<Method>,
}

/// What a request means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Asked {
    pub call: Call,
    pub method: Method,
    /// Of the origin's request, over those that the client sent.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Option<Bytes>,
    /// Without what was for us.
    pub path_and_query: String,
}

/// How the answer is given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Call {
    callback: Box<str>,
    basic: bool,
}

/// Why a request cannot be understood.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Invalid {
    #[error("Invalid callback parameter.")]
    Callback,
    #[error("Invalid _method parameter.")]
    Method,
    #[error("Invalid _headers parameter.")]
    Headers,
    #[error("Invalid body parameter.")]
    NamedBody,
    #[error("Invalid _body parameter.")]
    Body,
}

/// Reads a GET; `None` if it is an ordinary one.
pub fn read(rules: &Rules, path_and_query: &str) -> Result<Option<Asked>, Invalid> {
    let Some((path, query)) = path_and_query.split_once('?') else { return Ok(None) };
    let query = Query::new(query);
    let callback_name = rules.callback.as_deref().unwrap_or("callback");
    let body_name = rules.body.as_deref().unwrap_or("_body");
    let callback = match (query.value(callback_name), &rules.default_callback) {
        (Some(named), _) => named.filter(|name| is_callback(name)).ok_or(Invalid::Callback)?,
        (None, Some(default)) if rules.body.is_some() && query.value(body_name).is_some() => default.clone(),
        (None, _) => return Ok(None),
    };
    let mut asked = Asked {
        call: Call { callback: callback.into(), basic: rules.basic },
        method: rules.default_method.clone().unwrap_or(if rules.basic { Method::POST } else { Method::GET }),
        headers: vec![(header::ACCEPT, HeaderValue::from_static("*/*"))],
        body: None,
        path_and_query: path.to_owned(),
    };
    for (pair, name, value) in query.pairs() {
        if name == callback_name {
            continue;
        }
        match name {
            "_method" => {
                let method = decode(value).and_then(|name| Method::from_bytes(name.as_bytes()).ok());
                asked.method = method.filter(|method| *method != Method::CONNECT).ok_or(Invalid::Method)?;
            }
            "_headers" => asked.headers.extend(headers(value).ok_or(Invalid::Headers)?),
            name if name == body_name => {
                let invalid = if rules.body.is_some() { Invalid::NamedBody } else { Invalid::Body };
                asked.body = Some(decode(value).ok_or(invalid)?.into());
                if rules.body.is_some() {
                    asked.headers.push((header::CONTENT_TYPE, HeaderValue::from_static("application/json")));
                }
            }
            _ => {
                asked.path_and_query.push(if asked.path_and_query.len() == path.len() { '?' } else { '&' });
                asked.path_and_query.push_str(pair);
            }
        }
    }
    Ok(Some(asked))
}

/// The headers of a JSON object. What is not a page's to set, says who asks, or frames the message is left out.
fn headers(value: &str) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let text = decode(value)?;
    let Json::Object(members) = Json::parse(text.as_bytes()).ok()? else { return None };
    let mut headers = Vec::new();
    for (name, value) in &members {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let value = HeaderValue::from_str(value.as_str()?).ok()?;
        if !is_forbidden(&name) {
            headers.push((name, value));
        }
    }
    Some(headers)
}

/// The forbidden request-headers of the Fetch standard, which no script can set either.
fn is_forbidden(name: &HeaderName) -> bool {
    const FORBIDDEN: [HeaderName; 11] = [
        header::ACCEPT,
        header::ACCEPT_ENCODING,
        header::CONTENT_LENGTH,
        header::COOKIE,
        header::DATE,
        header::DNT,
        header::EXPECT,
        header::HOST,
        header::ORIGIN,
        header::REFERER,
        header::VIA,
    ];
    let name_is = |begin: &str| name.as_str().starts_with(begin);
    FORBIDDEN.contains(name) || hop::is_framing(name) || name_is("sec-") || name_is("proxy-")
}

impl Call {
    /// The answer as the page gets it: its headers, and its body; `None` if it cannot be said in a script.
    pub fn answer(
        &self,
        code: u16,
        reason: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Option<(HeaderMap, Bytes)> {
        let body = str::from_utf8(body).ok()?;
        let mut script = format!("/**/{}(", self.callback);
        if self.basic {
            let body = body.strip_suffix('\n').unwrap_or(body);
            serde_json::from_str::<IgnoredAny>(body).ok()?;
            // In JSON they stand in strings alone; in a script of old they end a line.
            script.push_str(&body.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029"));
        } else {
            self.envelope(code, reason, headers, body, &mut script);
        }
        script.push_str(");\n");
        let mut outer = HeaderMap::new();
        outer.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/javascript"));
        outer.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        for value in headers.get_all(header::CACHE_CONTROL) {
            outer.append(header::CACHE_CONTROL, value.clone());
        }
        Some((outer, script.into()))
    }

    fn envelope(&self, code: u16, reason: &str, headers: &HeaderMap, body: &str, script: &mut String) {
        let standard = || StatusCode::from_u16(code).ok()?.canonical_reason();
        let reason = if reason.is_empty() { standard().unwrap_or_default() } else { reason };
        _ = write!(script, "{{\"code\": {code}, \"reason\": ");
        quote(reason, script);
        script.push_str(", \"headers\": {");
        for (place, name) in headers.keys().filter(|name| !hop::is_framing(name)).enumerate() {
            script.push_str(if place == 0 { "" } else { ", " });
            let mut title = Vec::new();
            reply::write_name(&mut title, name);
            quote(&String::from_utf8_lossy(&title), script);
            script.push_str(": ");
            let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
            quote(&values.collect::<Vec<_>>().join(", "), script);
        }
        script.push_str("}, \"body\": ");
        quote(body, script);
        script.push('}');
    }
}

/// What is said where an answer cannot be.
pub const UNSPEAKABLE: &str = "Upstream response could not be JSON-P encoded.\n";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(rules: &Rules, target: &str) -> Asked {
        read(rules, target).unwrap().unwrap()
    }

    #[test]
    fn requests() {
        let plain = Rules::default();
        for ordinary in ["/", "/?a=1", "/?_method=POST", "/?Callback=x"] {
            assert_eq!(read(&plain, ordinary), Ok(None), "{ordinary}");
        }
        let one = asked(
            &plain,
            "/a?x=1&callback=cb&y=%20&_method=PUT&_body=b%26+c&_headers=%7B%22X-A%22%3A%221%22%7D",
        );
        assert_eq!((one.method.as_str(), &*one.path_and_query), ("PUT", "/a?x=1&y=%20"));
        assert_eq!(one.body.as_deref(), Some(&b"b& c"[..]));
        assert_eq!(one.headers[1], (HeaderName::from_static("x-a"), HeaderValue::from_static("1")));
        assert_eq!(asked(&plain, "/a?callback=cb").path_and_query, "/a");
        assert_eq!(asked(&plain, "/a?callback=cb").method, Method::GET);
        let rules = Rules {
            basic: true,
            body: Some("q".into()),
            default_callback: Some("d".into()),
            ..Rules::default()
        };
        let other = asked(&rules, "/?q=%7B%7D");
        assert_eq!((other.method.as_str(), other.body.as_deref()), ("POST", Some(&b"{}"[..])));
        assert_eq!(other.headers[1].1, "application/json");
        assert_eq!(&*other.call.callback, "d");
    }

    #[test]
    fn what_is_wrong() {
        let table = [
            ("/?callback=", Invalid::Callback),
            ("/?callback=alert(1)//", Invalid::Callback),
            ("/?callback=%3Cscript", Invalid::Callback),
            ("/?callback=%ff", Invalid::Callback),
            ("/?callback=a&_method=a%20b", Invalid::Method),
            ("/?callback=a&_method=CONNECT", Invalid::Method),
            ("/?callback=a&_headers=1", Invalid::Headers),
            ("/?callback=a&_headers=%7B%22a%22%3A1%7D", Invalid::Headers),
            ("/?callback=a&_headers=%7B%22a%22%3A%22%5Cn%22%7D", Invalid::Headers),
            ("/?callback=a&_body=%ff", Invalid::Body),
        ];
        for (target, invalid) in table {
            assert_eq!(read(&Rules::default(), target), Err(invalid), "{target}");
        }
    }

    #[test]
    fn a_page_sets_only_what_a_script_may() {
        let names =
            ["Cookie", "Origin", "Host", "Content-Length", "Transfer-Encoding", "Sec-Fetch-Site", "X-B"];
        let object = names.map(|name| format!("%22{name}%22%3A%22x%22")).join(",");
        let asked = asked(&Rules::default(), &format!("/?callback=a&_headers=%7B{object}%7D"));
        let names: Vec<&str> = asked.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["accept", "x-b"]);
    }

    #[test]
    fn answers() {
        let call = |basic| Call { callback: "cb".into(), basic };
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("x-a", "1"), ("x-a", "2"), ("cache-control", "no-store"), ("content-length", "9")]
        {
            headers.append(name, HeaderValue::from_static(value));
        }
        let (outer, body) = call(false).answer(404, "", &headers, b"</script>\"\n").unwrap();
        assert_eq!(
            body,
            "/**/cb({\"code\": 404, \"reason\": \"Not Found\", \"headers\": {\"X-A\": \"1, 2\", \
             \"Cache-Control\": \"no-store\"}, \"body\": \"\\u003c/script>\\\"\\n\"});\n"
        );
        assert_eq!((outer["cache-control"].as_bytes(), outer.len()), (&b"no-store"[..], 3));
        assert_eq!(call(true).answer(200, "", &headers, b"{\"a\": 1}\n").unwrap().1, "/**/cb({\"a\": 1});\n");
        assert!(call(true).answer(200, "", &headers, b"alert(1)").is_none());
        assert!(call(false).answer(200, "", &headers, b"\xff").is_none());
    }

    proptest! {
        #[test]
        fn an_answer_is_what_it_was(body in any::<String>(), target in "/[?]callback=[a-z%&=_]{0,40}") {
            _ = read(&Rules::default(), &target);
            let call = Call { callback: "c".into(), basic: false };
            let (_, script) = call.answer(200, "OK", &HeaderMap::new(), body.as_bytes()).unwrap();
            let script = str::from_utf8(&script).unwrap();
            let object = script.strip_prefix("/**/c(").unwrap().strip_suffix(");\n").unwrap();
            let object: serde_json::Value = serde_json::from_str(object).unwrap();
            prop_assert_eq!(object["body"].as_str(), Some(&*body));
        }
    }
}

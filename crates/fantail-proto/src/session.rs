//! Sessions that an external server of state keeps (spec 10.1): what it is asked and what it answers, how a request's
//! session is found by rules, and what an answer of an origin says of one. Values only.

use http::{HeaderMap, HeaderName};

use crate::{
    json::Json,
    params,
    query::Query,
    tnetstring::{self, Value},
};

/// How the session of a request is found in its body.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rule {
    pub domain: String,
    pub path_prefix: String,
    /// A JSON Pointer (RFC 6901) to a string.
    pub sid_ptr: String,
    /// The field of a form whose value is the JSON; else the body is.
    pub json_param: Option<String>,
}

/// By channel, the last id that the session has.
pub type LastIds = Vec<(String, String)>;

/// What the server of state is asked.
#[derive(Clone, Copy, Debug)]
pub enum Request<'r> {
    Rules {
        domain: &'r str,
        path: &'r str,
    },
    SetRules(&'r [Rule]),
    LastIds {
        sid: &'r str,
    },
    Update {
        sid: &'r str,
        last_ids: &'r [(String, String)],
    },
    /// Of sessions that are there already; nothing new only says that they live.
    UpdateMany(&'r [(String, LastIds)]),
}

impl Request<'_> {
    /// As a message; `id` comes back with the answer.
    pub fn encode(&self, id: &str) -> Vec<u8> {
        let (method, args): (&str, Vec<(&[u8], Value<'_>)>) = match *self {
            Self::Rules { domain, path } => {
                ("session-detect-rules-get", vec![(b"domain", text(domain)), (b"path", text(path))])
            }
            Self::SetRules(rules) => {
                let rules = rules.iter().map(rule).collect();
                ("session-detect-rules-set", vec![(b"rules", Value::List(rules))])
            }
            Self::LastIds { sid } => ("session-get-last-ids", vec![(b"sid", text(sid))]),
            Self::Update { sid, last_ids } => {
                ("session-create-or-update", vec![(b"sid", text(sid)), (b"last-ids", ids(last_ids))])
            }
            Self::UpdateMany(sessions) => {
                let all = sessions.iter().map(|(sid, last_ids)| (sid.as_bytes(), ids(last_ids)));
                ("session-update-many", vec![(b"sid-last-ids", Value::Map(all.collect()))])
            }
        };
        let request = vec![(&b"id"[..], text(id)), (b"method", text(method)), (b"args", Value::Map(args))];
        let mut out = Vec::new();
        tnetstring::encode(&Value::Map(request), &mut out);
        out
    }
}

/// What the server of state answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Response<'v> {
    pub id: &'v [u8],
    pub outcome: Result<Value<'v>, Condition>,
}

/// Why the server of state did not do what it was asked, in its words.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Condition(pub String);

impl Condition {
    /// It has no such session: that is an answer, too.
    pub fn is_unknown(&self) -> bool {
        self.0 == "item-not-found"
    }
}

impl<'v> Response<'v> {
    /// `None`: it is no response.
    pub fn decode(message: &'v [u8]) -> Option<Self> {
        let response = tnetstring::decode(message).ok()?;
        let member = |name: &[u8]| find(&response, name).cloned();
        let Some(Value::Bytes(id)) = member(b"id") else { return None };
        let outcome = match (member(b"success")?, member(b"condition")) {
            (Value::Bool(true), _) => Ok(member(b"value").unwrap_or(Value::Null)),
            (Value::Bool(false), Some(Value::Bytes(why))) => {
                Err(Condition(String::from_utf8_lossy(why).into_owned()))
            }
            (Value::Bool(false), _) => Err(Condition("general".into())),
            _ => return None,
        };
        Some(Self { id, outcome })
    }
}

/// The rules of an answer to [`Request::Rules`]; what is none is left out.
pub fn rules(value: &Value<'_>) -> Vec<Rule> {
    let Value::List(list) = value else { return Vec::new() };
    let rule = |value: &Value<'_>| {
        Some(Rule {
            domain: string(find(value, b"domain")?)?,
            path_prefix: string(find(value, b"path-prefix")?)?,
            sid_ptr: string(find(value, b"sid-ptr")?)?,
            json_param: find(value, b"json-param").and_then(string),
        })
    };
    list.iter().filter_map(rule).take(MAX_RULES).collect()
}

/// The ids of an answer to [`Request::LastIds`].
pub fn last_ids(value: &Value<'_>) -> LastIds {
    let Value::Map(map) = value else { return Vec::new() };
    let id = |(channel, id): &(&[u8], Value<'_>)| Some((string(&Value::Bytes(channel))?, string(id)?));
    map.iter().filter_map(id).take(MAX_IDS).collect()
}

/// The session that a request with this body is one of: by the first rule whose pointer finds a string.
pub fn detect(rules: &[Rule], body: &[u8]) -> Option<String> {
    rules.iter().find_map(|rule| match &rule.json_param {
        None => pointed(body, &rule.sid_ptr),
        Some(name) => {
            let field = Query::new(str::from_utf8(body).ok()?).value(name)??;
            pointed(field.as_bytes(), &rule.sid_ptr)
        }
    })
}

/// What an origin's answer says of a session.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Said {
    pub sid: Option<String>,
    pub rules: Vec<Rule>,
}

impl Said {
    /// `domain`: the host of the request.
    pub fn read(headers: &HeaderMap, domain: &str) -> Self {
        let sid = headers.get(GRIP_SESSION_ID).and_then(|sid| sid.to_str().ok());
        let rule = |params: Vec<params::Param<'_>>| {
            let get = |name: &str| {
                let found = params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes()))?;
                String::from_utf8(found.1.to_vec()).ok().filter(|value| !value.is_empty())
            };
            Some(Rule {
                domain: domain.to_owned(),
                path_prefix: get("path-prefix")?,
                sid_ptr: get("sid-ptr")?,
                json_param: get("json-param"),
            })
        };
        Self {
            sid: sid.filter(|sid| !sid.is_empty()).map(str::to_owned),
            rules: params::parameter_lists(headers.get_all(&GRIP_SESSION_DETECT))
                .filter_map(rule)
                .take(MAX_RULES)
                .collect(),
        }
    }
}

/// The string that a JSON Pointer (RFC 6901) finds.
fn pointed(json: &[u8], pointer: &str) -> Option<String> {
    let json = Json::parse(json).ok()?;
    let mut at = &json;
    if !pointer.is_empty() {
        for token in pointer.strip_prefix('/')?.split('/') {
            let name = token.replace("~1", "/").replace("~0", "~");
            at = match at {
                Json::Array(elements) => elements.get(name.parse::<usize>().ok()?)?,
                object => object.get(&name)?,
            };
        }
    }
    at.as_str().filter(|sid| !sid.is_empty()).map(str::to_owned)
}

fn rule(rule: &Rule) -> Value<'_> {
    let mut map = vec![
        (&b"domain"[..], text(&rule.domain)),
        (b"path-prefix", text(&rule.path_prefix)),
        (b"sid-ptr", text(&rule.sid_ptr)),
    ];
    map.extend(rule.json_param.as_deref().map(|name| (&b"json-param"[..], text(name))));
    Value::Map(map)
}

fn ids(ids: &[(String, String)]) -> Value<'_> {
    Value::Map(ids.iter().map(|(channel, id)| (channel.as_bytes(), text(id))).collect())
}

fn text(text: &str) -> Value<'_> {
    Value::Bytes(text.as_bytes())
}

fn string(value: &Value<'_>) -> Option<String> {
    match value {
        Value::Bytes(bytes) => str::from_utf8(bytes).ok().map(str::to_owned),
        _ => None,
    }
}

fn find<'m, 'v>(map: &'m Value<'v>, name: &[u8]) -> Option<&'m Value<'v>> {
    let Value::Map(members) = map else { return None };
    members.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| value)
}

pub const GRIP_SESSION_ID: HeaderName = HeaderName::from_static("grip-session-id");
static GRIP_SESSION_DETECT: HeaderName = HeaderName::from_static("grip-session-detect");
/// Of one answer.
const MAX_RULES: usize = 100;
/// Channels of one session: what fits into a request's head.
const MAX_IDS: usize = 100;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn a_rule(json_param: Option<&str>) -> Rule {
        Rule {
            domain: "a.example".into(),
            path_prefix: "/p".into(),
            sid_ptr: "/a/0/s~1t".into(),
            json_param: json_param.map(Into::into),
        }
    }

    #[test]
    fn requests() {
        let encoded = |request: Request<'_>| String::from_utf8(request.encode("7")).unwrap();
        let ids = vec![("c".to_owned(), "1".to_owned())];
        for (request, wanted) in [
            (
                Request::Rules { domain: "a", path: "/" },
                "84:2:id,1:7,6:method,24:session-detect-rules-get,4:args,25:6:domain,1:a,4:path,1:/,}}",
            ),
            (
                Request::LastIds { sid: "s" },
                "67:2:id,1:7,6:method,20:session-get-last-ids,4:args,11:3:sid,1:s,}}",
            ),
            (
                Request::UpdateMany(&[("s".to_owned(), ids)]),
                "92:2:id,1:7,6:method,19:session-update-many,4:args,36:12:sid-last-ids,16:1:s,8:1:c,1:1,}}}}",
            ),
        ] {
            let message = encoded(request);
            assert!(tnetstring::decode(message.as_bytes()).is_ok(), "{message}");
            let body = |text: &str| text.split_once(':').unwrap().1.to_owned();
            assert!(body(&message).starts_with(&body(wanted)[..40]), "{message}\n{wanted}");
        }
    }

    #[test]
    fn rules_are_written_and_read() {
        for json_param in [None, Some("j")] {
            let list = [a_rule(json_param)];
            let written = Value::List(list.iter().map(rule).collect());
            assert_eq!(rules(&written), list);
        }
        assert!(rules(&Value::List(vec![Value::Null, Value::Map(Vec::new())])).is_empty());
        assert!(rules(&Value::Null).is_empty() && last_ids(&Value::Null).is_empty());
    }

    #[test]
    fn sessions_are_found_in_bodies() {
        let plain = [a_rule(None)];
        assert_eq!(detect(&plain, br#"{"a":[{"s/t":"x"}]}"#).as_deref(), Some("x"));
        for body in ["", "{", r#"{"a":[]}"#, r#"{"a":[{"s/t":1}]}"#, r#"{"a":[{"s/t":""}]}"#, "[]"] {
            assert_eq!(detect(&plain, body.as_bytes()), None, "{body}");
        }
        let form = [a_rule(Some("j"))];
        assert_eq!(detect(&form, b"i=1&j=%7B%22a%22:[%7B%22s/t%22:%22x+y%22%7D]%7D").as_deref(), Some("x y"));
        assert_eq!(detect(&form, br#"{"a":[{"s/t":"x"}]}"#), None);
        assert_eq!(pointed(b"\"all\"", "").as_deref(), Some("all"));
    }

    #[test]
    fn answers_of_origins() {
        let mut headers = HeaderMap::new();
        headers.insert("grip-session-id", "s".parse().unwrap());
        headers.append("grip-session-detect", r#"path-prefix=/p; sid-ptr="/a/0/s~1t""#.parse().unwrap());
        headers.append("grip-session-detect", "path-prefix=/p".parse().unwrap());
        let said = Said::read(&headers, "a.example");
        assert_eq!(said, Said { sid: Some("s".into()), rules: vec![a_rule(None)] });
        assert_eq!(Said::read(&HeaderMap::new(), "x"), Said::default());
    }

    #[test]
    fn responses() {
        let decode = |text: &'static str| Response::decode(text.as_bytes());
        let good = decode("37:2:id,1:7,7:success,4:true!5:value,0:~}").unwrap();
        assert_eq!((good.id, good.outcome), (&b"7"[..], Ok(Value::Null)));
        let bad = decode("43:2:id,1:7,7:success,5:false!9:condition,1:x,}").unwrap();
        assert_eq!(bad.outcome, Err(Condition("x".into())));
        assert!(decode("0:}").is_none() && decode("x").is_none());
    }

    proptest! {
        #[test]
        fn garbage_is_harmless(bytes in prop::collection::vec(any::<u8>(), 0..100), pointer in ".{0,10}") {
            drop(Response::decode(&bytes));
            drop(detect(&[Rule { sid_ptr: pointer, json_param: Some("a".into()), ..Rule::default() }], &bytes));
        }
    }
}

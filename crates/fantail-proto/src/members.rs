//! Typed access to the members of a JSON object, with faults that name the member: what items and
//! instructs share (spec 3.3, 5.3–5.5). A member that is present with another type, `null` included,
//! is a fault; an unknown member is nobody's business.

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::{hop, json::Json};

/// An object and how faults call it.
#[derive(Clone, Copy)]
pub(crate) struct Members<'j, 'a> {
    of: &'static str,
    json: &'j Json<'a>,
}

/// Which member is wrong, and how.
#[derive(Debug)]
pub(crate) struct Fault(pub String);

/// `Grip-Expose-Headers` is kept apart, other `Grip-*` headers and framing are left out.
#[derive(Default)]
pub(crate) struct Headers {
    pub fields: Vec<(HeaderName, HeaderValue)>,
    pub expose: Option<Vec<HeaderName>>,
}

impl<'j, 'a> Members<'j, 'a> {
    /// `None` when `json` is no object.
    pub(crate) fn new(of: &'static str, json: &'j Json<'a>) -> Option<Self> {
        matches!(json, Json::Object(_)).then_some(Self { of, json })
    }

    pub(crate) fn of(self) -> &'static str {
        self.of
    }

    pub(crate) fn get(self, name: &str) -> Option<&'j Json<'a>> {
        self.json.get(name)
    }

    /// True when a member called by one of these names is there.
    pub(crate) fn has_any(self, names: &[&str]) -> bool {
        names.iter().any(|name| self.get(name).is_some())
    }

    pub(crate) fn is_empty(self) -> bool {
        matches!(self.json, Json::Object(members) if members.is_empty())
    }

    pub(crate) fn text(self, name: &str) -> Result<Option<&'j str>, Fault> {
        self.typed(name, Json::as_str)
    }

    /// A whole number or a string that spells one.
    pub(crate) fn int(self, name: &str) -> Result<Option<i64>, Fault> {
        self.typed(name, Json::as_int)
    }

    pub(crate) fn bool(self, name: &str) -> Result<Option<bool>, Fault> {
        self.typed(name, |json| if let Json::Bool(value) = json { Some(*value) } else { None })
    }

    pub(crate) fn list(self, name: &str) -> Result<Option<&'j [Json<'a>]>, Fault> {
        self.typed(
            name,
            |json| if let Json::Array(elements) = json { Some(elements.as_slice()) } else { None },
        )
    }

    pub(crate) fn object(self, name: &str, of: &'static str) -> Result<Option<Self>, Fault> {
        self.typed(name, |json| Members::new(of, json))
    }

    /// A list of strings.
    pub(crate) fn texts(self, name: &str) -> Result<Option<Vec<&'j str>>, Fault> {
        let Some(list) = self.list(name)? else { return Ok(None) };
        let texts: Option<Vec<&str>> = list.iter().map(Json::as_str).collect();
        texts.map(Some).ok_or_else(|| Fault(format!("{name} contains value with wrong type")))
    }

    /// `meta`: an object of strings, in order; of repeated names the last one counts.
    pub(crate) fn meta(self) -> Result<Vec<(String, String)>, Fault> {
        let Some(Json::Object(members)) = self.object("meta", "'meta'")?.map(|meta| meta.json) else {
            return Ok(Vec::new());
        };
        if members.len() > MAX_META {
            return Err(Fault(format!("'meta' contains more than {MAX_META} elements")));
        }
        let text = |name: &str, value: &Json<'_>| match value {
            Json::String(text) => Ok((name.to_owned(), text.to_string())),
            _ => Err(Fault::wrong_type("'meta'", name)),
        };
        members.iter().map(|(name, value)| text(name, value)).collect()
    }

    /// Bytes in base64 under `binary`, or else text under `plain`; raw bytes under either.
    pub(crate) fn bytes(self, binary: &str, plain: &str) -> Result<Option<Bytes>, Fault> {
        if let Some(Json::Bytes(raw)) = self.get(binary).or_else(|| self.get(plain)) {
            return Ok(Some(Bytes::copy_from_slice(raw)));
        }
        if let Some(text) = self.text(binary)? {
            return Ok(Some(lenient_base64(text.as_bytes()).into()));
        }
        Ok(self.text(plain)?.map(|text| Bytes::copy_from_slice(text.as_bytes())))
    }

    /// A status that can end a request: 200..=999 (spec allows less, which no client could read).
    pub(crate) fn code(self) -> Result<Option<u16>, Fault> {
        let Some(code) = self.int("code")? else { return Ok(None) };
        u16::try_from(code).ok().and_then(final_status).map(Some).ok_or_else(|| self.invalid("code"))
    }

    /// A reason phrase; empty when absent.
    pub(crate) fn reason(self) -> Result<&'j str, Fault> {
        let reason = self.text("reason")?.unwrap_or_default();
        if is_reason(reason) { Ok(reason) } else { Err(self.invalid("reason")) }
    }

    /// `headers`, an object of strings or a list of pairs, without those that Fantail frames itself.
    pub(crate) fn headers(self) -> Result<Headers, Fault> {
        let mut headers = Headers::default();
        match self.get("headers") {
            None => {}
            Some(Json::Array(pairs)) => {
                for pair in pairs {
                    let Json::Array(pair) = pair else {
                        return Err(Fault("headers contains element with wrong type".into()));
                    };
                    let [name, value] = pair.as_slice() else {
                        return Err(Fault("headers contains list with wrong number of elements".into()));
                    };
                    let name = name.as_str().ok_or_else(|| element_fault("name"))?;
                    headers.push(name, value.as_str().ok_or_else(|| element_fault("value"))?)?;
                }
            }
            Some(Json::Object(members)) => {
                for (name, value) in members {
                    headers.push(name, value.as_str().ok_or_else(|| Fault::wrong_type("headers", name))?)?;
                }
            }
            Some(_) => return Err(Fault::wrong_type(self.of, "headers")),
        }
        Ok(headers)
    }

    pub(crate) fn missing(self, name: &str) -> Fault {
        Fault(format!("{} does not contain '{name}'", self.of))
    }

    pub(crate) fn invalid(self, name: &str) -> Fault {
        Fault(format!("{} contains '{name}' with invalid value", self.of))
    }

    fn typed<T>(self, name: &str, read: impl Fn(&'j Json<'a>) -> Option<T>) -> Result<Option<T>, Fault> {
        match self.get(name) {
            None => Ok(None),
            Some(json) => read(json).map(Some).ok_or_else(|| Fault::wrong_type(self.of, name)),
        }
    }
}

impl Fault {
    /// `name` may be the network's and is cut.
    fn wrong_type(of: &str, name: &str) -> Self {
        Self(format!("{of} contains '{name:.64}' with wrong type"))
    }
}

impl Headers {
    fn push(&mut self, name: &str, value: &str) -> Result<(), Fault> {
        let Ok(field) = HeaderName::from_bytes(name.as_bytes()) else {
            return Err(Fault(format!("headers contains an invalid name '{:.64}'", name.escape_default())));
        };
        let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) else {
            return Err(Fault(format!("headers contains '{field:.64}' with invalid value")));
        };
        if field == "grip-expose-headers" {
            let names = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            let expose = self.expose.get_or_insert_default();
            expose.extend(names.filter_map(|name| HeaderName::from_bytes(name).ok()));
            if expose.len() > MAX_HEADERS {
                return Err(Fault(format!("Grip-Expose-Headers names more than {MAX_HEADERS} headers")));
            }
        } else if !is_ours(&field) {
            if self.fields.len() == MAX_HEADERS {
                return Err(Fault(format!("headers contains more than {MAX_HEADERS} elements")));
            }
            self.fields.push((field, value));
        }
        Ok(())
    }
}

fn element_fault(which: &str) -> Fault {
    Fault(format!("header contains {which} element with wrong type"))
}

/// True for headers that an origin or a publisher cannot give a client: `Grip-*`, and what depends on
/// how this connection is framed.
pub(crate) fn is_ours(name: &HeaderName) -> bool {
    name.as_str().starts_with("grip-") || hop::is_framing(name)
}

pub(crate) fn final_status(code: u16) -> Option<u16> {
    (200..=999).contains(&code).then_some(code)
}

/// RFC 9112 4: what a reason phrase and a field value may contain is the same.
pub(crate) fn is_reason(reason: &str) -> bool {
    HeaderValue::from_bytes(reason.as_bytes()).is_ok()
}

/// Decodes base64 and skips what is not in its alphabet (spec 5.3); bits that make no whole byte are
/// dropped.
pub(crate) fn lenient_base64(text: &[u8]) -> Vec<u8> {
    if let Ok(bytes) = BASE64_STANDARD.decode(text) {
        return bytes;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0u32, 0);
    for sextet in text.iter().filter_map(|byte| sextet(*byte)) {
        bits = bits << 6 | u32::from(sextet);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    bytes
}

fn sextet(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

/// Far over what responses have, far under what a `HeaderMap` can hold.
const MAX_HEADERS: usize = 100;

/// Filters read meta once per subscriber: it has to be short.
const MAX_META: usize = 100;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn base64_skips_what_is_not_its_alphabet() {
        for (text, bytes) in [
            ("/v8=", &[0xfe, 0xff][..]),
            ("/v8", &[0xfe, 0xff]),
            ("/ v\n8=", &[0xfe, 0xff]),
            ("/v9=", &[0xfe, 0xff]),
            ("a", b""),
            ("", b""),
            ("====", b""),
        ] {
            assert_eq!(lenient_base64(text.as_bytes()), bytes, "{text}");
        }
    }

    proptest! {
        #[test]
        fn base64_round_trips_with_noise(bytes: Vec<u8>, noise in "[ \n!_-]{0,3}") {
            let text: String = BASE64_STANDARD.encode(&bytes).chars().flat_map(|c| [c.to_string(), noise.clone()]).collect();
            prop_assert_eq!(lenient_base64(text.as_bytes()), bytes);
        }
    }
}

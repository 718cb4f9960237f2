//! An endpoint: a URL that is subscribed to a channel, as it is kept on disk, as its owner writes it and as it is
//! shown. Secrets and values of headers are shown by [`Endpoint::secrets`] alone.

use std::fmt;

use aws_lc_rs::{
    digest::{SHA256, digest},
    rand,
};
use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use fantail_proto::{
    filter::Filter,
    item::is_of_webhook,
    webhook::{
        signature::{SEED, Secret},
        target::Target,
    },
};
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Realm, channel and URL in 128 bits: the endpoints of a channel, and those of a realm, are neighbours on disk.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Id(pub(super) u128);

impl Id {
    /// The hashes are salted with what nobody knows, so that nobody can make two that are equal. Channels that are
    /// equal by chance share a range: so a row's channel is always compared.
    pub(super) fn new(realm: u32, salt: u128, channel: &str, url: &str) -> Self {
        Self(u128::from(realm) << 96 | hash(salt, channel) << 48 | hash(salt, url))
    }

    pub(super) fn of_channel(realm: u32, salt: u128, channel: &str) -> (Self, Self) {
        let first = u128::from(realm) << 96 | hash(salt, channel) << 48;
        (Self(first), Self(first | LOW_48))
    }

    pub(super) fn of_realm(realm: u32) -> (Self, Self) {
        let first = u128::from(realm) << 96;
        (Self(first), Self(first | ((1 << 96) - 1)))
    }

    pub(super) fn realm(self) -> u32 {
        u32::try_from(self.0 >> 96).expect("32 bits are left")
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let good = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u128::from_str_radix(text, 16).ok().filter(|_| good).map(Self)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

fn hash(salt: u128, text: &str) -> u128 {
    let salted = [&salt.to_be_bytes(), text.as_bytes()].concat();
    let bytes = digest(&SHA256, &salted);
    bytes.as_ref().iter().take(6).fold(0, |sum, byte| sum << 8 | u128::from(*byte))
}

/// One row; short names, because there may be a million of them.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Endpoint {
    #[serde(rename = "c")]
    pub(super) channel: String,
    #[serde(rename = "u")]
    pub(super) url: String,
    /// The newest first.
    #[serde(rename = "s")]
    secrets: Vec<Held>,
    #[serde(rename = "t")]
    pub(super) created: u64,
    #[serde(rename = "h", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) headers: Vec<(String, String)>,
    #[serde(rename = "f", default, skip_serializing_if = "Vec::is_empty")]
    filters: Vec<String>,
    #[serde(rename = "m", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) meta: Vec<(String, String)>,
    #[serde(rename = "d", default, skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(rename = "o", default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) ordered: bool,
    #[serde(rename = "e", default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) envelope: bool,
    /// Unix seconds, as all times here.
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub(super) disabled: Option<Disabled>,
}

/// URLs and values of headers may be secrets, too.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Endpoint");
        shown.field("channel", &self.channel).field("disabled", &self.disabled).finish_non_exhaustive()
    }
}

/// A secret, and until when it is used if another has replaced it.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
struct Held(String, #[serde(default, skip_serializing_if = "Option::is_none")] Option<u64>);

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.1).finish()
    }
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Disabled {
    pub(super) at: u64,
    pub(super) cause: String,
}

/// What an owner wants an endpoint to be; what is absent stays as it is.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    pub(super) url: Option<String>,
    /// The one to sign with instead of a new one.
    secret: Option<String>,
    /// The kind of a new one.
    signature: Option<Kind>,
    headers: Option<Map<String, Value>>,
    filters: Option<Vec<String>>,
    meta: Option<Map<String, Value>>,
    description: Option<String>,
    order: Option<bool>,
    envelope: Option<bool>,
    /// Seconds from now; 0: for ever.
    ttl: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    #[default]
    Hmac,
    Ed25519,
}

impl Kind {
    const fn of(secret: &Secret) -> Self {
        match secret {
            Secret::Shared(_) => Self::Hmac,
            Secret::Private(_) => Self::Ed25519,
        }
    }
}

/// What of a wish cannot be; the text is for the owner.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unwanted(pub(super) String);

impl Endpoint {
    pub(super) fn new(channel: &str, target: &Target, now: u64) -> Self {
        Self {
            channel: channel.into(),
            url: target.url(),
            secrets: Vec::new(),
            created: now,
            headers: Vec::new(),
            filters: Vec::new(),
            meta: Vec::new(),
            description: String::new(),
            ordered: false,
            envelope: false,
            expires: None,
            disabled: None,
        }
    }

    /// `overlap`: for how many seconds a secret that is replaced goes on.
    ///
    /// # Errors
    /// Nothing is changed.
    pub(super) fn wish(&mut self, wish: &Wish, overlap: u64, now: u64) -> Result<(), Unwanted> {
        let mut new = self.clone();
        if let Some(headers) = &wish.headers {
            new.headers = pairs("headers", headers)?;
            for (name, value) in &new.headers {
                let name = HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| !is_of_webhook(name));
                if name.is_none() || HeaderValue::from_str(value).is_err() {
                    return Err(Unwanted("headers: a name or a value cannot be sent".into()));
                }
            }
        }
        if let Some(meta) = &wish.meta {
            new.meta = pairs("meta", meta)?;
        }
        if let Some(filters) = &wish.filters {
            let unknown = |name: &&String| Filter::named(name).is_none_or(Filter::asks);
            if let Some(name) = filters.iter().find(unknown) {
                return Err(Unwanted(format!("filters: there is no {name:?}")));
            }
            // Each is work for every try.
            if let Some((_, name)) = filters.iter().enumerate().find(|(n, name)| filters[..*n].contains(name))
            {
                return Err(Unwanted(format!("filters: {name:?} is named twice")));
            }
            new.filters.clone_from(filters);
        }
        if let Some(description) = &wish.description {
            new.description.clone_from(description);
        }
        new.ordered = wish.order.unwrap_or(new.ordered);
        new.envelope = wish.envelope.unwrap_or(new.envelope);
        if let Some(ttl) = wish.ttl {
            new.expires = (ttl > 0).then(|| now.saturating_add(ttl));
        }
        let current = new.secrets.first().and_then(|Held(text, _)| Secret::parse(text).ok());
        let wished = wish.secret.as_ref().map(|_| wish.fresh_secret()).transpose()?;
        if current.is_none() || wished.is_some_and(|wished| Some(wished) != current) {
            new.rotate(wish, overlap, now)?;
        } else if wish.signature.is_some() && wish.signature != current.as_ref().map(Kind::of) {
            return Err(Unwanted("signature: its secret is of another kind; rotate it".into()));
        }
        if serde_json::to_string(&new).is_ok_and(|row| row.len() > ROW_BYTES) {
            return Err(Unwanted(format!("an endpoint has at most {ROW_BYTES} bytes")));
        }
        *self = new;
        Ok(())
    }

    /// A new secret signs from now on; those before it do so too for `overlap` seconds, the newest of them.
    ///
    /// # Errors
    /// The secret that is wished for is none, or of another kind than that which is wished for, too.
    pub(super) fn rotate(&mut self, wish: &Wish, overlap: u64, now: u64) -> Result<(), Unwanted> {
        let fresh = Held(wish.fresh_secret()?.text(), None);
        let until = now.saturating_add(overlap);
        let old = self
            .secrets
            .drain(..)
            .filter(|Held(text, end)| *text != fresh.0 && end.is_none_or(|end| end > now));
        let old = old.map(|Held(text, end)| Held(text, Some(end.map_or(until, |end| end.min(until)))));
        let old: Vec<Held> = old.filter(|held| held.1 > Some(now)).take(OLD_SECRETS).collect();
        self.secrets = std::iter::once(fresh).chain(old).collect();
        Ok(())
    }

    pub(super) fn has_expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// Those that sign now.
    pub(super) fn signs_with(&self, now: u64) -> Vec<Secret> {
        let good = self.secrets.iter().filter(|Held(_, end)| end.is_none_or(|end| end > now));
        good.filter_map(|Held(text, _)| Secret::parse(text).ok()).collect()
    }

    pub(super) fn filters(&self) -> Vec<Filter> {
        self.filters.iter().filter_map(|name| Filter::named(name)).collect()
    }

    /// Without secrets, and without what headers say.
    pub(super) fn shown(&self, id: Id) -> Value {
        let headers: Map<_, _> = self.headers.iter().map(|(name, _)| (name.clone(), json!("***"))).collect();
        let meta: Map<_, _> = self.meta.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let disabled = self.disabled.as_ref().map(|d| json!({ "at": d.at, "cause": d.cause }));
        json!({
            "id": id.to_string(), "channel": self.channel, "url": self.url, "description": self.description,
            "headers": headers, "filters": self.filters, "meta": meta, "order": self.ordered,
            "envelope": self.envelope, "created": self.created, "expires": self.expires, "disabled": disabled,
        })
    }

    /// For the owner.
    pub(super) fn secrets(&self, now: u64) -> Value {
        let good = self.secrets.iter().filter(|Held(_, end)| end.is_none_or(|end| end > now));
        let one = |Held(text, until): &Held| {
            let public = Secret::parse(text).ok().and_then(|secret| secret.public());
            match public {
                Some(public) => json!({ "secret": text, "public": public, "until": until }),
                None => json!({ "secret": text, "until": until }),
            }
        };
        Value::Array(good.map(one).collect())
    }
}

impl Wish {
    pub(super) fn of_url(url: String) -> Self {
        Self { url: Some(url), ..Self::default() }
    }

    fn fresh_secret(&self) -> Result<Secret, Unwanted> {
        if let Some(text) = &self.secret {
            let secret = Secret::parse(text).map_err(|error| Unwanted(format!("secret: {error}")))?;
            if self.signature.is_some_and(|kind| kind != Kind::of(&secret)) {
                return Err(Unwanted("signature: the secret is of another kind".into()));
            }
            return Ok(secret);
        }
        let mut random = [0; SEED];
        rand::fill(&mut random).map_err(|_| Unwanted("there are no random numbers".into()))?;
        Ok(match self.signature.unwrap_or_default() {
            Kind::Hmac => Secret::Shared(random.to_vec()),
            Kind::Ed25519 => Secret::Private(random),
        })
    }
}

/// 128 bits that nobody can guess, as text that may stand in a URL.
pub(super) fn challenge() -> String {
    let mut random = [0; 24];
    rand::fill(&mut random).expect("the system has random numbers, or TLS could not work either");
    BASE64.encode(random).replace('+', "-").replace('/', "_")
}

fn pairs(of: &str, map: &Map<String, Value>) -> Result<Vec<(String, String)>, Unwanted> {
    if map.len() > PAIRS {
        return Err(Unwanted(format!("{of}: more than {PAIRS}")));
    }
    let text = |(name, value): (&String, &Value)| {
        let value = value.as_str().ok_or_else(|| Unwanted(format!("{of}: a value is not a string")))?;
        Ok((name.clone(), value.to_owned()))
    };
    map.iter().map(text).collect()
}

const LOW_48: u128 = (1 << 48) - 1;
/// Of a row, with everything in it.
const ROW_BYTES: usize = 8192;
/// Headers, and elements of meta.
const PAIRS: usize = 32;
/// Secrets that are still used beside the newest.
const OLD_SECRETS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        let mut endpoint = Endpoint::new("c", &Target::parse("http://h/x").unwrap(), 100);
        endpoint.wish(&Wish::default(), 10, 100).unwrap();
        endpoint
    }

    fn wish(text: Value) -> Wish {
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn neighbours_are_of_one_channel_and_realm() {
        let id = Id::new(7, 1, "c", "http://h/");
        let (first, last) = Id::of_channel(7, 1, "c");
        assert!(first <= id && id <= last && id.realm() == 7);
        assert_ne!(Id::new(7, 2, "c", "http://h/"), id);
        let (first, last) = Id::of_realm(7);
        assert!(first <= id && id <= last && Id::of_realm(8).0 > last);
        assert_eq!(Id::parse(&id.to_string()), Some(id));
        assert_eq!(Id::parse("+7"), None);
    }

    #[test]
    fn a_row_is_small_and_says_all() {
        let row = serde_json::to_string(&endpoint()).unwrap();
        assert!(row.len() < 120, "{row}");
        let mut other = Endpoint::new("c", &Target::parse("http://h/x").unwrap(), 100);
        let all = json!({ "headers": {"A": "b"}, "filters": ["skip-self"], "meta": {"user": "u"}, "order": true,
            "description": "d", "envelope": true, "ttl": 5, "signature": "ed25519" });
        other.wish(&wish(all), 10, 100).unwrap();
        assert!(!other.has_expired(104) && other.has_expired(105));
        let back: Endpoint = serde_json::from_str(&serde_json::to_string(&other).unwrap()).unwrap();
        assert_eq!(back, other);
        let shown = other.shown(Id(1)).to_string();
        assert!(!shown.contains("whs") && !shown.contains("\"b\""));
        let debug = format!("{other:?}");
        assert!(!debug.contains("whs") && !debug.contains("\"b\"") && !debug.contains("http"), "{debug}");
    }

    #[test]
    fn secrets_overlap_and_end() {
        let mut endpoint = endpoint();
        let first = endpoint.signs_with(100);
        endpoint.rotate(&Wish::default(), 10, 100).unwrap();
        assert_eq!(endpoint.signs_with(109).len(), 2);
        assert_eq!(endpoint.signs_with(109)[1], first[0]);
        assert_eq!(endpoint.signs_with(110).len(), 1);
        for _ in 0..10 {
            endpoint.rotate(&Wish::default(), 1000, 111).unwrap();
        }
        assert_eq!(endpoint.signs_with(112).len(), 1 + OLD_SECRETS);
        endpoint.rotate(&Wish::default(), 0, 113).unwrap();
        assert_eq!(endpoint.signs_with(113).len(), 1);
    }

    /// A script that says again what is so changes nothing, and receivers have time for what is new.
    #[test]
    fn a_wished_secret_overlaps_with_the_one_before() {
        let mut endpoint = endpoint();
        let own = endpoint.secrets[0].0.clone();
        let new = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        for same in [json!({ "secret": own }), json!({ "signature": "hmac" }), json!({})] {
            endpoint.wish(&wish(same), 10, 100).unwrap();
            assert_eq!(endpoint.signs_with(100).len(), 1);
        }
        for _ in 0..2 {
            endpoint.wish(&wish(json!({ "secret": new, "signature": "hmac" })), 10, 100).unwrap();
            let texts: Vec<String> = endpoint.signs_with(109).iter().map(Secret::text).collect();
            assert_eq!(texts, [new, &*own]);
        }
        assert_eq!(endpoint.signs_with(110).len(), 1);
        for other in [json!({ "signature": "ed25519" }), json!({ "signature": "ed25519", "secret": new })] {
            assert!(endpoint.wish(&wish(other.clone()), 10, 100).is_err(), "{other}");
        }
        endpoint.rotate(&wish(json!({ "signature": "ed25519" })), 10, 110).unwrap();
        assert_eq!(endpoint.signs_with(110).len(), 2);
    }

    #[test]
    fn a_bad_wish_changes_nothing() {
        let mut endpoint = endpoint();
        let before = endpoint.clone();
        for bad in [
            json!({ "headers": {"A": 1} }),
            json!({ "headers": {"A B": "c"} }),
            json!({ "headers": {"Host": "c"} }),
            json!({ "headers": {"webhook-id": "c"} }),
            json!({ "headers": {"A": "c\r\nd"} }),
            json!({ "filters": ["http-check"] }),
            json!({ "filters": ["var-subst", "skip-self", "var-subst"] }),
            json!({ "meta": {"a": null} }),
            json!({ "secret": "short" }),
            json!({ "description": "x".repeat(ROW_BYTES) }),
        ] {
            assert!(endpoint.wish(&wish(bad.clone()), 10, 1).is_err(), "{bad}");
            assert_eq!(endpoint, before);
        }
        assert!(serde_json::from_value::<Wish>(json!({ "surprise": 1 })).is_err());
    }
}

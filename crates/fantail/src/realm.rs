//! The tenants: their ids and keys, and whether a publisher's credentials are one of theirs. Knows no
//! channel and no endpoint. Who asks without success learns nothing, not even whether a realm exists.

use std::collections::HashMap;

use aws_lc_rs::{
    digest::{SHA256, SHA256_OUTPUT_LEN, digest},
    rand,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;
use subtle::{Choice, ConstantTimeEq};

use crate::{
    config::{Config, DEFAULT_REALM},
    hub::RealmId,
    sign::{Key, KeyError, Verifier},
};

#[cfg(test)]
mod tests;

/// All realms of one configuration.
#[derive(Debug)]
pub struct Realms {
    realms: HashMap<String, Realm>,
    /// Every realm that this process has seen: a realm that comes back gets its number back.
    numbers: HashMap<String, RealmId>,
    /// Stands for the keys that an unknown realm does not have.
    decoy: Secret,
    /// As many keys are tried for every realm, so that the time says nothing.
    tries: usize,
}

/// Why a realm of the configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum RealmError {
    #[error("realm {realm:?}: key {number}: {source}")]
    Key { realm: String, number: usize, source: KeyError },
    #[error("realm {realm:?}: key {number} is a PEM file; a realm's keys are secrets")]
    NotSecret { realm: String, number: usize },
}

/// The one answer to all that is not allowed: 401.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not authorized: send a token or key of this realm (a realm without keys takes no items)")]
pub struct Denied;

impl Realms {
    /// Reads the keys of all realms. With `previous`, realms keep the numbers that they had.
    pub fn load(config: &Config, previous: Option<&Self>) -> Result<Self, Vec<RealmError>> {
        let mut errors = Vec::new();
        let mut realms = HashMap::new();
        let mut numbers = previous.map(|previous| previous.numbers.clone()).unwrap_or_default();
        let configured = config.realms.iter().map(|realm| (realm.id.as_str(), &realm.keys[..]));
        for (name, keys) in std::iter::once((DEFAULT_REALM, &[][..])).chain(configured) {
            let next = u32::try_from(numbers.len()).expect("2^32 names do not fit into a configuration");
            let number = *numbers.entry(name.to_owned()).or_insert(RealmId(next));
            let read = |(at, spec): (usize, &String)| Secret::read(name, at + 1, spec, config);
            let (good, bad): (Vec<_>, Vec<_>) = keys.iter().enumerate().map(read).partition(Result::is_ok);
            errors.extend(bad.into_iter().filter_map(Result::err));
            realms.insert(name.to_owned(), Realm { number, keys: good.into_iter().flatten().collect() });
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let tries = realms.values().map(|realm| realm.keys.len()).max().unwrap_or_default();
        Ok(Self { realms, numbers, decoy: Secret::decoy(), tries })
    }

    /// The number of a realm of the configuration.
    pub fn get(&self, realm: &str) -> Option<RealmId> {
        self.realms.get(realm).map(|realm| realm.number)
    }

    /// The realm of this name, or the only one that has it in other letters: addresses have no capitals.
    pub fn find(&self, name: &str) -> Option<(&str, RealmId)> {
        let exact = self.realms.get_key_value(name);
        let found = exact.or_else(|| {
            let mut alike = self.realms.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
            alike.next().filter(|_| alike.next().is_none())
        });
        found.map(|(name, realm)| (name.as_str(), realm.number))
    }

    /// Whether all of them are among others, too.
    pub fn is_within(&self, others: &Self) -> bool {
        self.realms.keys().all(|name| others.realms.contains_key(name))
    }

    /// Everybody may publish to the default realm: it has no keys.
    pub fn is_open(&self) -> bool {
        self.realms.get(DEFAULT_REALM).is_none_or(|realm| realm.keys.is_empty())
    }

    /// May a request with this `Authorization` publish to `realm`, at `now` in Unix seconds? Good are:
    ///
    /// - `Bearer` and a JWT, signed (HS256) with one of the realm's keys, whose `iss` is the realm's id;
    /// - `Bearer` and a key itself;
    /// - `Basic` with the realm's id as user and a key as password.
    ///
    /// The default realm takes any issuer and user, and without keys everything.
    pub fn authorize(
        &self,
        realm: &str,
        authorization: Option<&HeaderValue>,
        now: u64,
    ) -> Result<RealmId, Denied> {
        let known = self.realms.get(realm);
        if let Some(open) = known.filter(|known| realm == DEFAULT_REALM && known.keys.is_empty()) {
            return Ok(open.number);
        }
        let credentials = authorization.and_then(Credentials::parse).ok_or(Denied)?;
        let keys = known.map_or(&[][..], |known| &known.keys);
        let mut good = Choice::from(0);
        for at in 0..self.tries {
            let counts = Choice::from(u8::from(at < keys.len()));
            good |= counts & keys.get(at).unwrap_or(&self.decoy).accepts(&credentials, realm, now);
        }
        known.filter(|_| good.into()).map(|known| known.number).ok_or(Denied)
    }
}

#[derive(Debug)]
struct Realm {
    number: RealmId,
    keys: Vec<Secret>,
}

/// A key, ready to be compared with what publishers send.
#[derive(Debug)]
struct Secret {
    verifier: Verifier,
    /// Of the key itself, and of its base64 text, which is how many a library holds it.
    digests: [Digest; 2],
}

/// Equal lengths, so that a comparison takes the same time for all inputs.
type Digest = [u8; SHA256_OUTPUT_LEN];

impl Secret {
    fn read(realm: &str, number: usize, spec: &str, config: &Config) -> Result<Self, RealmError> {
        let realm = realm.to_owned();
        let key = match Key::parse(spec, &config.base) {
            Ok(key) => key,
            Err(source) => return Err(RealmError::Key { realm, number, source }),
        };
        Self::new(key).ok_or(RealmError::NotSecret { realm, number })
    }

    fn decoy() -> Self {
        let mut random = [0; SHA256_OUTPUT_LEN];
        rand::fill(&mut random).expect("the system has random numbers, or TLS could not work either");
        let key = Key::parse(&STANDARD.encode(random), "".as_ref());
        key.ok().and_then(Self::new).expect("base64 text is a plain secret")
    }

    /// `None` for a key that is a pair.
    fn new(key: Key) -> Option<Self> {
        let secret = key.as_secret()?;
        let digests = [sha256(secret), sha256(STANDARD.encode(secret).as_bytes())];
        Some(Self { verifier: Verifier::new(key), digests })
    }

    fn accepts(&self, credentials: &Credentials, realm: &str, now: u64) -> Choice {
        let [plain, encoded] = &self.digests;
        let equal = plain.ct_eq(&credentials.digest) | encoded.ct_eq(&credentials.digest);
        let named = |name: Option<&str>| realm == DEFAULT_REALM || name == Some(realm);
        match &credentials.scheme {
            Scheme::Basic { user } => equal & Choice::from(u8::from(named(Some(user)))),
            Scheme::Bearer { token } => {
                let claims = self.verifier.claims(token, now);
                let iss = |claims: &serde_json::Map<_, serde_json::Value>| {
                    named(claims.get("iss").and_then(|iss| iss.as_str()))
                };
                equal | Choice::from(u8::from(claims.as_ref().is_some_and(iss)))
            }
        }
    }
}

/// What a publisher sent.
struct Credentials {
    scheme: Scheme,
    /// Of the token or password.
    digest: Digest,
}

enum Scheme {
    Bearer { token: Vec<u8> },
    Basic { user: String },
}

impl Credentials {
    /// RFC 6750 2.1, RFC 7617 2.
    fn parse(header: &HeaderValue) -> Option<Self> {
        let header = header.as_bytes();
        let (scheme, rest) = header.split_at(header.iter().position(|byte| *byte == b' ')?);
        let rest = rest.trim_ascii();
        if scheme.eq_ignore_ascii_case(b"bearer") {
            return Some(Self { scheme: Scheme::Bearer { token: rest.to_vec() }, digest: sha256(rest) });
        }
        if !scheme.eq_ignore_ascii_case(b"basic") {
            return None;
        }
        let pair = STANDARD.decode(rest).ok()?;
        let (user, password) = pair.split_at(pair.iter().position(|byte| *byte == b':')?);
        let user = String::from_utf8(user.to_vec()).ok()?;
        Some(Self { scheme: Scheme::Basic { user }, digest: sha256(password.get(1..)?) })
    }
}

fn sha256(bytes: &[u8]) -> Digest {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has this length")
}

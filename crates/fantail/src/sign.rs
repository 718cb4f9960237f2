//! Grip-Sig: signing requests to origins and verifying those of trusted clients (spec 1.4), and the
//! keys for both, which realms use too. A key decides its algorithm, a token never does. Keys are read
//! here and printed nowhere.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::{
    rsa, signature::ECDSA_P256_SHA256_FIXED_SIGNING, signature::EcdsaKeyPair, signature::KeyPair,
};
use base64::Engine;
use hashbrown::HashMap;
use http::HeaderValue;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde_json::{Map, Value, json};

#[cfg(test)]
mod tests;

/// A key of a signature: a secret (HS256), or the private or public half of a P-256 (ES256) or RSA pair
/// of 2048 bits or more (RS256).
pub struct Key {
    algorithm: Algorithm,
    /// `None` for a public key.
    signs: Option<EncodingKey>,
    verifies: DecodingKey,
}

/// Why a key cannot be used. Says nothing of its content.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the key is empty")]
    Empty,
    #[error("what follows base64: is not base64")]
    Base64,
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: neither PEM (it would begin with -----BEGIN) nor a secret in hex", .0.display())]
    Hex(PathBuf),
    #[error("{}: not a P-256 key and not an RSA key of 2048 bits or more", .0.display())]
    Pem(PathBuf),
    #[error("a public key cannot sign")]
    Public,
    #[error("signing failed: {0}")]
    Sign(jsonwebtoken::errors::Error),
}

impl Key {
    /// Reads a key as the configuration writes it (spec 1.4): the secret itself, `base64:…`, or
    /// `file:PATH`, relative to `base`, of a PEM file or of a secret in hex. Reads the file at once.
    pub fn parse(spec: &str, base: &Path) -> Result<Self, KeyError> {
        if let Some(path) = spec.strip_prefix("file:") {
            return Self::read(&base.join(path));
        }
        match spec.strip_prefix("base64:") {
            Some(text) => Self::secret(&BASE64.decode(text.trim()).map_err(|_| KeyError::Base64)?),
            None => Self::secret(spec.as_bytes()),
        }
    }

    /// The bytes of an HS256 key.
    pub fn as_secret(&self) -> Option<&[u8]> {
        let secret = self.algorithm == Algorithm::HS256;
        secret.then(|| self.verifies.try_get_as_bytes().ok()).flatten()
    }

    fn secret(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.is_empty() {
            return Err(KeyError::Empty);
        }
        Ok(Self {
            algorithm: Algorithm::HS256,
            signs: Some(EncodingKey::from_secret(bytes)),
            verifies: DecodingKey::from_secret(bytes),
        })
    }

    fn read(path: &Path) -> Result<Self, KeyError> {
        let source = |source| KeyError::Read { path: path.to_owned(), source };
        let content = std::fs::read(path).map_err(source)?;
        let content = content.trim_ascii();
        if content.starts_with(b"-----BEGIN") {
            return Self::private(content)
                .or_else(|| Self::public(content))
                .ok_or_else(|| KeyError::Pem(path.to_owned()));
        }
        Self::secret(&hex(content).ok_or_else(|| KeyError::Hex(path.to_owned()))?)
    }

    fn private(pem: &[u8]) -> Option<Self> {
        let der = PrivateKeyDer::from_pem_slice(pem).ok()?;
        let der = der.secret_der();
        if let Ok(pair) = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der) {
            return Some(Self {
                algorithm: Algorithm::ES256,
                signs: Some(EncodingKey::from_ec_der(pair.to_pkcs8v1().ok()?.as_ref())),
                verifies: DecodingKey::from_ec_der(pair.public_key().as_ref()),
            });
        }
        let pair = rsa::KeyPair::from_pkcs8(der).or_else(|_| rsa::KeyPair::from_der(der)).ok()?;
        Some(Self {
            algorithm: Algorithm::RS256,
            signs: Some(EncodingKey::from_rsa_pem(pem).ok()?),
            verifies: DecodingKey::from_rsa_der(pair.public_key().as_ref()),
        })
    }

    fn public(pem: &[u8]) -> Option<Self> {
        if let Ok(verifies) = DecodingKey::from_ec_pem(pem) {
            let point = verifies.try_get_as_bytes().ok()?.len();
            return (point == P256_POINT).then_some(Self {
                algorithm: Algorithm::ES256,
                signs: None,
                verifies,
            });
        }
        let verifies = DecodingKey::from_rsa_pem(pem).ok()?;
        let modulus = rsa::PublicKey::from_der(verifies.try_get_as_bytes().ok()?).ok()?.modulus_len();
        (modulus >= RSA_MODULUS).then_some(Self { algorithm: Algorithm::RS256, signs: None, verifies })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// A signed token (JWT) with exactly the claims `iss` and `exp`, which is in Unix seconds.
pub fn token(iss: &str, exp: u64, key: &Key) -> Result<String, KeyError> {
    signed(&json!({ "iss": iss, "exp": exp }), key)
}

fn signed(claims: &Value, key: &Key) -> Result<String, KeyError> {
    let signs = key.signs.as_ref().ok_or(KeyError::Public)?;
    jsonwebtoken::encode(&Header::new(key.algorithm), claims, signs).map_err(KeyError::Sign)
}

/// Signs requests to origins.
#[derive(Debug)]
pub struct Signer {
    iss: String,
    key: Key,
}

impl Signer {
    /// `None` when the issuer or the key is empty: then requests are not signed. A key that could not
    /// sign is refused here.
    pub fn load(iss: &str, key: &str, base: &Path) -> Result<Option<Arc<Self>>, KeyError> {
        if iss.is_empty() || key.is_empty() {
            return Ok(None);
        }
        let signer = Self { iss: iss.to_owned(), key: Key::parse(key, base)? };
        token(&signer.iss, 0, &signer.key)?;
        Ok(Some(Arc::new(signer)))
    }

    /// The value of `Grip-Sig`, good for an hour from `now` in Unix seconds. Costs up to milliseconds for
    /// RSA: see [`Tokens`].
    pub fn token(&self, now: u64) -> Result<HeaderValue, KeyError> {
        self.value(&json!({ "iss": self.iss, "exp": now.saturating_add(LIFE) }))
    }

    /// The same for a stanza: who has sent it, and to whom. No request that came by HTTP gets such a token.
    pub fn stanza_token(&self, now: u64, from: &str, to: &str) -> Result<HeaderValue, KeyError> {
        let xmpp = json!({ "from": from, "to": to });
        self.value(&json!({ "iss": self.iss, "exp": now.saturating_add(LIFE), "xmpp": xmpp }))
    }

    fn value(&self, claims: &Value) -> Result<HeaderValue, KeyError> {
        let token = signed(claims, &self.key)?;
        Ok(HeaderValue::try_from(token).expect("a JWT is base64 and dots"))
    }
}

/// One shard's recent tokens, one a signer: they say the same to every origin.
#[derive(Debug, Default)]
pub struct Tokens(HashMap<usize, Signed>);

#[derive(Debug)]
struct Signed {
    at: u64,
    token: HeaderValue,
    /// While it lives, no other signer can have its address, which is the key of the map.
    _signer: Arc<Signer>,
}

impl Tokens {
    /// A token of `signer` that was made at most [`REUSE`] seconds before `now`.
    pub fn get(&mut self, signer: &Arc<Signer>, now: u64) -> Result<HeaderValue, KeyError> {
        let fresh = |signed: &Signed| (signed.at..=signed.at.saturating_add(REUSE)).contains(&now);
        let address = Arc::as_ptr(signer).addr();
        if let Some(signed) = self.0.get(&address).filter(|signed| fresh(signed)) {
            return Ok(signed.token.clone());
        }
        self.0.retain(|_, signed| fresh(signed));
        let token = signer.token(now)?;
        let signed = Signed { at: now, token: token.clone(), _signer: Arc::clone(signer) };
        self.0.insert(address, signed);
        Ok(token)
    }
}

/// Verifies tokens of one key.
pub struct Verifier {
    key: Key,
    validation: Validation,
}

impl Verifier {
    /// `None` when the key is empty: then no token is good.
    pub fn load(key: &str, base: &Path) -> Result<Option<Self>, KeyError> {
        if key.is_empty() { Ok(None) } else { Ok(Some(Self::new(Key::parse(key, base)?))) }
    }

    pub fn new(key: Key) -> Self {
        let mut validation = Validation::new(key.algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        Self { key, validation }
    }

    /// Is the token signed with this key, and valid at `now` (Unix seconds)?
    pub fn verify(&self, token: &[u8], now: u64) -> bool {
        self.claims(token, now).is_some()
    }

    /// The Unix second from which on the token is not good any more, if it is at `now`.
    pub fn good_until(&self, token: &[u8], now: u64) -> Option<u64> {
        let exp = self.claims(token, now)?.get("exp")?.as_f64()?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is later than now; saturates"
        )]
        Some(exp.ceil() as u64)
    }

    /// The claims of a token for which [`Verifier::verify`] holds. `iss` is for the caller to judge.
    pub fn claims(&self, token: &[u8], now: u64) -> Option<Map<String, Value>> {
        let token = jsonwebtoken::decode(token, &self.key.verifies, &self.validation).ok()?;
        let claims: Map<String, Value> = token.claims;
        let time = |name: &str| claims.get(name).map(|value| value.as_f64().ok_or(()));
        #[expect(clippy::cast_precision_loss, reason = "Unix seconds are far below 2^53")]
        let now = now as f64;
        let in_time = matches!(time("exp"), Some(Ok(exp)) if exp > now)
            && time("nbf").is_none_or(|nbf| nbf.is_ok_and(|nbf| nbf <= now));
        let for_us = token.header.crit.is_none() && !claims.contains_key("aud");
        (in_time && for_us).then_some(claims)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Verifier").field(&self.key).finish()
    }
}

fn hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let (pairs, []) = text.as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// Seconds that a token is good for (spec 1.4).
const LIFE: u64 = 3600;

/// Seconds that a token is used again: an origin still sees nearly the whole of [`LIFE`].
const REUSE: u64 = 5;

/// Bytes of an uncompressed point (SEC 1, 2.3.3).
const P256_POINT: usize = 65;

/// Bytes; RS256 asks for 2048 bits (RFC 7518 3.3).
const RSA_MODULUS: usize = 256;

/// Padding may be left out.
const BASE64: base64::engine::GeneralPurpose = base64::engine::GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    base64::engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

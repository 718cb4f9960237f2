//! Signatures of webhooks as the Standard Webhooks specification has them: over id, time and body, by a shared secret
//! (`v1`, HMAC-SHA256) or a key pair (`v1a`, Ed25519). Secrets are printed by [`Secret::text`] alone.

use std::fmt;

use aws_lc_rs::{
    hmac,
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine, prelude::BASE64_STANDARD as BASE64};

/// What an endpoint's webhooks are signed with.
#[derive(Clone, Eq, PartialEq)]
pub enum Secret {
    /// `whsec_…`: 24 to 64 bytes.
    Shared(Vec<u8>),
    /// `whsk_…`: the seed of a private key; its public half is `whpk_…`.
    Private([u8; SEED]),
}

/// Why a text is no secret. Says nothing of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a secret is whsec_ and 24 to 64 bytes in base64, or whsk_ and an Ed25519 seed of 32 bytes in base64"
)]
pub struct SecretError;

impl Secret {
    /// The prefix `whsec_` may be left out.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let decode = |text: &str| BASE64.decode(text).map_err(|_| SecretError);
        if let Some(text) = text.strip_prefix(PRIVATE) {
            let bytes = decode(text)?;
            // Some write the public half behind the seed.
            let seed = bytes.get(..SEED).filter(|_| matches!(bytes.len(), SEED | PAIR)).ok_or(SecretError)?;
            let secret = Self::Private(seed.try_into().map_err(|_| SecretError)?);
            let public = secret.public_bytes().ok_or(SecretError)?;
            let fits = bytes.get(SEED..).is_some_and(|rest| rest.is_empty() || rest == public);
            return if fits { Ok(secret) } else { Err(SecretError) };
        }
        let bytes = decode(text.strip_prefix(SHARED).unwrap_or(text))?;
        if (24..=64).contains(&bytes.len()) { Ok(Self::Shared(bytes)) } else { Err(SecretError) }
    }

    /// As it is given to its owner.
    pub fn text(&self) -> String {
        match self {
            Self::Shared(bytes) => format!("{SHARED}{}", BASE64.encode(bytes)),
            Self::Private(seed) => format!("{PRIVATE}{}", BASE64.encode(seed)),
        }
    }

    /// What a receiver verifies with, when that is not the secret itself.
    pub fn public(&self) -> Option<String> {
        Some(format!("{PUBLIC}{}", BASE64.encode(self.public_bytes()?)))
    }

    fn public_bytes(&self) -> Option<Vec<u8>> {
        let Self::Private(seed) = self else { return None };
        Some(Ed25519KeyPair::from_seed_unchecked(seed).ok()?.public_key().as_ref().to_vec())
    }

    fn sign(&self, content: &[u8]) -> Option<String> {
        match self {
            Self::Shared(bytes) => {
                let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, bytes), content);
                Some(format!("v1,{}", BASE64.encode(tag)))
            }
            Self::Private(seed) => {
                let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
                Some(format!("v1a,{}", BASE64.encode(pair.sign(content))))
            }
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared(_) => "Shared",
            Self::Private(_) => "Private",
        })
    }
}

/// The value of `webhook-signature`: one signature a secret, so that a receiver that has any of them is content.
/// `timestamp` is in Unix seconds.
pub fn signatures(secrets: &[Secret], id: &str, timestamp: u64, body: &[u8]) -> String {
    let mut content = format!("{id}.{timestamp}.").into_bytes();
    content.extend_from_slice(body);
    let signatures: Vec<String> = secrets.iter().filter_map(|secret| secret.sign(&content)).collect();
    signatures.join(" ")
}

const SHARED: &str = "whsec_";
const PRIVATE: &str = "whsk_";
const PUBLIC: &str = "whpk_";
/// Bytes of an Ed25519 seed, and of a seed with the public key behind it.
pub const SEED: usize = 32;
const PAIR: usize = 64;

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";

    /// The vector of the reference libraries.
    #[test]
    fn a_shared_secret() {
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let signed = signatures(std::slice::from_ref(&secret), ID, 1_614_265_330, body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let other = Secret::Shared(vec![7; 24]);
        let both = signatures(&[other, secret], ID, 1_614_265_330, body);
        assert_eq!(both.split(' ').nth(1), Some(signed.as_str()));
    }

    /// RFC 8032 7.1, test 1.
    #[test]
    fn a_key_pair() {
        let secret = Secret::parse("whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=").unwrap();
        assert_eq!(secret.public().as_deref(), Some("whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="));
        let signed = signatures(std::slice::from_ref(&secret), ID, 7, b"body");
        let bytes = BASE64.decode(signed.strip_prefix("v1a,").unwrap()).unwrap();
        let public = UnparsedPublicKey::new(&ED25519, secret.public_bytes().unwrap());
        assert!(public.verify(format!("{ID}.7.body").as_bytes(), &bytes).is_ok());
        assert!(public.verify(format!("{ID}.8.body").as_bytes(), &bytes).is_err());
    }

    #[test]
    fn what_is_no_secret() {
        let short = format!("whsec_{}", BASE64.encode([0; 23]));
        let long = format!("whsec_{}", BASE64.encode([0; 65]));
        let torn = format!("whsk_{}", BASE64.encode([1; 64]));
        for bad in ["", "whsec_", "whsec_%", "whsk_AAAA", "whpk_AAAA", &short, &long, &torn] {
            assert_eq!(Secret::parse(bad), Err(SecretError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_secret_is_read_back_and_not_printed(bytes in prop::collection::vec(any::<u8>(), 24..=64), seed: [u8; SEED]) {
            for secret in [Secret::Shared(bytes), Secret::Private(seed)] {
                prop_assert_eq!(Secret::parse(&secret.text()), Ok(secret.clone()));
                let printed = format!("{secret:?}");
                prop_assert!(printed.len() < 8);
            }
        }
    }
}

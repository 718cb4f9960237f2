use aws_lc_rs::{
    encoding::{AsDer, EcPrivateKeyRfc5915Der, Pkcs8V1Der, PublicKeyX509Der},
    signature::ECDSA_P384_SHA384_ASN1_SIGNING,
};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::*;

const NOW: u64 = 1_800_000_000;

/// A folder with a key of every form, made for one test.
struct Keys {
    folder: tempfile::TempDir,
}

impl Keys {
    fn new() -> Self {
        let keys = Self { folder: tempfile::tempdir().unwrap() };
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        keys.pem("ec", "PRIVATE KEY", ec.to_pkcs8v1().unwrap().as_ref());
        let sec1: EcPrivateKeyRfc5915Der<'_> = ec.private_key().as_der().unwrap();
        keys.pem("ec-sec1", "EC PRIVATE KEY", sec1.as_ref());
        let public: PublicKeyX509Der<'_> = ec.public_key().as_der().unwrap();
        keys.pem("ec-public", "PUBLIC KEY", public.as_ref());
        let rsa = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
        let pkcs8: Pkcs8V1Der<'_> = rsa.as_der().unwrap();
        keys.pem("rsa", "PRIVATE KEY", pkcs8.as_ref());
        // PKCS#8 wraps the PKCS#1 key of this size in 26 bytes (RFC 5958 2).
        keys.pem("rsa-pkcs1", "RSA PRIVATE KEY", &pkcs8.as_ref()[26..]);
        let public: PublicKeyX509Der<'_> = rsa.public_key().as_der().unwrap();
        keys.pem("rsa-public", "PUBLIC KEY", public.as_ref());
        let other = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).unwrap();
        keys.pem("p384", "PRIVATE KEY", other.to_pkcs8v1().unwrap().as_ref());
        let public: PublicKeyX509Der<'_> = other.public_key().as_der().unwrap();
        keys.pem("p384-public", "PUBLIC KEY", public.as_ref());
        keys
    }

    fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.folder.path().join(name), content).unwrap();
    }

    fn pem(&self, name: &str, label: &str, der: &[u8]) {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
        let lines = lines.join("\n");
        self.write(name, format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n").as_bytes());
    }

    fn parse(&self, spec: &str) -> Result<Key, KeyError> {
        Key::parse(spec, self.folder.path())
    }

    fn key(&self, spec: &str) -> Key {
        self.parse(spec).unwrap_or_else(|error| panic!("{spec}: {error}"))
    }

    fn text(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }
}

fn part(text: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// A token with this header and claims, byte for byte, under any algorithm's signature.
fn signed(header: &str, claims: &str, key: &Key, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", part(header), part(claims));
    let signs = key.signs.as_ref().expect("a key that signs");
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), signs, algorithm).unwrap();
    format!("{message}.{signature}")
}

#[test]
fn forms_of_a_key() {
    let keys = Keys::new();
    keys.write("hex", b" \n6b6579FF\n ");
    assert_eq!(keys.key("key").as_secret(), Some(&b"key"[..]));
    assert_eq!(keys.key("base64:a2V5").as_secret(), Some(&b"key"[..]));
    assert_eq!(keys.key("base64:a2V5MQ==").as_secret(), Some(&b"key1"[..]));
    assert_eq!(keys.key("base64:a2V5MQ").as_secret(), Some(&b"key1"[..]));
    assert_eq!(keys.key("file:hex").as_secret(), Some(&b"key\xff"[..]));
    let absolute = format!("file:{}", keys.folder.path().join("hex").display());
    assert_eq!(Key::parse(&absolute, "/nowhere".as_ref()).unwrap().as_secret(), Some(&b"key\xff"[..]));
    for (name, algorithm) in [
        ("ec", Algorithm::ES256),
        ("ec-sec1", Algorithm::ES256),
        ("ec-public", Algorithm::ES256),
        ("rsa", Algorithm::RS256),
        ("rsa-pkcs1", Algorithm::RS256),
        ("rsa-public", Algorithm::RS256),
    ] {
        let key = keys.key(&format!("file:{name}"));
        assert_eq!((key.algorithm, key.as_secret()), (algorithm, None), "{name}");
        assert_eq!(key.signs.is_none(), name.ends_with("public"), "{name}");
    }
}

#[test]
fn bad_keys_are_refused() {
    let keys = Keys::new();
    keys.write("empty", b" \n");
    keys.write("odd", b"abc");
    keys.write("not-hex", b"secret");
    keys.write("not-pem", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    keys.write("cut", &keys.text("rsa")[..400]);
    for (spec, part) in [
        ("", "empty"),
        ("base64:", "empty"),
        ("base64:!", "not base64"),
        ("file:empty", "empty"),
        ("file:missing", "No such file"),
        ("file:odd", "nor a secret in hex"),
        ("file:not-hex", "nor a secret in hex"),
        ("file:not-pem", "not a P-256 key"),
        ("file:cut", "not a P-256 key"),
        ("file:p384", "not a P-256 key"),
        ("file:p384-public", "not a P-256 key"),
    ] {
        let error = keys.parse(spec).expect_err(spec).to_string();
        assert!(error.contains(part), "{spec}: {error}");
    }
    assert!(matches!(Signer::load("i", "file:ec-public", keys.folder.path()), Err(KeyError::Public)));
}

#[test]
fn keys_are_not_printed() {
    let folder = Path::new("");
    let signer = Signer::load("iss", "changeme", folder).unwrap();
    let verifier = Verifier::load("changeme", folder).unwrap();
    assert!(!format!("{signer:?}{verifier:?}").contains("changeme"));
}

#[test]
fn a_token_says_who_and_until_when() {
    let signer = Signer::load("pushpin", "changeme", "".as_ref()).unwrap().expect("both are given");
    let token = signer.token(NOW).unwrap();
    let parts: Vec<&str> = token.to_str().unwrap().split('.').collect();
    let json = |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    assert_eq!(json(parts[0]), json!({ "typ": "JWT", "alg": "HS256" }));
    assert_eq!(json(parts[1]), json!({ "iss": "pushpin", "exp": NOW + 3600 }));
    let keys = Keys::new();
    for (private, public) in [
        ("ec", "ec"),
        ("ec", "ec-public"),
        ("ec-sec1", "ec-public"),
        ("rsa", "rsa-pkcs1"),
        ("rsa-pkcs1", "rsa-public"),
    ] {
        let token = token_of(&keys.key(&format!("file:{private}")));
        assert!(
            Verifier::new(keys.key(&format!("file:{public}"))).verify(token.as_bytes(), NOW),
            "{private}"
        );
    }
}

fn token_of(key: &Key) -> String {
    token("i", NOW + 1, key).unwrap()
}

#[test]
fn without_issuer_or_key_nothing_is_signed_or_verified() {
    assert!(Signer::load("", "k", "".as_ref()).unwrap().is_none());
    assert!(Signer::load("i", "", "".as_ref()).unwrap().is_none());
    assert!(Verifier::load("", "".as_ref()).unwrap().is_none());
}

#[test]
fn tokens_are_used_again_for_a_while() {
    let signer = |iss| Signer::load(iss, "k", "".as_ref()).unwrap().expect("both are given");
    let (one, two) = (signer("one"), signer("two"));
    let mut tokens = Tokens::default();
    let first = tokens.get(&one, NOW).unwrap();
    assert_eq!(tokens.get(&one, NOW + 5).unwrap(), first);
    assert_ne!(tokens.get(&two, NOW).unwrap(), first);
    let second = tokens.get(&one, NOW + 6).unwrap();
    assert_ne!(second, first);
    assert_eq!(tokens.get(&one, NOW).unwrap(), first, "a clock that went back makes a new one");
    assert_eq!(tokens.0.len(), 1, "what is old is dropped");
}

#[test]
fn a_stanza_has_a_token_of_its_own() {
    let signer = Signer::load("i", "k", "".as_ref()).unwrap().expect("both are given");
    let verifier = Verifier::load("k", "".as_ref()).unwrap().expect("a key");
    let claims =
        |token: HeaderValue| Value::from(verifier.claims(token.as_bytes(), NOW).expect("it is good"));
    let exp = NOW + LIFE;
    assert_eq!(claims(signer.token(NOW).unwrap()), json!({ "iss": "i", "exp": exp }));
    let stanza = signer.stanza_token(NOW, "a@b/c", "bot@d").unwrap();
    assert_eq!(claims(stanza), json!({ "iss": "i", "exp": exp, "xmpp": { "from": "a@b/c", "to": "bot@d" } }));
}

/// Security row 18: of all these tokens, one is good.
fn corpus(keys: &Keys, key: &Key, stranger: &Key, public_text: &[u8]) -> Vec<(&'static str, String)> {
    let own = key.algorithm;
    let name = format!("{own:?}");
    let header = |extra: &str| format!(r#"{{"alg":"{name}"{extra}}}"#);
    let claims = |extra: &str| format!(r#"{{"iss":"i","exp":{}{extra}}}"#, NOW + 60);
    let good = signed(&header(r#","typ":"JWT""#), &claims(""), key, own);
    let [head, body, signature]: [&str; 3] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let with = |header: &str, claims: &str| signed(header, claims, key, own);
    let exp = |exp: &str| with(&header(""), &format!(r#"{{"iss":"i","exp":{exp}}}"#));
    let renamed = |alg: &str| format!("{}.{body}.{signature}", part(format!(r#"{{"alg":"{alg}"}}"#)));
    let hmac = |secret: &[u8]| {
        signed(r#"{"alg":"HS256"}"#, &claims(""), &Key::secret(secret).unwrap(), Algorithm::HS256)
    };
    let mut flipped = URL_SAFE_NO_PAD.decode(signature).unwrap();
    flipped[0] ^= 1;
    let mut tokens = vec![
        ("alg none", renamed("none")),
        ("alg none, no signature", format!("{}.{body}.", part(r#"{"alg":"none"}"#))),
        ("alg None", renamed("None")),
        ("alg empty", renamed("")),
        ("alg missing", format!("{}.{body}.{signature}", part("{}"))),
        ("alg null", format!("{}.{body}.{signature}", part(r#"{"alg":null}"#))),
        ("alg twice", with(&format!(r#"{{"alg":"none","alg":"{name}"}}"#), &claims(""))),
        ("alg in lower case", with(&header("").to_lowercase(), &claims(""))),
        ("HS384", renamed("HS384")),
        ("RS512", renamed("RS512")),
        ("ES384", renamed("ES384")),
        ("PS256", renamed("PS256")),
        ("EdDSA", renamed("EdDSA")),
        ("HMAC with the public key's text", hmac(public_text)),
        ("HMAC with a zero byte", hmac(&[0])),
        ("crit", with(&header(r#","crit":["exp"]"#), &claims(""))),
        ("crit empty", with(&header(r#","crit":[]"#), &claims(""))),
        ("another key", signed(&header(""), &claims(""), stranger, own)),
        ("another key, kid", signed(&header(r#","kid":"../../dev/null""#), &claims(""), stranger, own)),
        ("no exp", with(&header(""), r#"{"iss":"i"}"#)),
        ("exp null", exp("null")),
        ("exp as text", exp(&format!("\"{}\"", NOW + 60))),
        ("exp true", exp("true")),
        ("exp a list", exp(&format!("[{}]", NOW + 60))),
        ("exp zero", exp("0")),
        ("exp negative", exp("-1")),
        ("exp now", exp(&NOW.to_string())),
        ("exp past", exp(&(NOW - 1).to_string())),
        ("nbf ahead", with(&header(""), &claims(&format!(r#","nbf":{}"#, NOW + 1)))),
        ("nbf as text", with(&header(""), &claims(r#","nbf":"0""#))),
        ("aud", with(&header(""), &claims(r#","aud":"i""#))),
        ("aud null", with(&header(""), &claims(r#","aud":null"#))),
        ("aud empty", with(&header(""), &claims(r#","aud":[]"#))),
        ("claims a list", with(&header(""), "[]")),
        ("claims no JSON", with(&header(""), "{")),
        ("header no JSON", with("{", &claims(""))),
        ("no signature", format!("{head}.{body}.")),
        ("two parts", format!("{head}.{body}")),
        ("four parts", format!("{good}.{signature}")),
        ("signature flipped", format!("{head}.{body}.{}", part(&flipped))),
        ("signature of zeros", format!("{head}.{body}.{}", part(vec![0; flipped.len()]))),
        ("signature too short", format!("{head}.{body}.{}", part(&flipped[1..]))),
        ("signature of another token", format!("{head}.{}.{signature}", part(claims(r#","x":1"#)))),
        ("padded", format!("{head}.{body}.{signature}=")),
        ("white space", format!(" {good}")),
        ("empty", String::new()),
        ("good", good.clone()),
    ];
    tokens.push(match own {
        Algorithm::HS256 => {
            ("RSA", signed(r#"{"alg":"RS256"}"#, &claims(""), &keys.key("file:rsa"), Algorithm::RS256))
        }
        _ => ("HMAC with the public key's bytes", hmac(key.verifies.try_get_as_bytes().unwrap())),
    });
    tokens
}

#[test]
fn one_token_of_many_is_good() {
    let (keys, strangers) = (Keys::new(), Keys::new());
    for (own, stranger, public) in [
        ("secret", "other", "ec-public"),
        ("file:ec", "file:ec", "ec-public"),
        ("file:rsa", "file:rsa", "rsa-public"),
    ] {
        let key = keys.key(own);
        let tokens = corpus(&keys, &key, &strangers.key(stranger), &keys.text(public));
        assert!(tokens.len() >= 40, "{}", tokens.len());
        let private = Verifier::new(keys.key(own));
        let accepted = |verifier: &Verifier| -> Vec<&str> {
            let good = tokens.iter().filter(|(_, token)| verifier.verify(token.as_bytes(), NOW));
            good.map(|(what, _)| *what).collect()
        };
        assert_eq!(accepted(&private), ["good"], "{own}");
        if own != "secret" {
            assert_eq!(accepted(&Verifier::new(keys.key(&format!("file:{public}")))), ["good"], "{own}");
        }
    }
}

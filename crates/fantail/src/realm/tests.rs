use std::path::PathBuf;

use super::*;
use crate::config;

const NOW: u64 = 1_800_000_000;

/// A configuration with these realms and their keys.
fn config(realms: &[(&str, &[&str])]) -> Config {
    let realm = |(id, keys): &(&str, &[&str])| config::Realm {
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        ..config::Realm::bare(id)
    };
    crate::route::tests::config(PathBuf::new(), &[], realms.iter().map(realm).collect())
}

fn realms(realms: &[(&str, &[&str])]) -> Realms {
    Realms::load(&config(realms), None).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn jwt(iss: &str, exp: u64, key: &str) -> String {
    let key = Key::parse(key, "".as_ref()).unwrap();
    format!("Bearer {}", crate::sign::token(iss, exp, &key).unwrap())
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[test]
fn who_may_publish_where() {
    let realms =
        realms(&[("default", &["d"]), ("a", &["k1", "base64:a2V5"]), ("b", &["k2"]), ("keyless", &[])]);
    let later = NOW + 60;
    let table = [
        ("a", jwt("a", later, "k1"), true),
        ("a", jwt("a", later, "base64:a2V5"), true),
        ("a", jwt("a", later, "key"), true),
        ("a", jwt("a", NOW, "k1"), false),
        ("a", jwt("b", later, "k1"), false),
        ("a", jwt("A", later, "k1"), false),
        ("a", jwt("", later, "k1"), false),
        ("a", jwt("a", later, "k2"), false),
        ("a", jwt("b", later, "k2"), false),
        ("b", jwt("b", later, "k2"), true),
        ("b", jwt("a", later, "k1"), false),
        ("default", jwt("anyone", later, "d"), true),
        ("default", jwt("a", later, "k1"), false),
        ("a", "Bearer k1".into(), true),
        ("a", "bearer  k1 ".into(), true),
        ("a", "Bearer key".into(), true),
        ("a", "Bearer a2V5".into(), true),
        ("a", "Bearer base64:a2V5".into(), false),
        ("a", "Bearer k2".into(), false),
        ("a", "Bearer".into(), false),
        ("a", "Bearer ".into(), false),
        ("a", "k1".into(), false),
        ("a", "Digest k1".into(), false),
        ("default", "Bearer d".into(), true),
        ("default", "Bearer k1".into(), false),
        ("a", basic("a", "k1"), true),
        ("a", basic("a", "a2V5"), true),
        ("a", basic("b", "k1"), false),
        ("a", basic("", "k1"), false),
        ("a", basic("a", ""), false),
        ("a", basic("a", "k2"), false),
        ("a", "Basic !".into(), false),
        ("a", format!("Basic {}", STANDARD.encode("k1")), false),
        ("default", basic("anyone", "d"), true),
        ("keyless", jwt("keyless", later, "k1"), false),
        ("keyless", "Bearer ".into(), false),
        ("unknown", jwt("unknown", later, "k1"), false),
        ("unknown", "Bearer k1".into(), false),
        ("", "Bearer k1".into(), false),
    ];
    for (realm, header, wanted) in table {
        let header = HeaderValue::from_str(&header).unwrap();
        let got = realms.authorize(realm, Some(&header), NOW);
        assert_eq!(got, realms.get(realm).filter(|_| wanted).ok_or(Denied), "{realm} {header:?}");
    }
    for realm in ["default", "a", "keyless", "unknown"] {
        assert_eq!(realms.authorize(realm, None, NOW), Err(Denied), "{realm}");
    }
}

#[test]
fn the_default_realm_is_open_until_it_has_keys() {
    let open = realms(&[("a", &["k"])]);
    let nonsense = HeaderValue::from_static("nonsense");
    assert!(open.is_open());
    assert_eq!(open.authorize("default", None, NOW), Ok(RealmId(0)));
    assert_eq!(open.authorize("default", Some(&nonsense), NOW), Ok(RealmId(0)));
    assert_eq!(open.authorize("a", None, NOW), Err(Denied));
    assert!(!realms(&[("default", &["k"])]).is_open());
}

#[test]
fn a_realm_keeps_its_number() {
    let first = Realms::load(&config(&[("a", &[]), ("b", &[])]), None).unwrap();
    let numbers = [first.get("default"), first.get("a"), first.get("b")];
    assert_eq!(numbers, [Some(RealmId(0)), Some(RealmId(1)), Some(RealmId(2))]);
    let second = Realms::load(&config(&[("c", &[]), ("b", &[])]), Some(&first)).unwrap();
    assert_eq!(
        [second.get("a"), second.get("b"), second.get("c")],
        [None, Some(RealmId(2)), Some(RealmId(3))]
    );
    let third = Realms::load(&config(&[("a", &[])]), Some(&second)).unwrap();
    assert_eq!([third.get("a"), third.get("b")], [Some(RealmId(1)), None]);
}

#[test]
fn all_bad_keys_are_told() {
    let bad = config(&[("a", &["k", "", "base64:!"]), ("b", &["file:missing"])]);
    let errors: Vec<String> =
        Realms::load(&bad, None).expect_err("bad keys").iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(errors[0].starts_with("realm \"a\": key 2: the key is empty"), "{errors:?}");
    assert!(errors[1].starts_with("realm \"a\": key 3: "), "{errors:?}");
    assert!(errors[2].starts_with("realm \"b\": key 1: missing: "), "{errors:?}");
}

#[test]
fn an_unknown_realm_costs_as_much_as_a_known_one() {
    let realms = realms(&[("a", &["k1", "k2", "k3"])]);
    assert_eq!(realms.tries, 3);
    let text = |realm| realms.authorize(realm, None, NOW).unwrap_err().to_string();
    assert_eq!(text("a"), text("unknown"));
}

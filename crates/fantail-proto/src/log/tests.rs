use proptest::prelude::*;

use super::*;
use crate::item::Item;

const ROOMY: Limits = Limits { items: 1000, bytes: 1 << 20, age_s: 1000 };

fn entry(id: Option<&str>, at_s: u32) -> Entry {
    let item = Item { id: id.map(Into::into), ..Item::default() };
    Entry::new(item.to_record().into(), at_s)
}

fn ring(ids: std::ops::Range<u32>) -> Ring {
    let mut ring = Ring::new(7);
    for id in ids {
        keep(&mut ring, entry(Some(&id.to_string()), id));
    }
    ring
}

fn keep(ring: &mut Ring, entry: Entry) -> Place {
    let place = ring.push(entry);
    ring.keep(place.position);
    place
}

fn ids(ring: &Ring, from: &Start, now_s: u32) -> Option<Vec<String>> {
    let after = ring.after(from, now_s)?;
    Some(ring.behind(after).map(|entry| entry.id().unwrap_or_default().to_owned()).collect())
}

fn from(id: &str) -> Start {
    Start::Id(id.into())
}

#[test]
fn what_an_id_proves() {
    let mut log = ring(0..5);
    assert_eq!(ids(&log, &from("2"), 9).unwrap(), ["3", "4"]);
    assert!(ids(&log, &from("4"), 9).unwrap().is_empty());
    assert_eq!(ids(&log, &from("5"), 9), None);
    log.trim(&Limits { items: 2, ..ROOMY }, 9);
    assert_eq!(ids(&log, &from("3"), 9).unwrap(), ["4"]);
    assert_eq!(ids(&log, &from("2"), 9), None, "what came behind it is there, but it is not known any more");
    keep(&mut log, entry(None, 9));
    keep(&mut log, entry(Some("3"), 9));
    assert!(ids(&log, &from("3"), 9).unwrap().is_empty(), "of repeated ids the newest counts");
    assert_eq!(ids(&log, &from("4"), 9).unwrap(), ["", "3"]);
}

/// What has let go of items may have had any.
#[test]
fn what_it_never_had() {
    let mut short = ring(1..4);
    assert!(short.may_have_had("3") && !short.may_have_had("9"));
    short.drop_oldest();
    assert!(short.may_have_had("1") && short.may_have_had("9"));
    let long = ring(1..LOOKED_THROUGH as u32 + 2);
    assert!(long.first() == 1 && long.may_have_had("none"));
}

#[test]
fn what_a_place_proves() {
    let mut log = ring(0..5);
    let at = |epoch, position| Start::Place(Place { epoch, position });
    assert_eq!(ids(&log, &at(7, 3), 9).unwrap(), ["3", "4"]);
    assert_eq!(ids(&log, &at(7, 0), 9).unwrap().len(), 5);
    assert!(ids(&log, &at(7, 5), 9).unwrap().is_empty());
    assert_eq!(ids(&log, &at(7, 6), 9), None, "a position of the future is another log's");
    assert_eq!(ids(&log, &at(8, 3), 9), None);
    log.trim(&Limits { items: 2, ..ROOMY }, 9);
    assert_eq!(ids(&log, &at(7, 3), 9).unwrap(), ["3", "4"], "nothing behind it is gone");
    assert_eq!(ids(&log, &at(7, 2), 9), None);
}

#[test]
fn late_joiners_get_the_newest() {
    let log = ring(0..5);
    assert_eq!(ids(&log, &Start::Last(2), 9).unwrap(), ["3", "4"]);
    assert_eq!(ids(&log, &Start::Last(9), 9).unwrap().len(), 5);
    assert!(ids(&log, &Start::Last(0), 9).unwrap().is_empty());
    assert_eq!(ids(&log, &Start::Since(6), 9).unwrap(), ["3", "4"]);
    assert!(ids(&Ring::new(1), &Start::Last(3), 9).unwrap().is_empty());
}

#[test]
fn what_late_joiners_ask_for() {
    for (last, since, expected) in [
        (None, None, Ok(None)),
        (Some("20"), None, Ok(Some(Start::Last(20)))),
        (None, Some("60s"), Ok(Some(Start::Since(60)))),
        (None, Some("60"), Ok(Some(Start::Since(60)))),
        (None, Some("5m"), Ok(Some(Start::Since(300)))),
        (None, Some("2h"), Ok(Some(Start::Since(7200)))),
        (Some("1"), Some("1s"), Ok(Some(Start::Last(1)))),
        (Some("-1"), None, Err(Unreadable)),
        (Some("+1"), None, Err(Unreadable)),
        (Some(""), None, Err(Unreadable)),
        (None, Some("s"), Err(Unreadable)),
        (None, Some("1d"), Err(Unreadable)),
        (None, Some("1ö"), Err(Unreadable)),
        (Some("99999999999"), None, Err(Unreadable)),
        (None, Some("4294967295h"), Ok(Some(Start::Since(u32::MAX)))),
    ] {
        assert_eq!(Start::late(last, since), expected, "{last:?} {since:?}");
    }
}

#[test]
fn limits() {
    let mut log = ring(0..5);
    let bytes = log.bytes();
    assert_eq!(log.trim(&ROOMY, 9), 0);
    assert_eq!(log.trim(&Limits { bytes: bytes - 1, ..ROOMY }, 9), bytes / 5);
    assert_eq!((log.first(), log.next(), log.len()), (2, 6, 4));
    log.trim(&Limits { age_s: 6, ..ROOMY }, 9);
    assert_eq!(ids(&log, &Start::Last(9), 9).unwrap(), ["4"]);
    log.trim(&Limits { items: 0, bytes: 0, ..ROOMY }, 9);
    assert_eq!(log.len(), 1, "the newest stays");
    log.trim(&Limits { age_s: 5, ..ROOMY }, 9);
    assert!(log.is_empty() && log.next() == 6 && log.bytes() == 0);
}

/// Nobody is given what is pending, nothing is dropped for it, and what is not kept leaves no trace.
#[test]
fn what_is_pending_is_not_there_yet() {
    let mut log = ring(0..5);
    let bytes = log.bytes();
    let places: Vec<u64> = (5..8).map(|id| log.push(entry(Some(&id.to_string()), id)).position).collect();
    assert_eq!((log.end(), log.next(), log.len(), log.newest_id()), (6, 9, 8, Some("7")));
    assert_eq!(ids(&log, &from("2"), 9).unwrap(), ["3", "4"]);
    assert_eq!(ids(&log, &from("5"), 9), None);
    assert_eq!(ids(&log, &Start::Last(2), 9).unwrap(), ["3", "4"]);
    assert_eq!(ids(&log, &Start::Since(3), 9).unwrap(), Vec::<String>::new());
    assert_eq!(log.trim(&Limits { items: 5, bytes, ..ROOMY }, 9), 0);
    log.keep(places[1]);
    assert_eq!(ids(&log, &from("4"), 9).unwrap(), ["5", "6"]);
    log.trim(&Limits { items: 2, ..ROOMY }, 9);
    assert_eq!((log.first(), log.len()), (6, 3));
    assert_eq!(log.drop_pending(), (1, bytes / 5));
    assert!(!log.has_pending());
    assert_eq!(ids(&log, &from("5"), 9).unwrap(), ["6"]);
    assert_eq!(
        keep(&mut log, entry(Some("8"), 9)).position,
        places[2],
        "nobody has seen what had this place"
    );
    log.push(entry(Some("9"), 9));
    log.trim(&Limits { age_s: 0, ..ROOMY }, 9);
    assert_eq!((log.len(), log.drop_oldest()), (1, 0));
}

#[test]
fn patterns() {
    for (pattern, name, expected) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("*", "", true),
        ("*", "anything", true),
        ("room-*", "room-", true),
        ("room-*", "room-1", true),
        ("room-*", "rooms", false),
        ("*-x", "a-x", true),
        ("*-x", "-xa", false),
        ("a*a", "a", false),
        ("a*a", "aa", true),
        ("a*b*c", "a-b-c", true),
        ("a*b*c", "acb", false),
        ("a*b*b", "ab", false),
        ("**", "x", true),
        ("ä*", "äö", true),
    ] {
        assert_eq!(Pattern::new(pattern).fits(name), expected, "{pattern} {name}");
    }
}

proptest! {
    /// What is behind an id is what was pushed after it, all of it, or nothing is said.
    #[test]
    fn a_proof_is_a_stretch_without_holes(
        pushed in prop::collection::vec(0u32..40, 1..120),
        items in 1usize..50,
        asked in 0u32..40,
    ) {
        let mut log = Ring::new(1);
        for (n, id) in pushed.iter().enumerate() {
            let place = keep(&mut log, entry(Some(&id.to_string()), n as u32));
            prop_assert_eq!(place, Place { epoch: 1, position: n as u64 + 1 });
            log.trim(&Limits { items, ..ROOMY }, n as u32);
            prop_assert!(log.len() <= items);
        }
        if let Some(behind) = ids(&log, &from(&asked.to_string()), 0) {
            let at = pushed.iter().rposition(|id| *id == asked).unwrap();
            let expected: Vec<String> = pushed[at + 1..].iter().map(u32::to_string).collect();
            prop_assert_eq!(behind, expected);
        }
    }

    /// The matching of patterns agrees with one that tries everything.
    #[test]
    fn patterns_agree_with_a_search(pattern in "[ab*]{0,7}", name in "[ab]{0,9}") {
        fn search(pattern: &[u8], name: &[u8]) -> bool {
            match pattern.split_first() {
                None => name.is_empty(),
                Some((b'*', rest)) => (0..=name.len()).any(|skip| search(rest, &name[skip..])),
                Some((c, rest)) => name.first() == Some(c) && search(rest, &name[1..]),
            }
        }
        prop_assert_eq!(Pattern::new(&pattern).fits(&name), search(pattern.as_bytes(), name.as_bytes()));
    }
}

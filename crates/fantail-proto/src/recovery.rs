//! How far a subscriber is in a channel, and what is done when an item does not follow (spec 4.3, 4.4). Decisions only:
//! who asks, writes or closes is told by them.

/// What an item is to a subscriber that has everything up to a position.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// It follows.
    Deliver,
    /// It is the one that the subscriber has last: its origin knew of it already.
    Skip,
    /// Something between is missing.
    Gap,
}

/// An item that does not say what it follows cannot be shown to follow.
pub fn step(position: &str, id: Option<&str>, prev_id: Option<&str>) -> Step {
    if prev_id == Some(position) {
        Step::Deliver
    } else if id == Some(position) {
        Step::Skip
    } else {
        Step::Gap
    }
}

/// The same where nothing can be missing but what the origin and the channel do not agree on: an item that does not say
/// what it follows is taken as it comes.
pub fn step_live(position: &str, id: Option<&str>, prev_id: Option<&str>) -> Step {
    match step(position, id, prev_id) {
        Step::Gap if prev_id.is_none() => Step::Deliver,
        step => step,
    }
}

/// What there is to repair a subscriber's gap with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Means {
    /// Its origin gave a next link.
    pub link: bool,
    /// Its request can be sent to its origin again.
    pub replay: bool,
}

/// What is done about a gap.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Repair {
    /// The next link is fetched, and says where the subscriber is then.
    Link,
    /// The request is sent to its origin again.
    Replay,
    /// The subscriber is closed: it is told that something is missing.
    Close,
}

impl Means {
    /// The best of them.
    pub const fn repair(self) -> Repair {
        match self {
            Self { link: true, .. } => Repair::Link,
            Self { replay: true, .. } => Repair::Replay,
            Self { .. } => Repair::Close,
        }
    }
}

/// What is still to be given of the items of one channel that waited while a subscriber's gap was repaired.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Reconciled {
    /// The places of those that follow, each behind the one that it follows.
    pub deliver: Vec<usize>,
    /// Those that do not follow, and nothing shows that the subscriber has them: the gap is to be repaired again.
    pub left: Vec<usize>,
}

/// Compares what waited, each with its id and prev-id, with the new position. What was published before the origin
/// answered may be in its answer: the item of the position, and those that it follows.
pub fn reconcile(position: &str, waited: &[(Option<&str>, Option<&str>)]) -> Reconciled {
    let mut left: Vec<usize> = (0..waited.len()).collect();
    let mut had = Some(position);
    while let Some(id) = had {
        let place = left.iter().position(|place| waited[*place].0 == Some(id));
        had = place.and_then(|place| waited[left.remove(place)].1);
    }
    let mut deliver = Vec::new();
    let mut last = Some(position);
    while let Some(id) = last {
        let Some(place) = left.iter().position(|place| waited[*place].1 == Some(id)) else { break };
        let place = left.remove(place);
        deliver.push(place);
        last = waited[place].0;
    }
    if last.is_none() {
        // An item without an id ends the tracking.
        let after = deliver.last().copied().unwrap_or_default();
        deliver.extend(left.extract_if(.., |place| *place > after));
    }
    Reconciled { deliver, left }
}

/// The same for items that waited in the order of their channel: everything up to the item of the position is had.
pub fn reconcile_live(position: &str, waited: &[(Option<&str>, Option<&str>)]) -> Reconciled {
    let had = waited.iter().rposition(|(id, _)| *id == Some(position)).map_or(0, |place| place + 1);
    let mut found = Reconciled::default();
    let mut last = Some(position);
    for (place, (id, prev_id)) in waited.iter().enumerate().skip(had) {
        let step = last.map_or(Step::Deliver, |last| step_live(last, *id, *prev_id));
        if found.left.is_empty() && step == Step::Deliver {
            found.deliver.push(place);
            last = *id;
        } else {
            found.left.push(place);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_item_follows_is_known_or_leaves_a_gap() {
        for (id, prev_id, expected) in [
            (Some("8"), Some("7"), Step::Deliver),
            (None, Some("7"), Step::Deliver),
            (Some("7"), Some("6"), Step::Skip),
            (Some("7"), None, Step::Skip),
            (Some("9"), Some("8"), Step::Gap),
            (Some("8"), None, Step::Gap),
            (None, None, Step::Gap),
        ] {
            assert_eq!(step("7", id, prev_id), expected, "{id:?} after {prev_id:?}");
        }
    }

    #[test]
    fn what_waited_in_order() {
        let reconciled = |position: &str, waited: &[(u32, Option<u32>)]| {
            let text: Vec<_> =
                waited.iter().map(|(id, prev)| (id.to_string(), prev.map(|prev| prev.to_string()))).collect();
            let text: Vec<_> = text.iter().map(|(id, prev)| (Some(id.as_str()), prev.as_deref())).collect();
            let Reconciled { deliver, left } = reconcile_live(position, &text);
            let id = |place: &usize| waited[*place].0;
            (deliver.iter().map(id).collect::<Vec<_>>(), left.iter().map(id).collect::<Vec<_>>())
        };
        let chain = |ids: std::ops::Range<u32>| ids.map(|id| (id, Some(id - 1))).collect::<Vec<_>>();
        let loose = |ids: std::ops::Range<u32>| ids.map(|id| (id, None)).collect::<Vec<_>>();
        assert_eq!(reconciled("7", &chain(8..10)), (vec![8, 9], vec![]));
        assert_eq!(reconciled("7", &chain(5..10)), (vec![8, 9], vec![]));
        assert_eq!(reconciled("7", &chain(5..7)), (vec![], vec![5, 6]), "7 is still to come");
        assert_eq!(reconciled("7", &chain(9..11)), (vec![], vec![9, 10]), "8 is missing");
        assert_eq!(reconciled("7", &loose(5..10)), (vec![8, 9], vec![]));
        assert_eq!(
            reconciled("7", &loose(20..22)),
            (vec![20, 21], vec![]),
            "nothing shows that they do not follow"
        );
        assert_eq!(reconciled("7", &[(8, Some(7)), (12, Some(11)), (13, None)]), (vec![8], vec![12, 13]));
    }

    #[test]
    fn the_link_before_the_request_before_the_close() {
        let means = |link, replay| Means { link, replay }.repair();
        assert_eq!(means(true, true), Repair::Link);
        assert_eq!(means(true, false), Repair::Link);
        assert_eq!(means(false, true), Repair::Replay);
        assert_eq!(means(false, false), Repair::Close);
    }

    fn waited(ids: &[u32]) -> Vec<(String, String)> {
        ids.iter().map(|id| (id.to_string(), (id - 1).to_string())).collect()
    }

    fn reconciled(position: &str, ids: &[u32]) -> (Vec<u32>, bool) {
        let waited = waited(ids);
        let waited: Vec<_> =
            waited.iter().map(|(id, prev)| (Some(id.as_str()), Some(prev.as_str()))).collect();
        let Reconciled { deliver, left } = reconcile(position, &waited);
        (deliver.into_iter().map(|place| ids[place]).collect(), !left.is_empty())
    }

    #[test]
    fn what_the_answer_had_is_left_out() {
        assert_eq!(reconciled("7", &[]), (vec![], false));
        assert_eq!(reconciled("7", &[8, 9]), (vec![8, 9], false));
        assert_eq!(reconciled("7", &[5, 6, 7]), (vec![], false));
        assert_eq!(reconciled("7", &[6, 7, 8, 9]), (vec![8, 9], false));
        assert_eq!(reconciled("7", &[6, 5, 7, 9, 8]), (vec![8, 9], false), "in the order of the chain");
        assert_eq!(reconciled("7", &[5, 8, 9]), (vec![8, 9], true), "nothing shows that 5 is in the answer");
        assert_eq!(reconciled("7", &[9, 10]), (vec![], true), "8 is missing");
        assert_eq!(reconciled("7", &[8, 10, 11]), (vec![8], true), "9 is missing");
        assert_eq!(reconciled("9", &[8]), (vec![], true), "nothing shows that 8 is in the answer");
    }

    #[test]
    fn an_item_without_an_id_ends_the_tracking() {
        let waited = [(Some("9"), Some("8")), (None, Some("7")), (Some("x"), None), (Some("y"), Some("z"))];
        assert_eq!(reconcile("7", &waited), Reconciled { deliver: vec![1, 2, 3], left: vec![0] });
    }

    proptest! {
        /// What is given follows the position without a hole. If the gap is not repaired again, all that waited is given,
        /// or is what the position follows.
        #[test]
        fn what_is_given_follows(position in 1..30_u32, ids in prop::collection::hash_set(1..30_u32, 0..20)) {
            let ids: Vec<u32> = ids.into_iter().collect();
            let (given, again) = reconciled(&position.to_string(), &ids);
            let expected: Vec<u32> = (position + 1..).take(given.len()).collect();
            prop_assert_eq!(&given, &expected);
            let explained = |id: &u32| given.contains(id) || (*id..=position).all(|id| ids.contains(&id)) && *id <= position;
            prop_assert_eq!(!again, ids.iter().all(explained));
        }
    }
}

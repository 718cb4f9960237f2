//! Which entities have said that they are there (directed presence), and how. Knows no subscription.

use fantail_proto::xmpp::{jid::Jid, pubsub::Shows, xml::Element};
use hashbrown::HashMap;

/// By bare address: resources and their states.
#[derive(Debug, Default)]
pub(super) struct Presences {
    by_bare: HashMap<Box<str>, Vec<(Box<str>, Shows)>>,
    resources: usize,
}

impl Presences {
    /// What a presence stanza says of its sender.
    pub(super) fn hear(&mut self, from: &Jid, presence: &Element) {
        match presence.attr("type") {
            None => {
                let show = presence.children().find(|child| child.name == "show").map(Element::text);
                let state = show.and_then(|show| Shows::named(show.trim()));
                self.available(from, state.or_else(|| Shows::named("online")).unwrap_or(Shows::ANY));
            }
            Some("unavailable" | "error") => self.leave(from),
            Some(_) => {}
        }
    }

    /// The entity is not there, or was never.
    pub(super) fn leave(&mut self, from: &Jid) {
        let Some(resources) = self.by_bare.get_mut(from.bare()) else { return };
        let before = resources.len();
        // Of a bare address: all of it.
        resources.retain(|(resource, _)| from.resource().is_some_and(|gone| gone != &**resource));
        self.resources -= before - resources.len();
        if resources.is_empty() {
            self.by_bare.remove(from.bare());
        }
    }

    /// Whether one of the address's resources, or the one that it names, is in one of these states.
    pub(super) fn allow(&self, jid: &str, shows: Shows) -> bool {
        if shows.is_always() {
            return true;
        }
        let (bare, wanted) =
            jid.split_once('/').map_or((jid, None), |(bare, resource)| (bare, Some(resource)));
        let Some(resources) = self.by_bare.get(bare) else { return false };
        let mut meant =
            resources.iter().filter(|(resource, _)| wanted.is_none_or(|wanted| wanted == &**resource));
        meant.any(|(_, state)| shows.has(*state))
    }

    fn available(&mut self, from: &Jid, state: Shows) {
        let resource = from.resource().unwrap_or_default();
        if let Some(resources) = self.by_bare.get_mut(from.bare()) {
            match resources.iter().position(|(known, _)| &**known == resource) {
                Some(at) => resources[at].1 = state,
                None if resources.len() < RESOURCES && self.resources < ALL_RESOURCES => {
                    resources.push((resource.into(), state));
                    self.resources += 1;
                }
                None => {}
            }
        } else if self.resources < ALL_RESOURCES {
            self.by_bare.insert(from.bare().into(), vec![(resource.into(), state)]);
            self.resources += 1;
        }
    }
}

/// Of one address: more than a person has devices.
const RESOURCES: usize = 32;
/// A hundred bytes or two each. Who comes later is not heard until others leave.
const ALL_RESOURCES: usize = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_come_and_go() {
        let mut all = Presences::default();
        let jid = |text: &str| Jid::parse(text).unwrap();
        let hear = |all: &mut Presences, from: &str, xml: &str| {
            all.hear(&jid(from), &Element::parse(xml.as_bytes()).unwrap());
        };
        let away = Shows::named("away").unwrap();
        assert!(all.allow("a@b", Shows::ALWAYS) && !all.allow("a@b", Shows::ANY));
        hear(&mut all, "a@b/1", "<presence/>");
        assert!(all.allow("a@b", Shows::ANY) && all.allow("a@b/1", Shows::ANY));
        assert!(!all.allow("a@b/2", Shows::ANY) && !all.allow("a@b", away));
        hear(&mut all, "a@b/1", "<presence><show>away</show></presence>");
        assert!(all.allow("a@b", away));
        hear(&mut all, "a@b/2", "<presence/>");
        hear(&mut all, "a@b/1", "<presence type='unavailable'/>");
        assert!(!all.allow("a@b", away) && all.allow("a@b", Shows::ANY));
        hear(&mut all, "a@b", "<presence type='unavailable'/>");
        assert!(!all.allow("a@b", Shows::ANY));
        assert_eq!(all.resources, 0);
        for n in 0..2 * RESOURCES {
            hear(&mut all, &format!("a@b/{n}"), "<presence/>");
        }
        assert_eq!(all.resources, RESOURCES);
    }
}

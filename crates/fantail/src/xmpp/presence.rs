//! Which entities have said that they are there (directed presence), and how. Knows no subscription.

use std::collections::BTreeSet;

use fantail_proto::xmpp::{jid::Jid, pubsub::Shows, xml::Element};
use hashbrown::HashMap;

/// What is known of all who have spoken.
#[derive(Debug)]
pub(super) struct Presences {
    /// Those whose presence decides about a subscription.
    watched: Crowd,
    /// Others: they may be subscribed just after they have said that they are there. They take nothing from the watched.
    strangers: Crowd,
    /// How often all that is known was doubted.
    doubts: u32,
}

/// By bare address: resources and their states.
#[derive(Debug)]
struct Crowd {
    by_bare: HashMap<Box<str>, Vec<Heard>>,
    resources: usize,
    /// Of all names.
    bytes: usize,
    /// Of both.
    most: (usize, usize),
}

/// What was said last of one resource to one address of the component's.
#[derive(Debug)]
struct Heard {
    resource: Box<str>,
    state: Shows,
    /// Whom of the component's domain it was said to; the component itself has no name.
    to: Option<Box<str>>,
    /// Before or after which doubt.
    doubts: u32,
}

impl Heard {
    fn bytes(&self) -> usize {
        self.resource.len() + self.to.as_ref().map_or(0, |to| to.len())
    }
}

impl Default for Presences {
    fn default() -> Self {
        let watched = Crowd::new(ALL_RESOURCES, ALL_BYTES);
        Self { watched, strangers: Crowd::new(STRANGERS, STRANGERS_BYTES), doubts: 0 }
    }
}

impl Presences {
    /// What a presence stanza says of its sender, whose presence decides about something, or not.
    pub(super) fn hear(&mut self, from: &Jid, to: &Jid, presence: &Element, watched: bool) {
        match presence.attr("type") {
            None => {
                let show = presence.children().find(|child| child.name == "show").map(Element::text);
                let state = show.and_then(|show| Shows::named(show.trim()));
                let state = state.or_else(|| Shows::named("online")).unwrap_or(Shows::ANY);
                let (resource, to) = (from.resource().unwrap_or_default().into(), to.local().map(Into::into));
                let heard = Heard { resource, state, to, doubts: self.doubts };
                if watched {
                    self.watched.available(from.bare(), heard);
                } else {
                    self.strangers.make_room(from.bare().len() + heard.bytes());
                    self.strangers.available(from.bare(), heard);
                }
            }
            Some("unavailable" | "error") => self.leave(from, to),
            // Who does not let us see its presence is there, as far as it has said so since it was doubted.
            Some("unsubscribed") => self.leave_doubted(from, to),
            Some(_) => {}
        }
    }

    /// From now on the presence of a bare address decides about something, or about nothing any more.
    pub(super) fn watch(&mut self, bare: &str, watched: bool) {
        let (from, to) = if watched {
            (&mut self.strangers, &mut self.watched)
        } else {
            (&mut self.watched, &mut self.strangers)
        };
        for heard in from.take(bare) {
            if !watched {
                to.make_room(bare.len() + heard.bytes());
            }
            to.available(bare, heard);
        }
    }

    /// To whom this is said, the entity is not there, or was never. Others may be told that it is.
    pub(super) fn leave(&mut self, from: &Jid, to: &Jid) {
        let is_meant = |heard: &Heard| heard.to.as_deref() == to.local();
        self.watched.leave_if(from, is_meant);
        self.strangers.leave_if(from, is_meant);
    }

    fn leave_doubted(&mut self, from: &Jid, to: &Jid) {
        let doubts = self.doubts;
        self.watched.leave_if(from, |heard| heard.doubts != doubts && heard.to.as_deref() == to.local());
    }

    /// Whether one of the address's resources, or the one that it names, is in one of these states.
    pub(super) fn allow(&self, jid: &str, shows: Shows) -> bool {
        self.any(jid, shows, |_| true)
    }

    /// The same, as far as it was said since the last doubt.
    pub(super) fn confirm(&self, jid: &str, shows: Shows) -> bool {
        self.any(jid, shows, |heard| heard.doubts == self.doubts)
    }

    fn any(&self, jid: &str, shows: Shows, counts: impl Fn(&Heard) -> bool) -> bool {
        if shows.is_always() {
            return true;
        }
        let (bare, wanted) =
            jid.split_once('/').map_or((jid, None), |(bare, resource)| (bare, Some(resource)));
        let Some(resources) = self.watched.by_bare.get(bare) else { return false };
        let mut meant =
            resources.iter().filter(|heard| wanted.is_none_or(|wanted| wanted == &*heard.resource));
        meant.any(|heard| shows.has(heard.state) && counts(heard))
    }

    /// The server was away: nothing that is known need be so any more. Who is to be asked about whom (RFC 6121 4.3): the
    /// local part of the asker, if it has one, and a bare address. About strangers nobody is asked.
    pub(super) fn doubt(&mut self) -> Vec<(Option<Box<str>>, Box<str>)> {
        self.doubts = self.doubts.wrapping_add(1);
        self.strangers.clear();
        let mut asked = Vec::with_capacity(self.watched.by_bare.len());
        for (bare, resources) in &self.watched.by_bare {
            let first = asked.len();
            for heard in resources {
                if !asked[first..].iter().any(|(to, _)| *to == heard.to) {
                    asked.push((heard.to.clone(), bare.clone()));
                }
            }
        }
        asked
    }

    /// Whoever has not been heard of since the last doubt is not there.
    pub(super) fn settle(&mut self) {
        let doubts = self.doubts;
        self.watched.retain(|heard| heard.doubts == doubts);
    }
}

impl Crowd {
    fn new(resources: usize, bytes: usize) -> Self {
        Self { by_bare: HashMap::new(), resources: 0, bytes: 0, most: (resources, bytes) }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.resources < self.most.0 && self.bytes + bytes <= self.most.1
    }

    /// Forgets all if there is no room for one more.
    fn make_room(&mut self, bytes: usize) {
        if !self.has_room(bytes) {
            self.clear();
        }
    }

    fn clear(&mut self) {
        *self = Self::new(self.most.0, self.most.1);
    }

    fn take(&mut self, bare: &str) -> Vec<Heard> {
        let Some(taken) = self.by_bare.remove(bare) else { return Vec::new() };
        self.resources -= taken.len();
        self.bytes -= bare.len() + taken.iter().map(Heard::bytes).sum::<usize>();
        taken
    }

    fn leave_if(&mut self, from: &Jid, is_gone: impl Fn(&Heard) -> bool) {
        let Some(resources) = self.by_bare.get_mut(from.bare()) else { return };
        // Of a bare address: all of it.
        let named = |heard: &Heard| from.resource().is_none_or(|gone| gone == &*heard.resource);
        for gone in resources.extract_if(.., |heard| named(heard) && is_gone(heard)) {
            self.resources -= 1;
            self.bytes -= gone.bytes();
        }
        if resources.is_empty() {
            self.bytes -= from.bare().len();
            self.by_bare.remove(from.bare());
        }
    }

    fn retain(&mut self, is_kept: impl Fn(&Heard) -> bool) {
        self.by_bare.retain(|_, resources| {
            resources.retain(&is_kept);
            !resources.is_empty()
        });
        self.resources = self.by_bare.values().map(Vec::len).sum();
        let resources = self.by_bare.values().flatten().map(Heard::bytes).sum::<usize>();
        self.bytes = resources + self.by_bare.keys().map(|bare| bare.len()).sum::<usize>();
    }

    fn available(&mut self, bare: &str, heard: Heard) {
        let more = heard.bytes();
        let room = self.has_room(bare.len() + more);
        match self.by_bare.get_mut(bare) {
            Some(resources) => {
                let mut is_known = false;
                for known in resources.iter_mut().filter(|known| known.resource == heard.resource) {
                    // It is so, whomever it was said to.
                    (known.state, known.doubts) = (heard.state, heard.doubts);
                    is_known |= known.to == heard.to;
                }
                let tellings = resources.iter().filter(|known| known.resource == heard.resource).count();
                let names = || resources.iter().map(|known| &known.resource).collect::<BTreeSet<_>>().len();
                let is_full = match (tellings, &heard.to) {
                    (0, _) => names() >= RESOURCES,
                    // The component itself is always heard.
                    (_, None) => false,
                    (told, Some(_)) => told >= RESOURCES,
                };
                if is_known || !room || is_full {
                    return;
                }
                resources.push(heard);
            }
            None if room => {
                self.bytes += bare.len();
                self.by_bare.insert(bare.into(), vec![heard]);
            }
            None => return,
        }
        self.resources += 1;
        self.bytes += more;
    }
}

/// Of one address, more than a person has devices; and as many whom each of them tells.
const RESOURCES: usize = 32;
/// A hundred bytes each and its names. Who comes later is not heard until others leave.
const ALL_RESOURCES: usize = 1_000_000;
/// Names may have some kilobytes.
const ALL_BYTES: usize = 128 << 20;
/// Of those whose presence decides about nothing: when there is one more, all of them are forgotten.
const STRANGERS: usize = 100_000;
const STRANGERS_BYTES: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_come_and_go() {
        let mut all = Presences::default();
        let jid = |text: &str| Jid::parse(text).unwrap();
        let hear = |all: &mut Presences, from: &str, xml: &str| {
            all.hear(&jid(from), &jid("push.test"), &Element::parse(xml.as_bytes()).unwrap(), true);
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
        assert_eq!(all.watched.resources, 0);
        for n in 0..2 * RESOURCES {
            hear(&mut all, &format!("a@b/{n}"), "<presence/>");
        }
        assert_eq!(all.watched.resources, RESOURCES);
        hear(&mut all, "a@b", "<presence type='unavailable'/>");
        assert_eq!((all.watched.resources, all.watched.bytes), (0, 0));
        // Names take room, too.
        let long = "x".repeat(1000);
        let count = ALL_BYTES / 1000;
        for n in 0..count {
            let heard = Heard { resource: long.as_str().into(), state: Shows::ANY, to: None, doubts: 0 };
            all.watched.available(&format!("{n}@b"), heard);
        }
        assert!(
            all.watched.resources < count
                && all.watched.bytes <= ALL_BYTES
                && all.watched.bytes > ALL_BYTES - 2000
        );
        // Also whom it is said to; but who is known is heard.
        let told = jid(&format!("{long}@push.test"));
        let away_now = Element::parse(b"<presence><show>away</show></presence>").unwrap();
        (0..9).for_each(|n| all.hear(&jid(&format!("{n}@b/{long}")), &told, &away_now, true));
        assert!(all.watched.bytes <= ALL_BYTES && all.allow("8@b", away));
    }

    /// After a doubt everybody is asked once by each who was told, and only what was said since is believed.
    #[test]
    fn what_is_doubted_has_to_be_said_again() {
        let mut all = Presences::default();
        let jid = |text: &str| Jid::parse(text).unwrap();
        let hear = |all: &mut Presences, from: &str, to: &str, xml: &str| {
            all.hear(&jid(from), &jid(to), &Element::parse(xml.as_bytes()).unwrap(), true);
        };
        for (from, to) in [("a@b/1", "push.test"), ("a@b/2", "push.test"), ("a@b/3", "bot@push.test")] {
            hear(&mut all, from, to, "<presence/>");
        }
        hear(&mut all, "c@d/1", "push.test", "<presence/>");
        hear(&mut all, "e@f/1", "push.test", "<presence/>");
        let mut asked = all.doubt();
        asked.sort();
        let asked: Vec<_> = asked.iter().map(|(to, bare)| (to.as_deref(), &**bare)).collect();
        assert_eq!(asked, [(None, "a@b"), (None, "c@d"), (None, "e@f"), (Some("bot"), "a@b")]);
        assert!(all.allow("c@d", Shows::ANY) && !all.confirm("c@d", Shows::ANY), "until it is clear");
        hear(&mut all, "a@b/2", "push.test", "<presence/>");
        for who in ["e@f", "a@b/2"] {
            hear(&mut all, who, "push.test", "<presence type='unsubscribed'/>");
        }
        assert!(!all.allow("e@f", Shows::ANY));
        assert!(all.confirm("a@b", Shows::ANY) && all.confirm("c@d", Shows::ALWAYS));
        all.settle();
        assert!(all.allow("a@b/2", Shows::ANY) && !all.allow("a@b/1", Shows::ANY));
        assert!(!all.allow("c@d", Shows::ANY) && all.watched.resources == 1);
    }

    /// Who does not let a bot see it any more is there for others.
    #[test]
    fn who_leaves_leaves_whom_it_says_it_to() {
        let mut all = Presences::default();
        let jid = |text: &str| Jid::parse(text).unwrap();
        let hear = |all: &mut Presences, to: &str, xml: &str| {
            all.hear(&jid("a@b/1"), &jid(to), &Element::parse(xml.as_bytes()).unwrap(), true);
        };
        let away = Shows::named("away").unwrap();
        hear(&mut all, "push.test", "<presence/>");
        hear(&mut all, "bot@push.test", "<presence><show>away</show></presence>");
        assert!(all.allow("a@b", away) && !all.allow("a@b", Shows::named("online").unwrap()));
        hear(&mut all, "bot@push.test", "<presence type='unavailable'/>");
        all.leave(&jid("a@b/1"), &jid("bot@push.test"));
        assert!(all.allow("a@b", away));
        hear(&mut all, "push.test", "<presence type='unavailable'/>");
        assert!(!all.allow("a@b", Shows::ANY));
        assert_eq!((all.watched.resources, all.watched.bytes), (0, 0));
    }

    /// Who tells many bots has room for all devices, and is there while it tells the component.
    #[test]
    fn devices_count_however_many_they_tell() {
        let mut all = Presences::default();
        let here = Element::new(fantail_proto::xmpp::CLIENT, "presence");
        let jid = |text: &str| Jid::parse(text).unwrap();
        for device in 0..5 {
            let from = jid(&format!("a@b/{device}"));
            (0..2 * RESOURCES).for_each(|n| all.hear(&from, &jid(&format!("bot{n}@push.test")), &here, true));
            all.hear(&from, &jid("push.test"), &here, true);
        }
        assert_eq!(all.watched.resources, 5 * (RESOURCES + 1));
        let gone = Element::new(fantail_proto::xmpp::CLIENT, "presence").with("type", "unavailable");
        (0..RESOURCES).for_each(|n| all.hear(&jid("a@b/4"), &jid(&format!("bot{n}@push.test")), &gone, true));
        assert!(all.allow("a@b/4", Shows::ANY));
    }

    /// Who has no subscription takes nothing from who has, and is known when it gets one.
    #[test]
    fn strangers_have_their_own_room() {
        let mut all = Presences::default();
        let here = Element::new(fantail_proto::xmpp::CLIENT, "presence");
        let jid = |text: &str| Jid::parse(text).unwrap();
        let to = jid("push.test");
        all.hear(&jid("a@b/1"), &to, &here, true);
        all.hear(&jid("c@b/1"), &to, &here, false);
        assert!(!all.allow("c@b", Shows::ANY));
        all.watch("c@b", true);
        assert!(all.allow("c@b", Shows::ANY) && all.strangers.by_bare.is_empty());
        all.watch("c@b", false);
        assert!(!all.allow("c@b", Shows::ANY));
        assert_eq!((all.watched.resources, all.strangers.resources), (1, 1));
        let long = "x".repeat(1000);
        for (resource, count) in [("1", STRANGERS), (&long, STRANGERS_BYTES / 1000)] {
            for n in all.strangers.resources..count {
                let heard = Heard { resource: resource.into(), state: Shows::ANY, to: None, doubts: 0 };
                all.strangers.available(&format!("{n}@d"), heard);
            }
            assert!(all.strangers.resources > 10_000);
            (0..20).for_each(|n| all.hear(&jid(&format!("{n}@e/{resource}")), &to, &here, false));
            assert!(
                all.strangers.resources <= 20 && all.allow("a@b", Shows::ANY),
                "{}",
                all.strangers.resources
            );
        }
        assert!(!all.strangers.by_bare.contains_key("c@b"));
        let asked = all.doubt();
        assert_eq!((asked.len(), all.strangers.resources, all.strangers.bytes), (1, 0, 0));
    }
}

//! Which entities have said that they are there (directed presence), and how. Knows no subscription.

use fantail_proto::xmpp::{jid::Jid, pubsub::Shows, xml::Element};
use hashbrown::HashMap;

/// By bare address: resources and their states.
#[derive(Debug, Default)]
pub(super) struct Presences {
    by_bare: HashMap<Box<str>, Vec<Heard>>,
    resources: usize,
    /// Of all names.
    bytes: usize,
    /// How often all that is known was doubted.
    doubts: u32,
}

/// What was said last of one resource.
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

impl Presences {
    /// What a presence stanza says of its sender.
    pub(super) fn hear(&mut self, from: &Jid, to: &Jid, presence: &Element) {
        match presence.attr("type") {
            None => {
                let show = presence.children().find(|child| child.name == "show").map(Element::text);
                let state = show.and_then(|show| Shows::named(show.trim()));
                self.available(from, to, state.or_else(|| Shows::named("online")).unwrap_or(Shows::ANY));
            }
            Some("unavailable" | "error") => self.leave(from),
            // Who does not let us see its presence is there, as far as it has said so since it was doubted.
            Some("unsubscribed") => self.leave_doubted(from),
            Some(_) => {}
        }
    }

    /// The entity is not there, or was never.
    pub(super) fn leave(&mut self, from: &Jid) {
        self.leave_if(from, |_| true);
    }

    fn leave_doubted(&mut self, from: &Jid) {
        let doubts = self.doubts;
        self.leave_if(from, |heard| heard.doubts != doubts);
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

    /// Whether one of the address's resources, or the one that it names, is in one of these states.
    pub(super) fn allow(&self, jid: &str, shows: Shows) -> bool {
        if shows.is_always() {
            return true;
        }
        let (bare, wanted) =
            jid.split_once('/').map_or((jid, None), |(bare, resource)| (bare, Some(resource)));
        let Some(resources) = self.by_bare.get(bare) else { return false };
        let mut meant =
            resources.iter().filter(|heard| wanted.is_none_or(|wanted| wanted == &*heard.resource));
        meant.any(|heard| shows.has(heard.state))
    }

    /// The server was away: nothing that is known need be so any more. Who is to be asked about whom (RFC 6121 4.3): the
    /// local part of the asker, if it has one, and a bare address.
    pub(super) fn doubt(&mut self) -> Vec<(Option<Box<str>>, Box<str>)> {
        self.doubts = self.doubts.wrapping_add(1);
        let mut asked = Vec::with_capacity(self.by_bare.len());
        for (bare, resources) in &self.by_bare {
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
        self.by_bare.retain(|_, resources| {
            resources.retain(|heard| heard.doubts == self.doubts);
            !resources.is_empty()
        });
        self.resources = self.by_bare.values().map(Vec::len).sum();
        let resources = self.by_bare.values().flatten().map(Heard::bytes).sum::<usize>();
        self.bytes = resources + self.by_bare.keys().map(|bare| bare.len()).sum::<usize>();
    }

    fn available(&mut self, from: &Jid, to: &Jid, state: Shows) {
        let (resource, to) = (from.resource().unwrap_or_default().into(), to.local().map(Into::into));
        let heard = Heard { resource, state, to, doubts: self.doubts };
        let more = heard.bytes();
        let room = self.resources < ALL_RESOURCES && self.bytes + from.bare().len() + more <= ALL_BYTES;
        match self.by_bare.get_mut(from.bare()) {
            Some(resources) => match resources.iter().position(|known| known.resource == heard.resource) {
                Some(at) => {
                    let known = &mut resources[at];
                    // Without room for whom it was said to it is said to whom it was before.
                    self.bytes -= known.bytes();
                    let to = if room { heard.to } else { known.to.take() };
                    *known = Heard { to, ..heard };
                    self.bytes += known.bytes();
                    return;
                }
                None if room && resources.len() < RESOURCES => resources.push(heard),
                None => return,
            },
            None if room => {
                self.bytes += from.bare().len();
                self.by_bare.insert(from.bare().into(), vec![heard]);
            }
            None => return,
        }
        self.resources += 1;
        self.bytes += more;
    }
}

/// Of one address: more than a person has devices.
const RESOURCES: usize = 32;
/// A hundred bytes each and its names. Who comes later is not heard until others leave.
const ALL_RESOURCES: usize = 1_000_000;
/// Names may have some kilobytes.
const ALL_BYTES: usize = 128 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_come_and_go() {
        let mut all = Presences::default();
        let jid = |text: &str| Jid::parse(text).unwrap();
        let hear = |all: &mut Presences, from: &str, xml: &str| {
            all.hear(&jid(from), &jid("push.test"), &Element::parse(xml.as_bytes()).unwrap());
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
        hear(&mut all, "a@b", "<presence type='unavailable'/>");
        assert_eq!((all.resources, all.bytes), (0, 0));
        // Names take room, too.
        let long = "x".repeat(1000);
        let count = ALL_BYTES / 1000;
        for n in 0..count {
            hear(&mut all, &format!("{n}@b/{long}"), "<presence/>");
        }
        assert!(all.resources < count && all.bytes <= ALL_BYTES && all.bytes > ALL_BYTES - 2000);
        // Also whom it is said to; but who is known is heard.
        let told = jid(&format!("{long}@push.test"));
        let away_now = Element::parse(b"<presence><show>away</show></presence>").unwrap();
        (0..9).for_each(|n| all.hear(&jid(&format!("{n}@b/{long}")), &told, &away_now));
        assert!(all.bytes <= ALL_BYTES && all.allow("8@b", away));
    }

    /// After a doubt everybody is asked once by each who was told, and only what was said since is believed.
    #[test]
    fn what_is_doubted_has_to_be_said_again() {
        let mut all = Presences::default();
        let jid = |text: &str| Jid::parse(text).unwrap();
        let hear = |all: &mut Presences, from: &str, to: &str, xml: &str| {
            all.hear(&jid(from), &jid(to), &Element::parse(xml.as_bytes()).unwrap());
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
        assert!(all.allow("c@d", Shows::ANY), "until it is clear");
        hear(&mut all, "a@b/2", "push.test", "<presence/>");
        for who in ["e@f", "a@b/2"] {
            hear(&mut all, who, "push.test", "<presence type='unsubscribed'/>");
        }
        assert!(!all.allow("e@f", Shows::ANY));
        all.settle();
        assert!(all.allow("a@b/2", Shows::ANY) && !all.allow("a@b/1", Shows::ANY));
        assert!(!all.allow("c@d", Shows::ANY) && all.resources == 1);
    }
}

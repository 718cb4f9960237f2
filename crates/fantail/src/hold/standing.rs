//! What is particular to one subscriber: its filters and what they read, and how far it is in its channels. Kept only
//! for those who have something of it. What filters do, and what a gap is, are `fantail_proto`'s.

use std::rc::Rc;

use fantail_proto::filter::Filter;
use smallvec::SmallVec;

use super::{GripLink, Trail, fill::Behind, follow::Follow, inquiry::Line};

#[derive(Debug)]
pub(super) struct Standing {
    /// By channel; a channel without filters is not here.
    pub(super) filters: Vec<(u32, Vec<Filter>)>,
    pub(super) meta: Vec<(String, String)>,
    pub(super) prefix: String,
    /// By channel, the last id that the client has, of those channels whose ids its origin keeps track of. `None` after
    /// an item without an id: whatever comes next follows.
    pub(super) positions: Vec<(u32, Option<String>)>,
    /// Of those channels whose log has given something.
    pub(super) behind: SmallVec<[Behind; 1]>,
    /// Of those channels with items that wait, because a filter asks about one.
    pub(super) lines: SmallVec<[Line; 1]>,
    /// Whose it is, for the server that keeps sessions.
    pub(super) session: Option<Box<str>>,
    /// Where filters ask from.
    pub(super) trail: Option<Rc<Trail>>,
    pub(super) debug: bool,
    /// Of a stream with a next link.
    pub(super) follow: Option<Box<Follow>>,
    /// Who is to hear when the hold is gone.
    pub(super) gone: Option<Box<GripLink>>,
}

impl Standing {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            filters: Vec::new(),
            meta: Vec::new(),
            prefix: prefix.to_owned(),
            positions: Vec::new(),
            behind: SmallVec::new(),
            lines: SmallVec::new(),
            session: None,
            trail: None,
            debug: false,
            follow: None,
            gone: None,
        }
    }

    /// Whether there is something of this channel.
    pub(super) fn is_apart(&self, channel: u32) -> bool {
        self.is_wholly_apart()
            || self.filters.iter().any(|(of, _)| *of == channel)
            || self.positions.iter().any(|(of, _)| *of == channel)
            || self.behind.iter().any(|behind| behind.channel == channel)
    }

    /// Whether there is something of all channels.
    pub(super) const fn is_wholly_apart(&self) -> bool {
        self.follow.is_some() || self.session.is_some()
    }

    /// Whether there is nothing particular any more.
    pub(super) fn is_empty(&self) -> bool {
        let Self { filters, positions, behind, gone, .. } = self;
        let of_channels = !filters.is_empty() || !positions.is_empty() || !behind.is_empty();
        !of_channels && !self.is_wholly_apart() && gone.is_none()
    }

    /// Replaces what there is of a channel.
    pub(super) fn set(&mut self, channel: u32, filters: Vec<Filter>, prev_id: Option<String>) {
        self.remove(channel);
        if !filters.is_empty() {
            self.filters.push((channel, filters));
        }
        if prev_id.is_some() {
            self.positions.push((channel, prev_id));
        }
    }

    pub(super) fn remove(&mut self, channel: u32) {
        self.filters.retain(|(of, _)| *of != channel);
        self.positions.retain(|(of, _)| *of != channel);
        self.behind.retain(|behind| behind.channel != channel);
    }

    pub(super) fn filters_of(&self, channel: u32) -> &[Filter] {
        self.filters.iter().find(|(of, _)| *of == channel).map_or(&[], |(_, filters)| filters)
    }

    pub(super) fn take_line(&mut self, channel: u32) -> Option<Line> {
        let place = self.lines.iter().position(|line| line.channel == channel)?;
        Some(self.lines.remove(place))
    }

    pub(super) fn position(&self, channel: u32) -> Option<&str> {
        self.positions.iter().find(|(of, _)| *of == channel)?.1.as_deref()
    }

    /// Channels and where the client is in them.
    pub(super) fn positions(&self) -> impl Iterator<Item = (u32, &str)> {
        self.positions.iter().filter_map(|(channel, id)| Some((*channel, id.as_deref()?)))
    }

    /// The client has this item, or is not to have it: what comes next follows it.
    pub(super) fn advance(&mut self, channel: u32, id: Option<&str>) {
        let Some((_, position)) = self.positions.iter_mut().find(|(of, _)| *of == channel) else { return };
        match (position, id) {
            (Some(position), Some(id)) => id.clone_into(position),
            (position, _) => *position = None,
        }
    }
}

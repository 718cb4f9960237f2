//! What is particular to one subscriber: its filters and what they read, and how far it is in its channels. Kept only
//! for those who have something of it. What filters do, and what a gap is, are `fantail_proto`'s.

use fantail_proto::filter::Filter;

use super::{GripLink, follow::Follow};

#[derive(Debug)]
pub(super) struct Standing {
    /// By channel; a channel without filters is not here.
    pub(super) filters: Vec<(u32, Vec<Filter>)>,
    pub(super) meta: Vec<(String, String)>,
    pub(super) prefix: String,
    /// By channel, the last id that the client has, of those channels whose ids its origin keeps track of. `None` after
    /// an item without an id: whatever comes next follows.
    pub(super) positions: Vec<(u32, Option<String>)>,
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
            debug: false,
            follow: None,
            gone: None,
        }
    }

    /// Whether there is something of this channel.
    pub(super) fn is_apart(&self, channel: u32) -> bool {
        self.follow.is_some()
            || self.filters.iter().any(|(of, _)| *of == channel)
            || self.positions.iter().any(|(of, _)| *of == channel)
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

//! What filters know of one subscriber: which of them are on which of its channels, its meta, the ids that it has.
//! Kept only for those who have a filter. What filters do is `fantail_proto`'s.

use fantail_proto::filter::Filter;

#[derive(Debug)]
pub(super) struct Filtering {
    /// By channel; a channel without filters is not here.
    pub(super) filters: Vec<(u32, Vec<Filter>)>,
    pub(super) meta: Vec<(String, String)>,
    pub(super) prefix: String,
    /// By channel, the last id that the client has: of those channels whose ids its origin keeps track of.
    pub(super) ids: Vec<(u32, String)>,
    pub(super) debug: bool,
}

impl Filtering {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            filters: Vec::new(),
            meta: Vec::new(),
            prefix: prefix.to_owned(),
            ids: Vec::new(),
            debug: false,
        }
    }

    /// The client has this item, or is not to have it: what comes next follows it.
    pub(super) fn follow(&mut self, channel: u32, id: Option<&str>) {
        let Some(place) = self.ids.iter().position(|(tracked, _)| *tracked == channel) else { return };
        match id {
            Some(id) => id.clone_into(&mut self.ids[place].1),
            None => {
                self.ids.swap_remove(place);
            }
        }
    }
}

//! What is noted of holds for who watches: which WebSocket has which id, what goes to whom. Does nothing where nobody
//! watches, and looks at no socket.

use std::sync::Arc;

use fantail_pin::PinId;
use hashbrown::HashMap;

use super::{Hold, Holds, List, OverHttp, fanout::Work};
use crate::{
    hub::Delivery,
    stats::{Errand, Id, Mode, Notes, Traffic},
};

#[derive(Debug)]
pub(super) struct Watch {
    notes: Arc<Notes>,
    /// The WebSockets that are there, by their `Connection-Id`.
    websockets: HashMap<u128, PinId>,
}

impl List {
    pub(super) fn mode(self) -> Mode {
        match self {
            Self::Streams => Mode::Stream,
            Self::Polls => Mode::Response,
            Self::WebSockets | Self::SockJs => Mode::WebSocket,
        }
    }
}

impl Holds {
    /// From now on what happens is noted; to be called before there are holds.
    #[must_use]
    pub fn watched(mut self, notes: Option<Arc<Notes>>) -> Self {
        if let Some(notes) = notes {
            self.channels.watch(Arc::clone(&notes));
            self.watch = Some(Watch { notes, websockets: HashMap::new() });
        }
        self
    }

    /// What is to be done when there is something; never, where nobody watches.
    pub fn notes(&self) -> Option<Arc<Notes>> {
        self.watch.as_ref().map(|watch| Arc::clone(&watch.notes))
    }

    /// Has the origin of a WebSocket asked, if it is here (spec 5.7).
    pub fn run(&mut self, errand: &Errand) {
        let pin = self.watch.as_ref().and_then(|watch| watch.websockets.get(&errand.connection)).copied();
        if let Some(pin) = pin
            && self.refresh(pin)
        {
            // Who has asked may have gone.
            _ = errand.found.try_send(());
        }
    }

    pub(super) fn watch_websocket(&mut self, id: PinId) {
        if let Some(watch) = &mut self.watch
            && let Some(Id::WebSocket(connection)) = connection(self.pins.get(id))
        {
            watch.websockets.insert(connection, id);
        }
    }

    pub(super) fn unwatch(&mut self, hold: &Hold) {
        if let Some(watch) = &mut self.watch
            && let Some(Id::WebSocket(connection)) = connection(Some(hold))
        {
            watch.websockets.remove(&connection);
        }
    }

    /// Who is about to get the items of a batch.
    pub(super) fn watch_items(&self, work: &Work) {
        if self.watch.is_none() {
            return;
        }
        for (delivery, channel) in work.batch.iter().zip(&work.channels) {
            let (Some(told), Some(channel)) = (&delivery.told, *channel) else { continue };
            let item = &delivery.item;
            for (list, has) in [
                (List::Streams, item.stream.is_some()),
                (List::Polls, item.response.is_some()),
                (List::WebSockets, item.message.is_some()),
                (List::SockJs, item.message.is_some()),
            ] {
                if has {
                    told.heard(list.mode(), self.channels.subscribers(channel, list).len());
                }
            }
        }
    }

    /// So many bytes of content go to each of these, all of the same items.
    pub(super) fn watch_write<'d>(
        &self,
        pins: &[PinId],
        list: List,
        items: impl Iterator<Item = &'d Delivery>,
        content: usize,
    ) {
        if self.watch.is_none() {
            return;
        }
        let blocks = |item: &Delivery| item.told.as_ref().map_or(0, |told| told.blocks(list.mode()));
        let (sent, blocks) = items.fold((0, 0), |(sent, all), item| (sent + 1, all + blocks(item)));
        for traffic in pins.iter().filter_map(|pin| self.traffic(*pin)) {
            traffic.sent.add(sent);
            traffic.blocks_sent.add(blocks);
            traffic.client.content_sent.add(content as u64);
            if list.mode() == Mode::WebSocket {
                traffic.client.messages_sent.add(sent);
            }
        }
    }

    /// A long-poll gets its answer, from an item or for the time.
    pub(super) fn watch_answer(&self, pin: PinId, response: &[u8]) {
        if let Some(traffic) = self.traffic(pin) {
            let head = response.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |at| at + 4);
            traffic.client.header_sent.add(head as u64);
            traffic.client.content_sent.add((response.len() - head) as u64);
        }
    }

    /// Answers a long-poll with an item, if that is what is to be done.
    pub(super) fn answer_watched(&mut self, work: &mut Work, id: PinId, channel: u32, item: usize) {
        let written = work.receipt(item).written();
        self.answer_with(work, id, channel, item);
        if work.receipt(item).written() > written {
            self.watch_answered(id, &work.batch[item]);
        }
    }

    fn watch_answered(&self, pin: PinId, item: &Delivery) {
        if let Some(traffic) = self.traffic(pin) {
            traffic.sent.add(1);
            traffic.responses_sent.add(1);
            traffic.blocks_sent.add(item.told.as_ref().map_or(0, |told| told.blocks(Mode::Response)));
        }
    }

    /// A client says something.
    pub(super) fn watch_message(&self, pin: PinId, content: usize) {
        if let Some(traffic) = self.traffic(pin) {
            traffic.client.messages_received.add(1);
            traffic.client.content_received.add(content as u64);
            traffic.server.messages_sent.add(1);
            traffic.server.content_sent.add(content as u64);
        }
    }

    /// An origin says something.
    pub(super) fn watch_word(&self, pin: PinId, content: usize) {
        if let Some(traffic) = self.traffic(pin) {
            traffic.server.messages_received.add(1);
            traffic.server.content_received.add(content as u64);
        }
    }

    /// An origin is asked about a WebSocket: the heads' lengths, there and back.
    pub fn watch_asked(&self, far: &OverHttp, sent: u64, received: u64) {
        if let Some(traffic) = far.pin().and_then(|pin| self.traffic(pin)) {
            traffic.server.header_sent.add(sent);
            traffic.server.header_received.add(received);
        }
    }

    /// A client gets what its origin said.
    pub(super) fn watch_passed(&self, pin: PinId, content: usize) {
        if let Some(traffic) = self.traffic(pin) {
            traffic.client.messages_sent.add(1);
            traffic.client.content_sent.add(content as u64);
        }
    }

    fn traffic(&self, pin: PinId) -> Option<&Traffic> {
        self.watch.as_ref()?;
        Some(self.pins.get(pin)?.presence.as_ref()?.traffic())
    }
}

fn connection(hold: Option<&Hold>) -> Option<Id> {
    hold?.presence.as_ref().map(|presence| presence.id())
}

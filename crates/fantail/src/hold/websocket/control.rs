//! What an origin instructs about one WebSocket (spec 7.4): its subscriptions, what filters know of it, what is
//! sent to it by the clock. It decides nothing about the closing handshake.

use std::rc::Rc;

use fantail_pin::{KeepAlive, KeepAliveMode, Payload, PinId};
use fantail_proto::{
    filter::Filter,
    grip,
    log::Start,
    websocket::{
        control::{self, Control},
        frame::Frame,
    },
};

use super::{Far, Stage, millis, timers::Delayed};
use crate::{
    hold::{Hold, HoldKind, Holds, Standing, Subscription, Subscriptions, Trail, jitter_ms, sockjs},
    logging,
};

impl Holds {
    pub(super) fn obey(&mut self, id: PinId, control: Control) {
        match control {
            Control::Subscribe { channel, filters, prev_id, late } => {
                self.subscribe(id, &channel, filters, prev_id.as_deref(), late);
            }
            Control::Unsubscribe { channel } => self.leave_channel(id, &channel),
            Control::Detach => self.detach(id),
            Control::Session { id: sid } => {
                self.standing(id);
                self.set_session(id, sid.as_deref().filter(|sid| !sid.is_empty()));
            }
            Control::SetMeta { name, value } => self.set_meta(id, name, value),
            Control::KeepAlive(None) if self.is_sockjs(id) => self.heartbeat(id),
            Control::KeepAlive(None) => self.pins.clear_keep_alive(id),
            Control::KeepAlive(Some(keep_alive)) => {
                let beats = self.beats(keep_alive, self.is_sockjs(id));
                let first = beats.every_ms.saturating_sub(jitter_ms());
                self.pins.set_keep_alive(id, beats, first);
            }
            Control::SendDelayed { kind, content, after } => {
                self.flush_delayed(id);
                let at_ms = self.now_ms + millis(after);
                if let Some(socket) = self.socket(id) {
                    socket.timers.delayed = Some(Box::new(Delayed { at_ms, kind, content }));
                    self.schedule(id);
                }
            }
            Control::FlushDelayed => self.flush_delayed(id),
        }
    }

    pub(super) fn flush_delayed(&mut self, id: PinId) {
        if let Some(delayed) = self.socket(id).and_then(|socket| socket.timers.delayed.take()) {
            self.write_message(id, delayed.kind, &delayed.content);
        }
    }

    /// Many clients are asked to have the same keep-alive: they share it.
    pub(in crate::hold) fn beats(&mut self, asked: control::KeepAlive, sockjs: bool) -> Rc<KeepAlive> {
        if let Some((last, of_sockjs, beats)) = &self.last_beats
            && *last == asked
            && *of_sockjs == sockjs
        {
            return Rc::clone(beats);
        }
        let frame = match sockjs {
            true => sockjs::beat(&asked),
            false => Frame::new(asked.kind.into(), &asked.content).to_bytes(),
        };
        let beats = Rc::new(KeepAlive {
            payload: Payload { plain: frame.clone(), coded: frame },
            every_ms: u32::try_from(asked.timeout.as_millis()).unwrap_or(u32::MAX),
            mode: match asked.mode {
                grip::KeepAliveMode::Idle => KeepAliveMode::Idle,
                grip::KeepAliveMode::Interval => KeepAliveMode::Interval,
            },
        });
        self.last_beats = Some((asked, sockjs, Rc::clone(&beats)));
        beats
    }

    fn subscribe(
        &mut self,
        id: PinId,
        channel: &str,
        filters: Vec<Filter>,
        prev_id: Option<&str>,
        late: Option<Start>,
    ) {
        let Subscriptions { most, channel_bytes } = self.subscriptions;
        let Some(hold) = self.pins.get(id) else { return };
        let Hold { subs, kind: HoldKind::WebSocket(socket), .. } = hold else { return };
        let list = hold.kind.list();
        let (name, realm) = (format!("{}{channel}", socket.prefix()), socket.realm);
        let own = subs.len().saturating_sub(usize::from(socket.implicit));
        if socket.stage != Stage::Open {
            return;
        }
        if name.len() > channel_bytes {
            tracing::info!(target: "fantail::websocket", "an origin names a channel that is too long");
            return self.fail(id, "a channel's name is too long");
        }
        // One that it has is not one more.
        let has = || subs.iter().any(|sub| self.channels.name(sub.channel) == name);
        if own >= most && !has() {
            self.counters.subscriptions_refused.add(1);
            tracing::debug!(target: "fantail::websocket", name, "a subscription over the limit is ignored");
            return;
        }
        if let Some(uri) = socket.names.as_ref().and_then(|names| names.uri.as_ref()) {
            logging::subscribed(uri, &name);
        }
        let start = prev_id.map(|id| Start::Id(id.into())).or(late);
        if !filters.is_empty() || start.is_some() {
            self.standing(id);
        }
        if filters.iter().any(|filter| filter.asks()) {
            let trail = self.trail(id);
            if let Some(standing) = self.standing(id) {
                standing.trail = standing.trail.take().or(trail);
            }
        }
        let subscription = Subscription { channel: name, filters, prev_id: None, late: None };
        let Some(joined) = self.join(id, realm, list, subscription) else { return };
        let proven = match start.filter(|_| self.channels.is_logged(joined)) {
            Some(start) => self.begin_at(id, joined, &start),
            None => false,
        };
        if let Some(prev_id) = prev_id.filter(|_| !proven) {
            self.track(id, joined, prev_id);
            self.tell_of_gap(id, joined, channel, prev_id);
        }
    }

    /// A client may have missed something of a channel: its origin is asked to repair that. One that cannot be asked is
    /// none to say what it has.
    fn tell_of_gap(&mut self, id: PinId, joined: u32, channel: &str, prev_id: &str) {
        match self.far(id) {
            Some(Far::OverHttp(_)) => {
                self.note_gap(id, joined, (channel, prev_id), false);
            }
            Some(Far::Native(_) | Far::Detached | Far::Echo) | None => self.mend(id),
        }
    }

    fn leave_channel(&mut self, id: PinId, channel: &str) {
        let Some(Hold { subs, kind: HoldKind::WebSocket(socket), .. }) = self.pins.get(id) else { return };
        let name = format!("{}{channel}", socket.prefix());
        let place = subs.iter().position(|sub| self.channels.name(sub.channel) == name);
        if let Some(place) = place.filter(|place| *place >= usize::from(socket.implicit)) {
            self.leave(id, place);
        }
    }

    fn set_meta(&mut self, id: PinId, name: String, value: Option<String>) {
        let Some(Standing { meta, .. }) = self.standing(id) else { return };
        meta.retain(|(known, _)| *known != name);
        let Some(value) = value else { return };
        meta.push((name, value));
        let bytes: usize = meta.iter().map(|(name, value)| name.len() + value.len()).sum();
        // Without what a filter is to read, it would let through what it should not.
        if meta.len() > MAX_META || bytes > MAX_META_BYTES {
            tracing::info!(target: "fantail::websocket", "an origin notes too much of a client");
            self.fail(id, "too much is noted by set-meta");
        }
    }

    /// Where the filters of a WebSocket ask from.
    fn trail(&self, id: PinId) -> Option<Rc<Trail>> {
        let Some(Hold { kind: HoldKind::WebSocket(socket), .. }) = self.pins.get(id) else { return None };
        match &socket.far {
            Far::OverHttp(far) => Some(Rc::new(far.call.trail(socket.debug)?)),
            Far::Native(link) => link.trail.clone(),
            Far::Echo | Far::Detached => None,
        }
    }

    /// What is particular to a hold, from now on. Of a stream there was nothing: it has no filters, which alone would want
    /// its prefix.
    pub(in crate::hold) fn standing(&mut self, id: PinId) -> Option<&mut Standing> {
        let Hold { standing, kind, .. } = self.pins.get_mut(id)?;
        let (prefix, debug) = match kind {
            HoldKind::WebSocket(socket) => (socket.prefix(), socket.debug),
            HoldKind::Stream { .. } | HoldKind::Poll(_) | HoldKind::Receiver(_) => ("", false),
        };
        Some(standing.get_or_insert_with(|| Box::new(Standing { debug, ..Standing::new(prefix) })))
    }
}

/// What an origin may note of a subscriber for filters.
const MAX_META: usize = 64;
const MAX_META_BYTES: usize = 8192;

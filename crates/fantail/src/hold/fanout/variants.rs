//! Filters at delivery (spec section 6): who is skipped, and what content becomes for those whose filters change it,
//! made once for all of whom the filters read the same. It writes to nobody but those whose filters failed.

use std::{borrow::Cow, rc::Rc};

use bytes::Bytes;
use fantail_proto::{
    filter::{self, Applied, Filter, question, template::TemplateError},
    render::{Chunk, Message, MessagePart, Rendered, StreamPart},
};
use smallvec::SmallVec;

use super::{Part, Work};
use crate::hold::{
    Hold, Holds, List, Standing, Sub, Wording,
    follow::{Parked, ParkedPart},
};

/// An item's place, whose subscribers, their filters, and what those read of one.
pub(super) type Class = (usize, List, SmallVec<[Filter; 2]>, Vec<u8>);

/// What a hold gets of an item.
#[derive(Clone, Debug)]
pub(super) enum Gotten {
    /// What is at this place: the item itself, or what its filters make of it.
    Place(usize),
    Nothing,
    /// Its origin is to be asked first.
    Asks(Box<Wording>),
}

/// An item with other content.
#[derive(Debug)]
pub(super) struct Variant {
    item: usize,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Chunk(Chunk),
    Message(Message),
}

impl Holds {
    pub(super) fn filtered(
        &self,
        work: &mut Work,
        list: List,
        hold: &Hold,
        channel: u32,
        item: usize,
    ) -> Result<Gotten, TemplateError> {
        let rendered = &work.batch[item].item;
        let filters = hold.filters(channel);
        let written_for = match list {
            List::WebSockets | List::SockJs => rendered.written_for.message.as_deref(),
            List::Streams | List::Polls => rendered.written_for.stream.as_deref(),
        };
        if !self.passes(hold, channel, rendered) {
            return Ok(Gotten::Nothing);
        }
        if !filter::suits(written_for, filters) {
            return Err(TemplateError::Unsuited);
        }
        let is_content = work.part(list, item) == Some(Part::Content);
        // Who closes says nothing that could be changed, but may be asked about.
        let matters = |filter: &Filter| {
            if is_content { filter.changes_content() || filter.asks() } else { filter.asks() }
        };
        let matters: SmallVec<[Filter; 2]> = filters.iter().copied().filter(matters).collect();
        let Some(standing) = hold.standing.as_ref().filter(|_| !matters.is_empty()) else {
            return Ok(Gotten::Place(item));
        };
        if let Some(error) = &work.lost {
            return Err(error.clone());
        }
        let id = rendered.id.clone();
        let own = id.as_deref().map(|id| (channel, id));
        let ids = |name: &str| self.id_of(hold, standing, own, name);
        match work.variant(list, item, matters, &standing.meta, ids)? {
            Made::Place(place) => Ok(Gotten::Place(place)),
            Made::Skipped => Ok(Gotten::Nothing),
            Made::Asks(filter, content, class) => {
                let item_meta = &work.batch[item].item.meta;
                let ahead = ahead(filters, work.words(), filter, &content);
                let wording = wording(standing, item_meta, (filter, content, class), ahead)?;
                Ok(Gotten::Asks(Box::new(wording)))
            }
        }
    }

    /// The id that a hold has of a channel once it has the item whose channel and id are `own`; of another channel only
    /// if its origin keeps track of that.
    fn id_of<'h>(
        &self,
        hold: &Hold,
        standing: &'h Standing,
        own: Option<(u32, &'h str)>,
        name: &str,
    ) -> Option<&'h str> {
        let named = |sub: &&Sub| {
            self.channels.name(sub.channel).strip_prefix(&*standing.prefix).is_some_and(|own| own == name)
        };
        let channel = hold.subs.iter().find(named)?.channel;
        own.into_iter().chain(standing.positions()).find(|(of, _)| *of == channel).map(|(_, id)| id)
    }

    /// Tells those whose filters failed, where the route has `debug` (spec 6.1).
    pub(super) fn tell_failures(&mut self, work: &mut Work) {
        for (id, error) in work.failed.drain(..) {
            let debug = self.pins.get(id).and_then(|hold| hold.standing.as_ref()).is_some_and(|s| s.debug);
            tracing::info!(target: "fantail::hold", %error, "a subscriber's filters fail");
            match self.is_websocket(id) {
                _ if !debug => {}
                true => self.fail(id, &format!("filter error: {error}")),
                false => {
                    self.write_page(&[id], format!("\n\nfilter error: {error}\n").as_bytes());
                    self.close_stream(id);
                }
            }
        }
    }

    pub(super) fn passes(&self, hold: &Hold, channel: u32, item: &Rendered) -> bool {
        let (Some(standing), filters) = (&hold.standing, hold.filters(channel)) else { return true };
        let names = || hold.subs.iter().map(|sub| self.channels.name(sub.channel));
        let subscribed = |name: &str| names().any(|full| full.strip_prefix(&*standing.prefix) == Some(name));
        filter::passes(filters, &standing.meta, &item.meta, subscribed)
    }

    /// What a hold's filters make of the body that an item answers it with.
    pub(super) fn filtered_body(
        &self,
        hold: &Hold,
        channel: u32,
        item: &Rendered,
        body: Bytes,
        work: &Work,
    ) -> Result<Answering, TemplateError> {
        let filters = hold.filters(channel);
        if !filter::suits(item.written_for.response.as_deref(), filters) {
            return Err(TemplateError::Unsuited);
        }
        let Some(standing) = &hold.standing else { return Ok(Answering::With(body)) };
        if let Some(error) = &work.lost {
            return Err(error.clone());
        }
        let own = item.id.as_deref().map(|id| (channel, id));
        let ids = |name: &str| self.id_of(hold, standing, own, name);
        Ok(match filter::apply(filters, work.words(), &body, &standing.meta, ids)? {
            Applied::Content(Cow::Borrowed(_)) => Answering::With(body),
            Applied::Content(Cow::Owned(filtered)) => Answering::With(filtered.into()),
            Applied::Skipped => Answering::Not,
            Applied::Asks(filter, content) => {
                let class = filter::class(filters, &body, &standing.meta, ids);
                let content = Bytes::copy_from_slice(&content);
                // A body is laid over what the origin of this long-poll said.
                let class = [class, content.to_vec()].concat();
                let ahead = ahead(filters, work.words(), filter, &content);
                Answering::Asks(Box::new(wording(standing, &item.meta, (filter, content, class), ahead)?))
            }
        })
    }
}

impl Content {
    fn len(&self) -> usize {
        match self {
            Self::Chunk(chunk) => chunk.framed().len(),
            Self::Message(message) => message.plain().len(),
        }
    }
}

/// What a long-poll's filters make of an answer's body.
#[derive(Debug)]
pub(super) enum Answering {
    With(Bytes),
    Not,
    /// Its origin is to be asked first.
    Asks(Box<Wording>),
}

fn wording(
    standing: &Standing,
    item_meta: &filter::Meta,
    (filter, content, class): (Filter, Bytes, Vec<u8>),
    ahead: usize,
) -> Result<Wording, TemplateError> {
    let trail = standing.trail.as_ref().ok_or(TemplateError::Url)?;
    Ok(Wording {
        filter,
        place: question::place(&trail.home, &standing.meta)?,
        trail: Rc::clone(trail),
        sub_meta: question::header(&standing.meta)?,
        pub_meta: question::header(item_meta)?,
        content: if filter == Filter::HttpModify { content } else { Bytes::new() },
        ahead,
        class,
    })
}

/// What a later filter may have to say to the origin when this one has its answer: room for it is taken beforehand,
/// because what has been asked about before does not wait for room.
fn ahead(filters: &[Filter], words: &[question::Word], filter: Filter, content: &[u8]) -> usize {
    let mut later = filters.iter().filter(|filter| filter.asks()).skip(words.len() + 1);
    match filter {
        _ if !later.any(|later| *later == Filter::HttpModify) => 0,
        Filter::HttpModify => content.len().max(question::MOST_BYTES),
        _ => content.len(),
    }
}

/// What filters make of an item for all of whom they read the same.
#[derive(Clone, Debug)]
pub(super) enum Made {
    Place(usize),
    Skipped,
    /// This filter asks about it, with this content, which is that of this class.
    Asks(Filter, Bytes, Vec<u8>),
}

impl Work {
    /// Whether filters made something of what is written.
    pub(super) fn is_made(&self, items: &[usize]) -> bool {
        items.iter().any(|place| *place >= self.batch.len())
    }

    /// Lets go of what filters made, when all of it is written.
    pub(super) fn forget_made(&mut self) {
        let items = self.batch.len();
        self.by_items.retain(|(_, places), _| places.iter().all(|place| *place < items));
        self.parked.retain(|(.., place), _| place.is_none_or(|place| place < items));
        self.by_class.clear();
        self.variants.clear();
        self.made = 0;
    }

    /// The item at a place, or whose variant is there.
    pub(super) fn item(&self, place: usize) -> usize {
        place.checked_sub(self.batch.len()).map_or(place, |variant| self.variants[variant].item)
    }

    pub(super) fn chunk(&self, place: usize) -> Option<&Chunk> {
        match place.checked_sub(self.batch.len()).map(|variant| &self.variants[variant].content) {
            Some(Content::Chunk(chunk)) => Some(chunk),
            Some(Content::Message(_)) => None,
            None => match &self.batch[place].item.stream {
                Some(StreamPart::Send(chunk)) => Some(chunk),
                _ => None,
            },
        }
    }

    pub(super) fn message(&self, place: usize) -> Option<&Message> {
        match place.checked_sub(self.batch.len()).map(|variant| &self.variants[variant].content) {
            Some(Content::Message(message)) => Some(message),
            Some(Content::Chunk(_)) => None,
            None => match &self.batch[place].item.message {
                Some(MessagePart::Send(message)) => Some(message),
                _ => None,
            },
        }
    }

    /// An item, or what filters made of it, for holds that it waits for; without a place nothing of it is for them.
    pub(super) fn parked(&mut self, list: List, item: usize, place: Option<usize>) -> Rc<Parked> {
        let key = (list.is_spoken_to(), item, place);
        if let Some(known) = self.parked.get(&key) {
            return Rc::clone(known);
        }
        let delivery = &self.batch[item];
        let part = place.and_then(|place| match list {
            List::WebSockets | List::SockJs => match (self.message(place), &delivery.item.message) {
                (Some(message), _) => Some(ParkedPart::Message(message.clone())),
                (None, Some(MessagePart::Close(frame))) => Some(ParkedPart::Close(frame.clone())),
                (None, _) => None,
            },
            List::Streams | List::Polls => match self.chunk(place) {
                Some(chunk) => Some(ParkedPart::Content(chunk.clone())),
                None => (self.part(List::Streams, item) == Some(Part::End)).then_some(ParkedPart::End),
            },
        });
        let parked = Parked::new(&delivery.item, delivery.place, part);
        self.parked.insert(key, Rc::clone(&parked));
        parked
    }

    /// The place of what filters make of an item for a subscriber with this meta and these ids: made once for all of
    /// whom they read the same.
    fn variant<'i>(
        &mut self,
        list: List,
        item: usize,
        filters: SmallVec<[Filter; 2]>,
        meta: &filter::Meta,
        ids: impl Fn(&str) -> Option<&'i str>,
    ) -> Result<Made, TemplateError> {
        let content = match list {
            List::WebSockets | List::SockJs => self.message(item).map(Message::content),
            List::Streams | List::Polls => self.chunk(item).map(Chunk::content_slice),
        };
        let content = content.unwrap_or_default();
        let class = filter::class(&filters, content, meta, &ids);
        let looked_at = content.len() + class.len();
        let key = (item, list, filters, class);
        if let Some(known) = self.by_class.get(&key) {
            self.filtered += looked_at;
            return known.clone();
        }
        let made = match filter::apply(&key.2, self.words(), content, meta, &ids) {
            Err(error) => Err(error),
            Ok(Applied::Skipped) => Ok(Made::Skipped),
            Ok(Applied::Asks(filter, content)) => {
                Ok(Made::Asks(filter, Bytes::copy_from_slice(&content), key.3.clone()))
            }
            // It stays as it is, and is shared.
            Ok(Applied::Content(Cow::Borrowed(_))) => Ok(Made::Place(item)),
            Ok(Applied::Content(Cow::Owned(content))) => self.with_content(list, item, &content),
        };
        self.filtered += looked_at;
        self.made += key.3.len() + VARIANT;
        self.by_class.insert(key, made.clone());
        made
    }

    fn with_content(&mut self, list: List, item: usize, content: &[u8]) -> Result<Made, TemplateError> {
        let content = match list {
            List::WebSockets | List::SockJs => self
                .message(item)
                .and_then(|message| message.with_content(content))
                .map(Content::Message)
                .ok_or(TemplateError::NotText)?,
            List::Streams | List::Polls => Content::Chunk(Chunk::new(content)),
        };
        let bytes = content.len();
        self.filtered += bytes;
        // Its payload is as large again.
        self.made += 2 * bytes;
        self.variants.push(Variant { item, content });
        Ok(Made::Place(self.batch.len() + self.variants.len() - 1))
    }
}

/// What a variant holds besides its bytes.
const VARIANT: usize = 512;

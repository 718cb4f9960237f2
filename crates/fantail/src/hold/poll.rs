//! A held long-poll: what it is answered with, by an item or when its time is up (spec 3.6, 3.7). And how all responses
//! to held requests begin.

use std::{borrow::Cow, time::SystemTime};

use bytes::Bytes;
use fantail_proto::{
    cors::Cors,
    grip::Reply,
    item::{Response, ResponseBody},
    jsonp::{Call, UNSPEAKABLE},
    patch,
    render::Chunk,
    reply::{self, Framing, Head, Version},
};
use http::{
    HeaderMap, HeaderValue,
    header::{CONTENT_TYPE, DATE},
};

/// What a long-poll keeps while it waits.
#[derive(Debug)]
pub struct Poll {
    /// The origin's answer: sent when the time is up, and what items are laid over.
    pub reply: Reply,
    /// The request as it came, to be read again when the origin is asked once more.
    pub request: Vec<u8>,
    /// What the client had sent behind it.
    pub unread: Vec<u8>,
    pub shape: Shape,
    pub answered: bool,
    /// Its origin is to be asked again, and it waits for its turn.
    pub due: bool,
    /// Then it is not one that waits for an item: what its client has last, by channel, and no log could go on from.
    pub missed: Vec<(String, String)>,
    /// So often in a row has its origin been asked again, or is to be, because an item came that does not fit what it said.
    pub doubts: u8,
    /// What the answer says to pages of other origins.
    pub cors: Option<Box<Cors>>,
    /// The answer is a call of the page's function.
    pub jsonp: Option<Box<Call>>,
}

/// How the client must be answered.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// HTTP/1.1, or HTTP/1.0.
    pub http11: bool,
    /// Head only.
    pub head: bool,
    pub keep_alive: bool,
}

impl Poll {
    /// The response to send when the time is up.
    pub(super) fn time_out(&self) -> Vec<u8> {
        self.respond(self.reply.code, &self.reply.reason, &self.reply.headers, &self.reply.body)
    }

    /// The body of the response that an item makes.
    pub(super) fn body(&self, item: &Response) -> Bytes {
        match &item.body {
            ResponseBody::Whole(body) => body.clone(),
            // A patch that does not fit leaves what the origin said.
            ResponseBody::Patch(change) => {
                patch::apply(change, &self.reply.body).map_or_else(|| self.reply.body.clone(), Bytes::from)
            }
        }
    }

    /// The response that an item makes, with this body.
    pub(super) fn answer(&self, item: &Response, body: &Bytes) -> Vec<u8> {
        self.respond(item.code, &item.reason, &reply::merged(&self.reply.headers, item), body)
    }

    /// The answer when there can be none.
    pub(super) fn fail(&self, why: &str) -> Vec<u8> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/plain"))]);
        self.respond(502, "", &headers, &Bytes::copy_from_slice(why.as_bytes()))
    }

    fn respond(&self, code: u16, reason: &str, headers: &HeaderMap, body: &Bytes) -> Vec<u8> {
        match self.jsonp.as_ref().map(|call| call.answer(code, reason, headers, body)) {
            None => self.write(code, reason, headers, body),
            Some(Some((headers, body))) => self.write(200, "", &headers, &body),
            Some(None) => self.write(500, "", &HeaderMap::new(), &Bytes::from_static(UNSPEAKABLE.as_bytes())),
        }
    }

    fn write(&self, code: u16, reason: &str, headers: &HeaderMap, body: &Bytes) -> Vec<u8> {
        let mut headers = Cow::Borrowed(headers);
        if let Some(cors) = &self.cors {
            cors.apply(headers.to_mut());
        }
        let framing = Framing::Length(body.len() as u64);
        let mut response = self.shape.begin(code, reason, &headers, framing, body.len());
        if !self.shape.head && reply::allows_body(code) {
            response.extend_from_slice(body);
        }
        response
    }
}

impl Shape {
    /// The head of a response, with room for as many bytes behind it.
    pub(super) fn begin(
        self,
        code: u16,
        reason: &str,
        headers: &HeaderMap,
        framing: Framing,
        room: usize,
    ) -> Vec<u8> {
        let dated = headers.contains_key(DATE);
        let date = if dated { String::new() } else { httpdate::fmt_http_date(SystemTime::now()) };
        let mut response = Vec::with_capacity(HEAD_BYTES + room);
        Head {
            version: if self.http11 { Version::Http11 } else { Version::Http10 },
            code,
            reason,
            headers,
            framing,
            keep_alive: self.keep_alive && framing != Framing::Close,
            date: &date,
        }
        .write(&mut response);
        response
    }

    /// A stream's response, as far as its origin has said it.
    pub fn begin_stream(self, reply: &Reply) -> Bytes {
        let framing = if self.http11 { Framing::Chunked } else { Framing::Close };
        let said = Chunk::new(&reply.body);
        let said = if self.http11 { said.framed() } else { said.content_slice() };
        let mut response = self.begin(reply.code, &reply.reason, &reply.headers, framing, said.len());
        response.extend_from_slice(said);
        response.into()
    }
}

/// Enough for most heads.
const HEAD_BYTES: usize = 512;

//! What a client sees when something went wrong: one function, by whose fault it was. What the log says
//! is another text.

use std::fmt::Write;

use fantail_proto::{
    grip::InstructError,
    jsonp,
    request::Refusal,
    websocket::handshake,
    zhttp::{Broken, Condition},
};
use http::StatusCode;

use crate::upstream::Failure;

/// Why a request was not answered by its origin.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("no more connections can be held")]
    Full,
    #[error("no route")]
    NoRoute,
    #[error("no WebSocket: {0}")]
    Handshake(handshake::Refusal),
    #[error("a page of {0} may not open WebSockets")]
    Page(String),
    #[error("a client sends events of a WebSocket itself")]
    Events,
    #[error("a client sends a stanza itself")]
    Stanza,
    #[error("{target}: {why}")]
    NotOpened { target: String, why: String },
    #[error("JSON-P: {0}")]
    JsonP(jsonp::Invalid),
    #[error("CDN-Loop names this server")]
    Loop,
    /// What is wrong with the client's body.
    #[error("{0}")]
    Body(Refusal),
    #[error("the client's body broke off")]
    BodyLost,
    #[error("the request is too large to be held")]
    RequestTooLarge,
    /// No target could be reached; as they are in the routes.
    #[error("no target reached: {0}", .tried.join(", "))]
    Unreached { tried: Vec<String> },
    #[error("{target}: {failure}")]
    Upstream { target: String, failure: Failure },
    #[error("{target}: the answer's body is too large to be held")]
    AnswerTooLarge { target: String },
    #[error("{target}: the answer broke off")]
    AnswerLost { target: String },
    #[error("{target}: {error}")]
    Instruct { target: String, error: InstructError },
}

/// The status and the text for the client; `debug` tells it why.
pub fn answer(fault: &Fault, debug: bool) -> (StatusCode, String) {
    let origin = |status: StatusCode, why: String| {
        let text = if debug { why } else { "Error while proxying to origin.\n".into() };
        (status, text)
    };
    match fault {
        // The same with and without debug (spec 1.1, 8).
        Fault::NoRoute => (StatusCode::BAD_GATEWAY, "Route not found\n".into()),
        // The same text whatever is wrong (spec 7.1); the log knows more.
        Fault::Handshake(_) => (
            StatusCode::BAD_REQUEST,
            "Request contained an Upgrade header with value \"websocket\" but the request was not a valid \
             WebSocket request.\n"
                .into(),
        ),
        Fault::Page(_) => (StatusCode::FORBIDDEN, "This page may not open WebSockets here.\n".into()),
        Fault::Events => {
            (StatusCode::FORBIDDEN, "Client not allowed to send WebSocket events directly.\n".into())
        }
        Fault::Stanza => {
            (StatusCode::FORBIDDEN, "Client not allowed to send XMPP stanzas directly.\n".into())
        }
        Fault::NotOpened { .. } => origin(StatusCode::BAD_GATEWAY, format!("{fault}\n")),
        Fault::Full => (StatusCode::SERVICE_UNAVAILABLE, "Too many connections.\n".into()),
        Fault::JsonP(invalid) => (StatusCode::BAD_REQUEST, format!("{invalid}\n")),
        Fault::Loop => (StatusCode::LOOP_DETECTED, "Loop detected.\n".into()),
        Fault::Body(refusal) => (refusal.status(), format!("{refusal}\n")),
        Fault::BodyLost => (StatusCode::BAD_REQUEST, "The request's body did not arrive whole.\n".into()),
        Fault::RequestTooLarge => {
            (StatusCode::BAD_REQUEST, "Request too large to accept GRIP instruct.\n".into())
        }
        Fault::Unreached { tried } => origin(
            StatusCode::BAD_GATEWAY,
            format!("Unable to connect to any targets. Tried: {}\n", tried.join(", ")),
        ),
        Fault::Upstream { failure: Failure::Silent(_), .. } => {
            origin(StatusCode::GATEWAY_TIMEOUT, format!("{fault}\n"))
        }
        Fault::Upstream { failure: Failure::Busy(_), .. } => {
            origin(StatusCode::SERVICE_UNAVAILABLE, format!("{fault}\n"))
        }
        Fault::Upstream { failure: Failure::Blocked, .. } => {
            origin(StatusCode::BAD_GATEWAY, "Error: Origin host/IP blocked.\n".into())
        }
        Fault::Upstream { failure: Failure::TooLarge(_), .. } => {
            origin(StatusCode::PAYLOAD_TOO_LARGE, format!("{fault}\n"))
        }
        Fault::Upstream { failure: Failure::NoWebSockets, .. } => {
            origin(StatusCode::BAD_GATEWAY, format!("{}\n", Failure::NoWebSockets))
        }
        Fault::Upstream { failure: Failure::Worker(Broken::Said(Condition::PolicyViolation)), .. } => {
            origin(StatusCode::BAD_GATEWAY, "Error: Origin host/IP blocked.\n".into())
        }
        // The same with and without debug (spec 1.6).
        Fault::Upstream { failure: Failure::Worker(Broken::Said(Condition::LengthRequired)), .. } => {
            (StatusCode::LENGTH_REQUIRED, "Must provide Content-Length header.\n".into())
        }
        Fault::AnswerTooLarge { target } => {
            origin(StatusCode::BAD_GATEWAY, format!("GRIP instruct response too large from {target}\n"))
        }
        Fault::Instruct { error, .. } => {
            origin(StatusCode::BAD_GATEWAY, format!("Failed to parse accept instructions: {error}\n"))
        }
        Fault::Upstream { .. } | Fault::AnswerLost { .. } => {
            origin(StatusCode::BAD_GATEWAY, format!("{fault}\n"))
        }
    }
}

/// A whole response for a client whose request never came to be one.
pub fn refusal(status: StatusCode, text: &str) -> Vec<u8> {
    let mut response = String::new();
    let length = text.len() + 1;
    write!(
        response,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}\n"
    )
    .expect("writing to a string does not fail");
    response.into_bytes()
}

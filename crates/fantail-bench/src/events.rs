//! Bodies of `application/websocket-events`: what an origin that opens and echoes answers to one. Each event
//! is `TYPE` or `TYPE SP HEXLEN`, CRLF, and with a length the content and CRLF.

use memchr::{memchr, memmem};

/// What the origin says besides echoes.
#[derive(Debug, Default)]
pub(crate) struct Grip {
    /// Sent behind OPEN: subscribes to a channel. With it, echoes have the prefix of GRIP.
    pub(crate) subscribe: Option<String>,
}

impl Grip {
    pub(crate) fn new(channel: Option<&str>) -> Self {
        let message = |channel| format!(r#"c:{{"type":"subscribe","channel":"{channel}"}}"#);
        Self { subscribe: channel.map(message) }
    }

    /// Appends the answer to `body`: the same messages, a pong for each ping, a CLOSE for a CLOSE. `None` if
    /// it is no list of events.
    pub(crate) fn answer(&self, mut body: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let prefix: &[u8] = if self.subscribe.is_some() { b"m:" } else { b"" };
        while !body.is_empty() {
            let line = memmem::find(body, CRLF)?;
            let (name, rest) = (&body[..line], &body[line + CRLF.len()..]);
            let (name, content, rest) = match memchr(b' ', name) {
                None => (name, None, rest),
                Some(space) => {
                    let length = str::from_utf8(&name[space + 1..]).ok()?;
                    let (content, rest) = rest.split_at_checked(usize::from_str_radix(length, 16).ok()?)?;
                    (&name[..space], Some(content), rest.strip_prefix(CRLF)?)
                }
            };
            body = rest;
            let content = content.unwrap_or_default();
            match name {
                b"OPEN" => {
                    append(b"OPEN", &[], out);
                    if let Some(subscribe) = &self.subscribe {
                        append(b"TEXT", &[subscribe.as_bytes()], out);
                    }
                }
                b"TEXT" | b"BINARY" => append(name, &[prefix, content], out),
                b"PING" => append(b"PONG", &[content], out),
                b"CLOSE" => append(name, &[content], out),
                _ => {}
            }
        }
        Some(())
    }
}

fn append(name: &[u8], content: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    let length: usize = content.iter().map(|part| part.len()).sum();
    if length > 0 {
        out.extend_from_slice(format!(" {length:x}\r\n").as_bytes());
        content.iter().for_each(|part| out.extend_from_slice(part));
    }
    out.extend_from_slice(CRLF);
}

const CRLF: &[u8] = b"\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(channel: Option<&str>, body: &str) -> Option<String> {
        let mut out = Vec::new();
        Grip::new(channel).answer(body.as_bytes(), &mut out)?;
        Some(String::from_utf8(out).unwrap())
    }

    #[test]
    fn events_are_answered() {
        let subscribed = "OPEN\r\nTEXT 27\r\nc:{\"type\":\"subscribe\",\"channel\":\"test\"}\r\n";
        let table = [
            (None, "OPEN\r\n", Some("OPEN\r\n")),
            (Some("test"), "OPEN\r\n", Some(subscribed)),
            (None, "TEXT 2\r\nhi\r\nBINARY 1\r\n\0\r\n", Some("TEXT 2\r\nhi\r\nBINARY 1\r\n\0\r\n")),
            (Some("test"), "TEXT 2\r\nhi\r\nTEXT\r\n", Some("TEXT 4\r\nm:hi\r\nTEXT 2\r\nm:\r\n")),
            (Some("test"), "PING 1\r\na\r\nPONG\r\n", Some("PONG 1\r\na\r\n")),
            (None, "CLOSE 2\r\n\x03\x7f\r\nCLOSE\r\n", Some("CLOSE 2\r\n\x03\x7f\r\nCLOSE\r\n")),
            (None, "DISCONNECT\r\n", Some("")),
            (None, "TEXT 3\r\nhi\r\n", None),
            (None, "TEXT -1\r\nhi\r\n", None),
            (None, "OPEN", None),
        ];
        for (channel, body, expected) in table {
            assert_eq!(answer(channel, body).as_deref(), expected, "{body:?}");
        }
    }
}

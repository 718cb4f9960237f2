//! The publishing side of a run: a few lines that post messages, each opening with its marker.

use crate::error::Error;
use crate::line::{Line, Outcome};
use crate::marker::Marker;
use crate::options::{Publish, Template};
use crate::socket::{self, Poller};

/// Set in the tokens of publishing lines, to tell them from subscribers.
const PUBLISHER: u64 = 1 << 32;

#[derive(Debug)]
pub(crate) struct Publisher<'a> {
    options: &'a Publish,
    template: Template,
    head: String,
    lines: Vec<Line>,
    /// Answered with a 2xx status.
    pub(crate) accepted: u64,
    /// Anything else; the first is printed.
    pub(crate) refused: u64,
}

/// The default body: an item for the channel "test" in one format.
#[derive(Debug)]
pub(crate) enum Format {
    HttpStream,
    HttpResponse,
    WsMessage,
    HttpRequest,
}

impl Format {
    fn template(&self) -> Template {
        let member = match self {
            Self::HttpStream => r#""http-stream":{"content""#,
            Self::HttpResponse => r#""http-response":{"body""#,
            Self::WsMessage => r#""ws-message":{"content""#,
            Self::HttpRequest => r#""http-request":{"body""#,
        };
        let before = format!(r#"{{"items":[{{"channel":"test","formats":{{{member}:""#);
        Template { before, after: r#""}}}]}"#.into() }
    }
}

impl<'a> Publisher<'a> {
    /// Messages go out in `format`, unless the options give a body.
    pub(crate) fn new(options: &'a Publish, format: &Format) -> Self {
        let template = options.body.clone().unwrap_or_else(|| format.template());
        let lines = (0..u64::from(options.pubs)).map(|index| Line::new(options.address.0, PUBLISHER | index));
        Self { options, template, head: options.head(), lines: lines.collect(), accepted: 0, refused: 0 }
    }

    pub(crate) fn owns(token: u64) -> bool {
        token & PUBLISHER != 0
    }

    /// Requests whose answer is due.
    pub(crate) fn in_flight(&self) -> usize {
        self.lines.iter().filter(|line| line.busy).count()
    }

    /// Posts message `number`, unless every line is busy: then false.
    pub(crate) fn publish(&mut self, poller: &Poller, number: u64) -> Result<bool, Error> {
        let Some(line) = self.lines.iter_mut().find(|line| !line.busy) else { return Ok(false) };
        let message = Marker { number, sent: socket::now() }.message(self.options.size as usize);
        let end = if self.options.raw { "\n" } else { "\\n" };
        let Template { before, after } = &self.template;
        let length = before.len() + message.len() + end.len() + after.len();
        line.ask(poller, |request| {
            let length = length.to_string();
            for part in [&self.head, &length, "\r\n\r\n", before, &message, end, after] {
                request.extend_from_slice(part.as_bytes());
            }
        })?;
        Ok(true)
    }

    /// Goes on after an event whose token it [`owns`](Self::owns).
    pub(crate) fn ready(&mut self, poller: &Poller, token: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let Some(line) = self.lines.get_mut((token & !PUBLISHER) as usize) else { return Ok(()) };
        let why = match line.ready(poller, buffer)? {
            Outcome::Pending => return Ok(()),
            Outcome::Answered(answer, _) if (200..300).contains(&answer.status) => {
                self.accepted += 1;
                return Ok(());
            }
            Outcome::Answered(_, bytes) => {
                String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned()
            }
            Outcome::Failed(why) => why,
        };
        if self.refused == 0 {
            eprintln!("fantail-bench: the first refused publish: {why}");
        }
        self.refused += 1;
        Ok(())
    }
}

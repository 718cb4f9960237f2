//! `fantail publish`: makes one item of the command line and posts it to a control port, or to anything
//! that speaks GRIP's publishing over HTTP or has a PULL socket of ZeroMQ (spec 9.12).

mod push;

use std::{
    ffi::{OsStr, OsString},
    io::{self, IsTerminal as _, Read as _},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::say;
use crate::{
    config::Config,
    logging::printable,
    metrics::Counters,
    sign::{self, Key, KeyError},
    upstream::{Destination, Failure, Tls, Upload, Upstream},
};

#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "flags of the command line, in any combination")]
pub struct Publish {
    channel: String,
    /// What to send: text, @FILE, or - for standard input, which is also read when this is missing
    content: Option<OsString>,
    /// The item's id
    #[arg(long)]
    id: Option<String>,
    /// The id of the item before it
    #[arg(long)]
    prev_id: Option<String>,
    /// Who sends it: meta "sender"
    #[arg(long)]
    sender: Option<String>,
    /// The status of http-response
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u16).range(200..=999))]
    code: u16,
    /// The method of http-request
    #[arg(long, value_name = "METHOD", default_value = "POST")]
    method: String,
    /// A header of http-response and http-request [may repeat]
    #[arg(short = 'H', long = "header", value_name = "K: V", value_parser = header_pair)]
    headers: Vec<(String, String)>,
    /// What filters read [may repeat]
    #[arg(short = 'M', long = "meta", value_name = "K=V", value_parser = meta_pair)]
    meta: Vec<(String, String)>,
    /// Only this format [may repeat; default: all but http-request, which is for webhooks]
    #[arg(long = "format", value_name = "FORMAT")]
    formats: Vec<Format>,
    /// A stanza for XMPP addresses; without CONTENT it is all
    #[arg(long, value_name = "XML")]
    stanza: Option<String>,
    /// Tell holds to ask the origin, instead of content
    #[arg(long, group = "action", conflicts_with = "content")]
    hint: bool,
    /// End streams and WebSockets, instead of content
    #[arg(long, group = "action", conflicts_with = "content")]
    close: bool,
    /// The close code of ws-message [default: 1000]
    #[arg(long, value_name = "N", requires = "close")]
    close_code: Option<u16>,
    /// The close reason of ws-message, with a code
    #[arg(long, value_name = "TEXT", requires = "close_code")]
    close_reason: Option<String>,
    /// Have the origins of WebSockets over HTTP asked, instead of content
    #[arg(long, group = "action", conflicts_with = "content")]
    refresh: bool,
    /// What ws-message is [default: text, or binary if the content is not UTF-8]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<Kind>,
    /// CONTENT is a JSON Patch of the body that the origin gave with the hold (http-response only)
    #[arg(long, group = "action")]
    patch: bool,
    /// Deliver at once, whatever came before
    #[arg(long)]
    no_seq: bool,
    /// Do not end the content for HTTP with a newline
    #[arg(long)]
    no_eol: bool,
    /// Where to publish: http://, https://, or tcp:// and ipc:// for ZeroMQ [default: GRIP_URL of the environment, else
    /// http://localhost:5561]
    #[arg(long, value_name = "URL")]
    spec: Option<String>,
    /// Basic authentication
    #[arg(short, long, value_name = "USER:PASSWORD", conflicts_with_all = ["bearer", "key"])]
    user: Option<String>,
    /// A bearer token
    #[arg(short = 'B', long, value_name = "TOKEN", conflicts_with = "key")]
    bearer: Option<String>,
    /// Publish to this realm's own endpoint
    #[arg(long, value_name = "ID", value_parser = realm_id)]
    realm: Option<String>,
    /// Sign a token with this key: as it is, base64:… or file:PATH
    #[arg(long)]
    key: Option<String>,
    /// Wait for delivery and print what became of the item, as JSON
    #[arg(long)]
    receipt: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    HttpResponse,
    HttpStream,
    WsMessage,
    HttpRequest,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Text,
    Binary,
    Ping,
    Pong,
}

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("must specify content: as an argument, as @FILE, or on standard input")]
    NoContent,
    #[error("{file}: {source}")]
    Read { file: String, source: io::Error },
    #[error("the content is longer than {MAX_CONTENT} bytes")]
    LongContent,
    #[error("the content is no JSON Patch: write a list, as in [{{\"op\": \"add\", …}}]")]
    NoPatch,
    #[error("--{0} means nothing to the format asked for")]
    NoFormat(&'static str),
    #[error("{0} is no address to publish to: write http://HOST:PORT, https://HOST/PATH or tcp://HOST:PORT")]
    Spec(String),
    #[error("{0} is of ZeroMQ, which knows no --user, --bearer, --key, --realm and --receipt")]
    Plain(String),
    #[error("{to}: {source}")]
    Push { to: String, source: push::Unsent },
    #[error("key: {0}")]
    Key(#[from] KeyError),
    #[error("the user, token or key cannot stand in a header")]
    Authorization,
    #[error("{to}: {source}")]
    Send { to: String, source: Failure },
    #[error("{to}: no answer within {0:?}", PATIENCE)]
    Late { to: String },
    #[error("{to}: the answer broke off: {source}")]
    Answer { to: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{status}: {body}")]
    Refused { status: StatusCode, body: String },
    #[error("{0}")]
    Runtime(io::Error),
}

/// The arguments, with the subcommand put in for a program that is called `pushpin-publish` (spec 9.12).
pub(super) fn named(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.collect();
    let name = arguments.first().and_then(|path| Path::new(path).file_name());
    if name.is_some_and(|name| name == "pushpin-publish") {
        arguments.insert(1, "publish".into());
    }
    arguments
}

/// Publishes, and says `Published` or what went wrong.
pub fn publish(options: &Publish) -> ExitCode {
    match try_publish(options) {
        Ok(receipt) if options.receipt => say(&(receipt.trim_end().to_owned() + "\n")),
        Ok(_) => say("Published\n"),
        Err(why) => {
            eprintln!("Error: {}", printable(&why.to_string()));
            ExitCode::FAILURE
        }
    }
}

/// The answer's body.
fn try_publish(options: &Publish) -> Result<String, Error> {
    let grip_url = std::env::var("GRIP_URL").ok().filter(|url| !url.is_empty());
    let spec = options.spec.as_deref().or(grip_url.as_deref()).unwrap_or(LOCAL);
    let socket = push::endpoint(spec);
    if socket.is_some() && options.wants_http() {
        return Err(Error::Plain(spec.to_owned()));
    }
    let endpoint = if socket.is_none() { Some(Endpoint::new(spec, options)?) } else { None };
    let content = if options.hint || options.close || options.refresh || options.is_stanza_alone() {
        None
    } else {
        Some(Content::read(options)?)
    };
    let item = item(options, content.as_ref())?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    let to = endpoint.as_ref().map_or(spec, |endpoint| &endpoint.name).to_owned();
    runtime.block_on(async {
        let sending = async {
            match (&endpoint, &socket) {
                (Some(endpoint), _) => endpoint.post(json!({ "items": [item] }).to_string()).await,
                (None, Some(socket)) => {
                    let sent = push::push(socket, format!("J{item}").as_bytes()).await;
                    sent.map(|()| String::new()).map_err(|source| Error::Push { to: to.clone(), source })
                }
                (None, None) => Err(Error::Spec(spec.to_owned())),
            }
        };
        tokio::time::timeout(PATIENCE, sending).await.map_err(|_| Error::Late { to: to.clone() })?
    })
}

impl Publish {
    fn is_stanza_alone(&self) -> bool {
        let acts = self.hint || self.close || self.refresh;
        self.stanza.is_some() && self.content.is_none() && self.formats.is_empty() && !acts
    }

    /// Whether something is asked for that only HTTP can do.
    fn wants_http(&self) -> bool {
        let proofs = [&self.user, &self.bearer, &self.key, &self.realm];
        self.receipt || proofs.iter().any(|proof| proof.is_some())
    }
}

/// What is sent, with and without the newline that HTTP clients like.
#[derive(Debug)]
struct Content {
    bytes: Vec<u8>,
    /// Of an argument, that is: a file's own bytes are left alone.
    newline: bool,
}

impl Content {
    fn read(options: &Publish) -> Result<Self, Error> {
        let stdin = || ("standard input".to_owned(), Box::new(io::stdin()) as Box<dyn io::Read>);
        let argument = options.content.as_deref().map(OsStr::as_bytes);
        let (file, input) = match argument {
            Some(b"-") => stdin(),
            Some([b'@', path @ ..]) => {
                let path = OsStr::from_bytes(path);
                let file = path.to_string_lossy().into_owned();
                match std::fs::File::open(path) {
                    Ok(open) => (file, Box::new(open) as Box<dyn io::Read>),
                    Err(source) => return Err(Error::Read { file, source }),
                }
            }
            Some(text) => {
                let newline = !options.no_eol && !options.patch;
                return Ok(Self { bytes: text.to_vec(), newline });
            }
            None if io::stdin().is_terminal() => return Err(Error::NoContent),
            None => stdin(),
        };
        let mut bytes = Vec::new();
        match input.take(MAX_CONTENT + 1).read_to_end(&mut bytes) {
            Ok(read) if u64::try_from(read).is_ok_and(|read| read > MAX_CONTENT) => Err(Error::LongContent),
            Ok(0) if argument.is_none() => Err(Error::NoContent),
            Ok(_) => Ok(Self { bytes, newline: false }),
            Err(source) => Err(Error::Read { file, source }),
        }
    }

    fn for_http(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if self.newline {
            bytes.push(b'\n');
        }
        bytes
    }
}

/// The item as JSON (spec 5.3). `content` is `None` for a hint or close.
fn item(options: &Publish, content: Option<&Content>) -> Result<Value, Error> {
    let mut item = Map::new();
    item.insert("channel".into(), json!(options.channel));
    for (name, value) in [("id", &options.id), ("prev-id", &options.prev_id)] {
        item.extend(value.as_ref().map(|value| (name.to_owned(), json!(value))));
    }
    let sender = options.sender.as_ref().map(|sender| ("sender".to_owned(), json!(sender)));
    let meta: Map<String, Value> =
        options.meta.iter().map(|(name, value)| (name.clone(), json!(value))).chain(sender).collect();
    if !meta.is_empty() {
        item.insert("meta".into(), Value::Object(meta));
    }
    if options.no_seq {
        item.insert("no-seq".into(), json!(true));
    }
    let mut formats = if options.is_stanza_alone() { Map::new() } else { formats(options, content)? };
    let stanza = options.stanza.as_ref().map(|stanza| json!({ "content": stanza }));
    formats.extend(stanza.map(|stanza| ("xmpp-stanza".to_owned(), stanza)));
    item.insert("formats".into(), Value::Object(formats));
    Ok(Value::Object(item))
}

fn formats(options: &Publish, content: Option<&Content>) -> Result<Map<String, Value>, Error> {
    use Format::{HttpRequest, HttpResponse, HttpStream, WsMessage};
    let wanted = |format: &Format| match (options.formats.is_empty(), format) {
        (true, format) => *format != HttpRequest,
        (false, format) => options.formats.contains(format),
    };
    let of = |formats: &[Format], action: &'static str, value: &Value| {
        let wanted: Map<_, _> =
            formats.iter().filter(|f| wanted(f)).map(|f| (f.name().to_owned(), value.clone())).collect();
        if wanted.is_empty() { Err(Error::NoFormat(action)) } else { Ok(wanted) }
    };
    let Some(content) = content else {
        return if options.hint {
            of(&[HttpResponse, HttpStream], "hint", &json!({ "action": "hint" }))
        } else if options.refresh {
            of(&[WsMessage], "refresh", &json!({ "action": "refresh" }))
        } else {
            let mut close = json!({ "action": "close" });
            if let Some(code) = options.close_code {
                close["code"] = json!(code);
                close["reason"] = json!(options.close_reason.as_deref().unwrap_or_default());
            }
            of(&[HttpStream, WsMessage], "close", &close)
        };
    };
    let headers: Vec<_> = options.headers.iter().map(|(name, value)| json!([name, value])).collect();
    let (name, body) = member("body", content.bytes.clone());
    let request = json!({ "method": options.method, "headers": headers, name: body });
    let mut response = json!({ "code": options.code, "headers": headers });
    if options.patch {
        let patch: Vec<Value> = serde_json::from_slice(&content.bytes).map_err(|_| Error::NoPatch)?;
        response["body-patch"] = Value::Array(patch);
        return of(&[HttpResponse], "patch", &response);
    }
    let (name, body) = member("body", content.for_http());
    response[name] = body;
    let (name, stream) = member("content", content.for_http());
    let (ws_name, message) = member("content", content.bytes.clone());
    let mut ws_message = json!({ ws_name: message });
    if let Some(kind) = options.kind {
        ws_message["type"] = json!(kind.name());
    }
    let stream = json!({ name: stream });
    let all =
        [(HttpResponse, response), (HttpStream, stream), (WsMessage, ws_message), (HttpRequest, request)];
    Ok(all.into_iter().filter(|(f, _)| wanted(f)).map(|(f, value)| (f.name().to_owned(), value)).collect())
}

/// Text as it is; other bytes in base64, under the name that says so.
fn member(name: &str, bytes: Vec<u8>) -> (String, Value) {
    match String::from_utf8(bytes) {
        Ok(text) => (name.to_owned(), Value::String(text)),
        Err(binary) => (format!("{name}-bin"), Value::String(BASE64.encode(binary.as_bytes()))),
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Binary => "binary",
            Self::Ping => "ping",
            Self::Pong => "pong",
        }
    }
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::HttpResponse => "http-response",
            Self::HttpStream => "http-stream",
            Self::WsMessage => "ws-message",
            Self::HttpRequest => "http-request",
        }
    }
}

/// Where an item is posted, and by whom.
#[derive(Debug)]
struct Endpoint {
    /// For messages: without user or key.
    name: String,
    to: Destination,
    host: String,
    path: String,
    authorization: Option<HeaderValue>,
    /// The answer's body is wanted, whole.
    receipt: bool,
}

impl Endpoint {
    /// `spec` is a GRIP URL: its query may hold `iss` and `key`, its authority a user.
    fn new(spec: &str, options: &Publish) -> Result<Self, Error> {
        let without_query = || Error::Spec(spec.split(['?', '@']).next().unwrap_or_default().to_owned());
        let uri: Uri = spec.parse().map_err(|_| without_query())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(without_query()),
        };
        let authority = uri.authority().ok_or_else(without_query)?;
        let (user, host) = match authority.as_str().rsplit_once('@') {
            Some((user, host)) => (Some(decoded(user)), host.to_owned()),
            None => (None, authority.as_str().to_owned()),
        };
        let name = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        if name.is_empty() {
            return Err(without_query());
        }
        let mut path = uri.path().trim_end_matches('/').to_owned();
        if let Some(realm) = &options.realm {
            let own = format!("/realm/{realm}");
            if !path.ends_with(&own) {
                path += &own;
            }
        }
        path += if options.receipt { "/publish/?receipt=true" } else { "/publish/" };
        let to = Destination {
            host: name.clone(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            addresses: Vec::new(),
            untrusted: false,
            tls: tls.then_some(Tls { name, insecure: false, identity: None }),
        };
        let query = |wanted: &str| {
            let mut pairs =
                uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| *name == wanted).map(|(_, value)| decoded(value))
        };
        let authorization = authorize(options, user, query("iss"), query("key"))?;
        let name = format!("{}://{host}", if tls { "https" } else { "http" });
        Ok(Self { name, to, host, path, authorization, receipt: options.receipt })
    }

    async fn post(&self, body: String) -> Result<String, Error> {
        let to = || self.name.clone();
        let mut request = Request::post(self.path.as_str())
            .header(header::HOST, self.host.as_str())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("fantail/", env!("CARGO_PKG_VERSION")))
            .body(Upload::Whole(body.into()))
            .map_err(|_| Error::Spec(to()))?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        let upstream = Upstream::new(Arc::new(Counters::default()), Arc::default());
        let sent = upstream.send(&self.to, Box::new(request), &Config::default().origin).await;
        let response = sent.map_err(|unanswered| Error::Send { to: to(), source: unanswered.failure })?;
        let status = response.status();
        let body = match Limited::new(response.into_body(), MAX_ANSWER).collect().await {
            Ok(body) => body.to_bytes(),
            // The status has said it all: many servers end TLS without a goodbye.
            Err(_) if !self.receipt => Bytes::new(),
            Err(source) => return Err(Error::Answer { to: to(), source }),
        };
        let body = String::from_utf8_lossy(&body).into_owned();
        if status.is_success() {
            return Ok(body);
        }
        Err(Error::Refused { status, body: body.trim().chars().take(SHOWN_CHARS).collect() })
    }
}

/// The flags win over the URL. A key with an issuer signs a token; in a URL, one without is the token.
fn authorize(
    options: &Publish,
    user: Option<String>,
    iss: Option<String>,
    url_key: Option<String>,
) -> Result<Option<HeaderValue>, Error> {
    let basic = |user: &str| format!("Basic {}", BASE64.encode(user));
    let issuer = options.realm.clone().or(iss);
    let text = if let Some(token) = &options.bearer {
        format!("Bearer {token}")
    } else if let Some(user) = &options.user {
        basic(user)
    } else if let Some(key) = &options.key {
        format!("Bearer {}", token(issuer.as_deref().unwrap_or("default"), key)?)
    } else if let Some(key) = url_key {
        match issuer {
            Some(issuer) => format!("Bearer {}", token(&issuer, &key)?),
            None => format!("Bearer {key}"),
        }
    } else if let Some(user) = user {
        basic(&user)
    } else {
        return Ok(None);
    };
    let mut value = HeaderValue::try_from(text).map_err(|_| Error::Authorization)?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// A token of an hour, as the GRIP libraries make it.
fn token(issuer: &str, key: &str) -> Result<String, KeyError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    sign::token(issuer, now + TOKEN_SECONDS, &Key::parse(key, Path::new(""))?)
}

/// Percent-decoded; a `+` stays, because keys in base64 hold it.
fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// A pair that was typed wrong.
#[derive(Debug, thiserror::Error)]
#[error("write it as {0}")]
struct Form(&'static str);

fn header_pair(text: &str) -> Result<(String, String), Form> {
    let (name, value) = text.split_once(':').ok_or(Form("\"Name: value\""))?;
    let good = http::HeaderName::from_bytes(name.as_bytes()).is_ok();
    if good { Ok((name.to_owned(), value.trim().to_owned())) } else { Err(Form("\"Name: value\"")) }
}

fn meta_pair(text: &str) -> Result<(String, String), Form> {
    let pair = text.split_once('=').ok_or(Form("NAME=VALUE"))?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

fn realm_id(text: &str) -> Result<String, Form> {
    let in_id = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let good = (1..=64).contains(&text.len()) && text.chars().all(in_id);
    if good { Ok(text.to_owned()) } else { Err(Form("1 to 64 of A–Z, a–z, 0–9, \"_\" and \"-\"")) }
}

const LOCAL: &str = "http://localhost:5561";

/// More than the ten seconds for which a full server lets a publisher wait before it says so.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the GRIP libraries use.
const TOKEN_SECONDS: u64 = 3600;

/// No server takes as much (`control.body_bytes`), and it is held in memory.
const MAX_CONTENT: u64 = 64 * 1024 * 1024;

/// A receipt of one item is some hundred bytes.
const MAX_ANSWER: usize = 1024 * 1024;

/// Of a refusal's text: some lines of a terminal.
const SHOWN_CHARS: usize = 500;

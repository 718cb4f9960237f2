//! One try of one webhook: where its host is, whether it may go there, the request, and what the answer means. Owns
//! the connections; it knows no queue.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use fantail_proto::{
    address::Range,
    webhook::{
        retry::Verdict,
        target::{Host, Target, TargetError},
    },
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use super::names::Names;
use crate::{
    config::{self, Webhooks},
    metrics::Counters,
    upstream::{Destination, Download, Failure, Tls, Upload, Upstream, Workers},
};

/// The way to all endpoints, for one thread.
#[derive(Debug)]
pub(super) struct Courier {
    upstream: Upstream,
    names: Names,
    origin: config::Origin,
    config: Webhooks,
}

/// What came of a try.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("status {status}")]
    Status { status: u16, verdict: Verdict, retry_after: Option<Duration> },
    #[error("no answer in time")]
    Timeout,
    #[error("{0}")]
    Url(#[from] TargetError),
    /// In the same words as the next: who has no business in a network is not told which names there are in it.
    #[error("{NO_ADDRESS}")]
    Name,
    #[error("{NO_ADDRESS}")]
    Forbidden(Range),
    #[error("cannot connect")]
    Connect,
    #[error("TLS failed")]
    Tls,
    #[error("a redirect from https to http")]
    Downgrade,
    #[error("the connection broke")]
    Broken,
}

/// One request.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) body: bytes::Bytes,
}

/// What an endpoint is asked before it is subscribed.
#[derive(Debug)]
pub(super) struct Challenge {
    pub(super) target: Target,
    pub(super) headers: HeaderMap,
    pub(super) query: String,
    pub(super) answer: String,
}

impl Courier {
    pub(super) fn new(config: &Webhooks) -> Self {
        Self {
            upstream: Upstream::new(Arc::new(Counters::default()), Arc::new(Workers::default())),
            names: Names::new(config.lookup_every),
            origin: config::Origin {
                connect_timeout: config.connect_timeout,
                response_timeout: config.timeout,
                idle_timeout: config.timeout,
                keep_alive: KEEP_ALIVE,
                // Its requests have shorter times.
                lost_timeout: LOST,
                connections: config.concurrency,
                ca_file: config.ca_file.clone(),
            },
            config: config.clone(),
        }
    }

    /// Closes connections that nobody used for a while.
    pub(super) fn sweep(&self) {
        self.upstream.sweep(KEEP_ALIVE);
    }

    /// Sends a webhook of a realm and reads what is answered, up to `webhooks.response_bytes`. `failed`: tries before.
    ///
    /// # Errors
    /// It was not taken.
    pub(super) async fn deliver(&self, realm: u32, url: &str, call: Call, failed: u32) -> Result<(), Fault> {
        let turn = turn(url, failed);
        self.ask((realm, turn), Target::parse(url)?, call, self.config.response_bytes).await.map(drop)
    }

    /// Whether who is at the target answers with what it is asked for.
    ///
    /// # Errors
    /// There is no answer.
    pub(super) async fn verify(&self, realm: u32, challenge: Challenge) -> Result<bool, Fault> {
        let Challenge { mut target, headers, query, answer } = challenge;
        // With that it may be longer than what can be subscribed.
        target.path.push(if target.path.contains('?') { '&' } else { '?' });
        target.path.push_str(&query);
        let turn = turn(&target.path, 0);
        let call = Call { method: Method::GET, headers, body: bytes::Bytes::new() };
        let most = self.config.response_bytes.max(CHALLENGE_BYTES);
        let answered = self.ask((realm, turn), target, call, most).await?;
        Ok(answered.trim_ascii() == answer.as_bytes())
    }

    async fn ask(
        &self,
        way: (u32, u64),
        mut target: Target,
        mut call: Call,
        most: usize,
    ) -> Result<Vec<u8>, Fault> {
        let deadline = Instant::now() + self.config.timeout;
        call.headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
        for left in (0..=self.config.redirects).rev() {
            let asked = timeout_at(deadline, self.send(way, &target, &call)).await;
            let response = asked.map_err(|_| Fault::Timeout)??;
            let status = response.status().as_u16();
            let verdict = Verdict::of(status);
            let elsewhere = response.headers().get(header::LOCATION).and_then(|to| relative(&target, to));
            let headers = response.headers().clone();
            // A status is an answer, whatever becomes of the body.
            let body = timeout_at(deadline, read(response.into_body(), most)).await;
            match (verdict, elsewhere) {
                (Verdict::Delivered, _) => return Ok(body.unwrap_or_default()),
                (Verdict::Redirect, Some(next)) if left > 0 && matches!(status, 307 | 308) => {
                    let next = next?;
                    if target.tls && !next.tls {
                        return Err(Fault::Downgrade);
                    }
                    // What the owner, or the publisher, has given for one host is not for another.
                    if next.authority() != target.authority() {
                        let own = |value: &HeaderValue| value.is_sensitive();
                        let names: Vec<_> = call.headers.keys().cloned().collect();
                        let secret = names.into_iter().filter(|name| {
                            CREDENTIALS.contains(name) || call.headers.get(name).is_some_and(own)
                        });
                        let secret: Vec<_> = secret.collect();
                        secret.iter().for_each(|name| drop(call.headers.remove(name)));
                    }
                    target = next;
                }
                _ => return Err(Fault::Status { status, verdict, retry_after: retry_after(&headers) }),
            }
        }
        Err(Fault::Timeout)
    }

    async fn send(
        &self,
        (realm, turn): (u32, u64),
        target: &Target,
        call: &Call,
    ) -> Result<http::Response<Download>, Fault> {
        let addresses = some(self.resolve(realm, target).await?, turn);
        let host = match &target.host {
            Host::Name(name) => name.clone(),
            Host::Address(ip) => ip.to_string(),
        };
        let destination = Destination {
            host: host.clone(),
            port: target.port,
            addresses,
            // They are judged already, and the allowed ones may be private.
            untrusted: false,
            tls: target.tls.then_some(Tls { name: host, insecure: false, identity: None }),
        };
        let mut request = Request::new(Upload::Whole(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = target.path.parse().map_err(|_| Fault::Url(TargetError::Characters))?;
        *request.headers_mut() = call.headers.clone();
        let authority =
            HeaderValue::try_from(target.authority()).map_err(|_| Fault::Url(TargetError::Host))?;
        request.headers_mut().insert(header::HOST, authority);
        let sent = self.upstream.send(&destination, Box::new(request), &self.origin).await;
        sent.map_err(|unanswered| match unanswered.failure {
            Failure::Silent(_) | Failure::ConnectTimeout(_) | Failure::Busy(_) => Fault::Timeout,
            Failure::Unreachable(_) => Fault::Connect,
            Failure::Tls(_) => Fault::Tls,
            _ => Fault::Broken,
        })
    }

    /// The addresses that may be connected to: those that were judged, and no others.
    async fn resolve(&self, realm: u32, target: &Target) -> Result<Vec<IpAddr>, Fault> {
        let mut found: Vec<IpAddr> = match &target.host {
            Host::Address(ip) => vec![*ip],
            Host::Name(name) => self.names.find(realm, name).await.ok_or(Fault::Name)?,
        };
        let mut forbidden = None;
        found.retain(|ip| {
            let range = self.config.forbids(*ip);
            forbidden = forbidden.or(range);
            range.is_none()
        });
        if found.is_empty() {
            return Err(forbidden.map_or(Fault::Name, Fault::Forbidden));
        }
        Ok(found)
    }
}

/// Where among the addresses of its host a URL's turn begins: elsewhere than that of others, and one further each time.
fn turn(url: &str, failed: u32) -> u64 {
    let mut hasher = DefaultHasher::new();
    url.hash(&mut hasher);
    hasher.finish().wrapping_add(failed.into())
}

/// Those that are tried, from that whose turn it is: the same ones in the same order each time, so that connections are
/// found again.
fn some(mut found: Vec<IpAddr>, turn: u64) -> Vec<IpAddr> {
    found.sort_unstable();
    found.dedup();
    let at = usize::try_from(turn % found.len().max(1) as u64).unwrap_or(0);
    found.rotate_left(at);
    found.truncate(ADDRESSES);
    found
}

/// The body, up to a limit; what is left of it is not waited for.
async fn read(mut body: Download, most: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        if all.len() + data.len() > most {
            break;
        }
        all.extend_from_slice(&data);
    }
    all
}

/// Where a Location leads: a URL, or a path on the same host.
fn relative(from: &Target, to: &HeaderValue) -> Option<Result<Target, TargetError>> {
    let to = to.to_str().ok()?;
    if to.starts_with('/') && !to.starts_with("//") {
        let here = Target { path: String::new(), ..from.clone() };
        return Some(Target::parse(&format!("{}{to}", here.url())));
    }
    Some(Target::parse(to))
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok()
}

const AGENT: &str = concat!("fantail/", env!("CARGO_PKG_VERSION"));
const NO_ADDRESS: &str = "the name has no address that webhooks may go to";
/// Of the answer to a challenge, however little is read of others.
const CHALLENGE_BYTES: usize = 1024;
/// Of an item's own headers.
const CREDENTIALS: [HeaderName; 3] = [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION];
/// As origins: below what servers keep.
const KEEP_ALIVE: Duration = Duration::from_secs(4);
/// A server that says nothing.
const LOST: Duration = Duration::from_mins(2);
/// Addresses of one name that are tried.
const ADDRESSES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_say_when_to_come_again() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(of("120"), Some(Duration::from_secs(120)));
        assert_eq!(of("99999999999999999999999"), Some(Duration::from_secs(u64::MAX)));
        assert_eq!((of("-1"), of("soon"), of("")), (None, None, None));
        assert_eq!(of("Wed, 21 Oct 2015 07:28:00 GMT"), None);
        let later = SystemTime::now() + Duration::from_secs(100);
        assert!(of(&httpdate::fmt_http_date(later)).is_some_and(|left| left > Duration::from_secs(90)));
    }

    #[test]
    fn addresses_have_their_turns() {
        let all: Vec<IpAddr> = (1..=8).rev().map(|n| IpAddr::from([192, 0, 2, n])).collect();
        let first = |turn| some(all.clone(), turn)[0];
        assert_eq!(some(all.clone(), 3), some(all.iter().rev().copied().collect(), 3));
        assert_eq!(some(all.clone(), 3).len(), ADDRESSES);
        let mut firsts: Vec<IpAddr> = (0..8).map(|failed| first(turn("http://h/", failed))).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 8, "each comes first once");
        let of_urls: std::collections::HashSet<IpAddr> =
            (0..100).map(|n| first(turn(&format!("http://h/{n}"), 0))).collect();
        assert_eq!(of_urls.len(), 8, "endpoints of one host are spread");
        assert!(some(Vec::new(), 7).is_empty());
    }

    #[test]
    fn a_location_may_be_a_path() {
        let from = Target::parse("https://h:8443/a?b").unwrap();
        let to =
            |text: &'static str| relative(&from, &HeaderValue::from_static(text)).unwrap().map(|to| to.url());
        assert_eq!(to("/c"), Ok("https://h:8443/c".into()));
        assert_eq!(to("http://other/"), Ok("http://other/".into()));
        assert!(to("//other/").is_err() && to("c").is_err() && to("http://a@b/").is_err());
    }
}

//! Keeps web pages out of the control port: a browser on the same machine reaches loopback too, and
//! would publish for any page that it shows (cross-site request), or let it read answers when the
//! page's own name is made to point here (DNS rebinding).

use std::net::{IpAddr, Ipv6Addr};

use axum::http::{
    Method, Request,
    header::{AUTHORIZATION, HOST, ORIGIN},
};

/// Why a request is answered 403.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Reason {
    #[error("Forbidden: Host must be an IP address, localhost, or one of control.hosts.")]
    Host,
    #[error("Forbidden: sent by a web page. Configure a key for the realm and send it as Authorization.")]
    Page,
}

/// `names`: what the server may be called besides, in lower case; `None` for anything. A page can set `Authorization` only after a preflight request,
/// which no endpoint grants: so a request that has one is not a page's doing.
pub(super) fn check<B>(request: &Request<B>, names: Option<&[String]>) -> Result<(), Reason> {
    if names.is_some_and(|names| !hosts(request).all(|host| is_known(host, names))) {
        return Err(Reason::Host);
    }
    let headers = request.headers();
    let fetched =
        headers.get(SEC_FETCH_SITE).is_some_and(|site| !matches!(site.as_bytes(), b"none" | b"same-origin"));
    let page = fetched || headers.contains_key(ORIGIN);
    let harmless =
        matches!(*request.method(), Method::GET | Method::HEAD) || headers.contains_key(AUTHORIZATION);
    if page && !harmless { Err(Reason::Page) } else { Ok(()) }
}

/// Every name that the request gives to this server. HTTP/1.0 need not give any; a browser always does.
fn hosts<B>(request: &Request<B>) -> impl Iterator<Item = &[u8]> {
    let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    request.headers().get_all(HOST).iter().map(|host| host.as_bytes()).chain(target)
}

/// An address is no page's name.
fn is_known(host: &[u8], names: &[String]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        return is_port(port) && address.parse::<Ipv6Addr>().is_ok();
    }
    let name = host.find(':').map_or(host, |colon| host.split_at(colon).0);
    let port = host.strip_prefix(name).unwrap_or_default();
    let is_name = |known: &str| name.eq_ignore_ascii_case(known);
    is_port(port)
        && (is_name("localhost")
            || name.parse::<IpAddr>().is_ok()
            || names.iter().any(|known| is_name(known)))
}

fn is_port(suffix: &str) -> bool {
    suffix.is_empty()
        || suffix.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

const SEC_FETCH_SITE: &str = "sec-fetch-site";

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(method: &str, headers: &[(&str, &str)], loopback: bool) -> Result<(), Reason> {
        let mut request = Request::builder().method(method).uri("/publish/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap(), loopback.then_some(&[]))
    }

    #[test]
    fn on_loopback_a_host_is_an_address_or_localhost() {
        for host in [
            "localhost",
            "LocalHost:5561",
            "127.0.0.1:5561",
            "127.0.0.1",
            "[::1]:5561",
            "[::1]",
            "10.0.0.1:80",
        ] {
            assert_eq!(verdict("GET", &[("host", host)], true), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:5561",
            "127.0.0.1.evil.example",
            "",
            "[::1",
            "localhost:x",
        ] {
            assert_eq!(verdict("GET", &[("host", host)], true), Err(Reason::Host), "{host}");
            assert_eq!(verdict("GET", &[("host", host)], false), Ok(()), "{host}");
        }
        assert_eq!(
            verdict("GET", &[("host", "localhost"), ("host", "evil.example")], true),
            Err(Reason::Host)
        );
        assert_eq!(verdict("GET", &[], true), Ok(()));
    }

    #[test]
    fn a_target_in_absolute_form_names_a_host_too() {
        let request = Request::builder().uri("http://evil.example/publish/").body(()).unwrap();
        assert_eq!(check(&request, Some(&[])), Err(Reason::Host));
    }

    #[test]
    fn names_may_be_listed() {
        let names = ["push.internal".to_owned()];
        for (host, known) in [
            ("push.internal", true),
            ("Push.Internal:5561", true),
            ("10.0.0.1:5561", true),
            ("localhost", true),
            ("evil.example", false),
            ("push.internal.evil.example", false),
            ("push.internal:x", false),
        ] {
            let request = Request::builder().header("host", host).body(()).unwrap();
            assert_eq!(check(&request, Some(&names)).is_ok(), known, "{host}");
        }
    }

    #[test]
    fn a_page_cannot_post_without_a_key() {
        let origin = ("origin", "https://evil.example");
        let cross = ("sec-fetch-site", "cross-site");
        let key = ("authorization", "Bearer x");
        for (method, headers, expected) in [
            ("POST", &[][..], Ok(())),
            ("POST", &[origin], Err(Reason::Page)),
            ("POST", &[("origin", "null")], Err(Reason::Page)),
            ("POST", &[cross], Err(Reason::Page)),
            ("POST", &[("sec-fetch-site", "same-site")], Err(Reason::Page)),
            ("POST", &[("sec-fetch-site", "none")], Ok(())),
            ("POST", &[origin, key], Ok(())),
            ("GET", &[origin, cross], Ok(())),
        ] {
            assert_eq!(verdict(method, headers, false), expected, "{method} {headers:?}");
        }
    }
}

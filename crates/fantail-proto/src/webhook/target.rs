//! The URL of a webhook, read strictly: what is odd is refused, because another parser might read another host in
//! it. Owns the grammar; whether the host's addresses are allowed is for [`crate::address`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where a webhook goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    pub tls: bool,
    pub host: Host,
    pub port: u16,
    /// Begins with a slash; without a fragment.
    pub path: String,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Host {
    /// In lower case, without a dot at its end.
    Name(String),
    Address(IpAddr),
}

/// What is wrong with a URL. Says nothing of its content.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TargetError {
    #[error("the URL is longer than {MAX_URL} bytes")]
    Long,
    #[error("the URL must begin with http:// or https://")]
    Scheme,
    #[error("the URL has characters that must be percent-encoded")]
    Characters,
    #[error("the URL must not hold a user or password")]
    UserInfo,
    #[error("the URL's host is neither a name nor a plain IP address")]
    Host,
    #[error("the URL's port is not a number from 1 to 65535")]
    Port,
    #[error("the URL must not have a fragment (#…)")]
    Fragment,
}

impl Target {
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        if url.len() > MAX_URL {
            return Err(TargetError::Long);
        }
        // A backslash is a slash to some parsers.
        if !url.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\\"<>^`{|}".contains(&byte)) {
            return Err(TargetError::Characters);
        }
        let (scheme, rest) = url.split_once("://").ok_or(TargetError::Scheme)?;
        let tls = match scheme {
            _ if scheme.eq_ignore_ascii_case("https") => true,
            _ if scheme.eq_ignore_ascii_case("http") => false,
            _ => return Err(TargetError::Scheme),
        };
        if url.contains('#') {
            return Err(TargetError::Fragment);
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(TargetError::UserInfo);
        }
        let (host, port) = split_port(authority)?;
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { tls, host: Host::parse(host)?, port: port.unwrap_or(if tls { 443 } else { 80 }), path })
    }

    /// The value of `Host`.
    pub fn authority(&self) -> String {
        let host = match &self.host {
            Host::Name(name) => name.clone(),
            Host::Address(IpAddr::V4(v4)) => v4.to_string(),
            Host::Address(IpAddr::V6(v6)) => format!("[{v6}]"),
        };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// The URL in the one form that means this target.
    pub fn url(&self) -> String {
        format!("http{}://{}{}", if self.tls { "s" } else { "" }, self.authority(), self.path)
    }
}

fn split_port(authority: &str) -> Result<(&str, Option<u16>), TargetError> {
    let end = authority.rfind(']').unwrap_or(0);
    let Some(colon) = authority.get(end..).and_then(|rest| rest.find(':')).map(|at| at + end) else {
        return Ok((authority, None));
    };
    let (host, port) = authority.split_at(colon);
    let digits = port.strip_prefix(':').unwrap_or_default();
    let good = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.parse().ok().filter(|port| good && *port > 0).ok_or(TargetError::Port)?;
    Ok((host, Some(port)))
}

impl Host {
    fn parse(text: &str) -> Result<Self, TargetError> {
        if let Some(rest) = text.strip_prefix('[') {
            // Without a zone (`%eth0`), which would be of this machine.
            let inner = rest.strip_suffix(']').ok_or(TargetError::Host)?;
            let v6: Ipv6Addr = inner.parse().map_err(|_| TargetError::Host)?;
            return Ok(Self::Address(v6.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let labels = || name.split('.');
        let good = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        if name.len() > MAX_NAME || !labels().all(good) {
            return Err(TargetError::Host);
        }
        // What ends in a number is an IPv4 address to every parser, but to each in its own way (0177.1, 2130706433).
        let last = name.rsplit('.').next().unwrap_or_default();
        let number = last.bytes().all(|byte| byte.is_ascii_digit())
            || last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if !number {
            return Ok(Self::Name(name));
        }
        let v4: Ipv4Addr = text.parse().map_err(|_| TargetError::Host)?;
        Ok(Self::Address(v4.into()))
    }
}

/// Bytes; what the longest of browsers and servers agree on.
pub const MAX_URL: usize = 2048;
/// Of a name (RFC 1035, as text).
const MAX_NAME: usize = 253;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::address::special;

    const REFUSED: [(&str, TargetError); 64] = [
        ("", TargetError::Scheme),
        ("example.com", TargetError::Scheme),
        ("//example.com/", TargetError::Scheme),
        ("ftp://example.com/", TargetError::Scheme),
        ("file:///etc/passwd", TargetError::Scheme),
        ("gopher://127.0.0.1:6379/_INFO", TargetError::Scheme),
        ("dict://127.0.0.1:11211/", TargetError::Scheme),
        ("javascript://example.com/", TargetError::Scheme),
        ("unix://run/docker.sock", TargetError::Scheme),
        ("http:/example.com/", TargetError::Scheme),
        ("http:example.com", TargetError::Scheme),
        ("http:\\\\example.com\\", TargetError::Characters),
        ("http://exa mple.com/", TargetError::Characters),
        ("http://example.com/a b", TargetError::Characters),
        (" http://example.com/", TargetError::Characters),
        ("http://example.com/\r\nX: y", TargetError::Characters),
        ("http://example.com/\t", TargetError::Characters),
        ("http://example.com/\0", TargetError::Characters),
        ("http://１２７.0.0.1/", TargetError::Characters),
        ("http://ⓛocalhost/", TargetError::Characters),
        ("http://example。com/", TargetError::Characters),
        ("http://example.com\\@127.0.0.1/", TargetError::Characters),
        ("http://user@example.com/", TargetError::UserInfo),
        ("http://user:password@example.com/", TargetError::UserInfo),
        ("http://@127.0.0.1/", TargetError::UserInfo),
        ("http://example.com@127.0.0.1/", TargetError::UserInfo),
        ("http://example.com:80@127.0.0.1:8080/", TargetError::UserInfo),
        ("http://example.com#@127.0.0.1/", TargetError::Fragment),
        ("http://127.0.0.1/#", TargetError::Fragment),
        ("http://", TargetError::Host),
        ("http:///path", TargetError::Host),
        ("http://?query", TargetError::Host),
        ("http://.example.com/", TargetError::Host),
        ("http://example..com/", TargetError::Host),
        ("http://example.com../", TargetError::Host),
        ("http://example%2ecom/", TargetError::Host),
        ("http://%31%32%37.0.0.1/", TargetError::Host),
        ("http://2130706433/", TargetError::Host),
        ("http://017700000001/", TargetError::Host),
        ("http://0x7f000001/", TargetError::Host),
        ("http://0x7f.1/", TargetError::Host),
        ("http://127.1/", TargetError::Host),
        ("http://127.0.1/", TargetError::Host),
        ("http://0177.0.0.1/", TargetError::Host),
        ("http://127.0.0.01/", TargetError::Host),
        ("http://127.0.0.0x1/", TargetError::Host),
        ("http://127.0.0.1./", TargetError::Host),
        ("http://127.0.0.256/", TargetError::Host),
        ("http://1.2.3.4.5/", TargetError::Host),
        ("http://0/", TargetError::Host),
        ("http://[::1/", TargetError::Port),
        ("http://[::1]x/", TargetError::Host),
        ("http://[::1%25lo]/", TargetError::Host),
        ("http://[fe80::1%eth0]/", TargetError::Host),
        ("http://[127.0.0.1]/", TargetError::Host),
        ("http://[v1.x]/", TargetError::Host),
        ("http://::1/", TargetError::Port),
        ("http://example.com:/", TargetError::Port),
        ("http://example.com:0/", TargetError::Port),
        ("http://example.com:65536/", TargetError::Port),
        ("http://example.com:+80/", TargetError::Port),
        ("http://example.com:80:80/", TargetError::Port),
        ("http://example.com:http/", TargetError::Port),
        ("http://[::1]:/", TargetError::Port),
    ];

    /// Forms of URLs by which people have reached what they should not (and some that are good): refused as they
    /// stand, or seen to lead to a special address, or fine.
    #[test]
    fn forms_of_urls() {
        for (url, error) in REFUSED {
            assert_eq!(Target::parse(url), Err(error), "{url:?}");
        }
        let long = format!("http://example.com/{}", "x".repeat(MAX_URL));
        assert_eq!(Target::parse(&long), Err(TargetError::Long));
        for url in [
            "http://127.0.0.1/",
            "http://127.0.0.1:22/",
            "HTTP://127.8.8.8?x",
            "http://0.0.0.0/",
            "http://10.0.0.1/",
            "http://169.254.169.254/latest/meta-data/",
            "http://100.100.100.200/",
            "http://[::]/",
            "http://[::1]:8080/",
            "http://[0:0:0:0:0:0:0:1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[2002:7f00:1::]/",
            "http://[fd00:ec2::254]/",
        ] {
            let Host::Address(ip) = Target::parse(url).unwrap().host else { panic!("{url}") };
            assert!(special(ip).is_some(), "{url}");
        }
        for (url, canonical) in [
            ("http://example.com", "http://example.com/"),
            ("HTTPS://Example.COM.:443/A%20b?c=d", "https://example.com/A%20b?c=d"),
            ("http://example.com:8080?q", "http://example.com:8080/?q"),
            ("https://example.com:80/", "https://example.com:80/"),
            ("http://a_b.example/@x", "http://a_b.example/@x"),
            ("http://[2606:4700::0:1111]:81/", "http://[2606:4700::1111]:81/"),
            ("http://1.1.1.1/", "http://1.1.1.1/"),
            ("http://1e100.net/", "http://1e100.net/"),
            ("http://0xg.example/", "http://0xg.example/"),
        ] {
            let target = Target::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(target.url(), canonical);
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_as_the_same(text in "https?://[a-z0-9.:\\[\\]@/?#%-]{0,40}") {
            if let Ok(target) = Target::parse(&text) {
                prop_assert_eq!(Target::parse(&target.url()), Ok(target));
            }
        }

        #[test]
        fn any_text_is_harmless(text in "\\PC{0,60}") {
            drop(Target::parse(&text));
        }
    }
}

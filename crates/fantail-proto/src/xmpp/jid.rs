//! Addresses of XMPP entities (RFC 7622, with the profiles of stringprep that servers of today compare with: RFC
//! 6122). Two addresses are equal when their texts are.

use std::{
    borrow::{Borrow, Cow},
    fmt,
};

use stringprep::{nameprep, nodeprep, resourceprep, tables::unassigned_code_point};

/// `local@domain/resource`, prepared; only the domain is always there.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Jid(Box<str>);

/// A text is no address.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not an XMPP address: write user@example.com, with /resource for one client only")]
pub struct JidError;

impl Jid {
    pub fn parse(text: &str) -> Result<Self, JidError> {
        let (bare, resource) = match text.split_once('/') {
            Some((bare, resource)) => (bare, Some(resource)),
            None => (text, None),
        };
        let (local, domain) = match bare.split_once('@') {
            Some((local, domain)) => (Some(local), domain),
            None => (None, bare),
        };
        let mut whole = String::with_capacity(text.len());
        if let Some(local) = local {
            whole.push_str(&part(nodeprep, local)?);
            whole.push('@');
        }
        // Preparing makes a plain dot of others, and what ends in more than one is no name.
        let domain = part(nameprep, domain)?;
        let domain = bounded(domain.strip_suffix('.').unwrap_or(&domain))?;
        if !domain.chars().all(in_domain) || domain.ends_with('.') {
            return Err(JidError);
        }
        whole.push_str(domain);
        if let Some(resource) = resource {
            whole.push('/');
            whole.push_str(&part(resourceprep, resource)?);
        }
        Ok(Self(whole.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the resource.
    pub fn bare(&self) -> &str {
        bare(&self.0)
    }

    #[must_use]
    pub fn to_bare(&self) -> Self {
        Self(self.bare().into())
    }

    pub fn local(&self) -> Option<&str> {
        self.bare().split_once('@').map(|(local, _)| local)
    }

    pub fn domain(&self) -> &str {
        self.bare().split_once('@').map_or_else(|| self.bare(), |(_, domain)| domain)
    }

    pub fn resource(&self) -> Option<&str> {
        self.0.split_once('/').map(|(_, resource)| resource)
    }

    pub fn is_bare(&self) -> bool {
        self.resource().is_none()
    }
}

/// A prepared address without its resource.
pub fn bare(jid: &str) -> &str {
    jid.split_once('/').map_or(jid, |(bare, _)| bare)
}

impl fmt::Debug for Jid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Jid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for Jid {
    fn borrow(&self) -> &str {
        &self.0
    }
}

type Profile = fn(&str) -> Result<Cow<'_, str>, stringprep::Error>;

fn bounded(part: &str) -> Result<&str, JidError> {
    if (1..=MAX_PART_BYTES).contains(&part.len()) { Ok(part) } else { Err(JidError) }
}

/// Prepared as a query is (RFC 3454 7): characters that are newer than the profiles' Unicode 3.2 stay as they are, because
/// servers let them pass.
fn part(profile: Profile, text: &str) -> Result<String, JidError> {
    let mut part = String::with_capacity(text.len());
    for run in bounded(text)?.split_inclusive(unassigned_code_point) {
        let known = run.trim_end_matches(unassigned_code_point);
        part.push_str(&profile(known).map_err(|_| JidError)?);
        part.push_str(&run[known.len()..]);
    }
    // What the profiles let through and XML does not, and what would end a line of a log.
    let odd = |c: char| c.is_control() || !super::xml::is_char(c);
    if part.chars().any(odd) { Err(JidError) } else { bounded(&part).map(str::to_owned) }
}

fn in_domain(c: char) -> bool {
    if c.is_ascii() {
        c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':' | '[' | ']')
    } else {
        true
    }
}

/// RFC 7622 3.1.
const MAX_PART_BYTES: usize = 1023;

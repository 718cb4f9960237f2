//! The certificates that clients are shown: read from files, found by the name that a client asks for. The table is
//! read whole; a pair that cannot be used is reported, and what it was before stays. A name never becomes a path.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use hashbrown::HashMap;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use crate::config;

/// All certificates of one configuration.
#[derive(Debug, Default)]
pub struct Certificates {
    /// For names that nothing else is for.
    pair: Option<Pair>,
    /// The pairs of the folder, by name in lower case.
    named: HashMap<String, Pair>,
    seen: Vec<Seen>,
}

/// A certificate with its key, and where it was read.
#[derive(Clone, Debug)]
struct Pair {
    seen: [Seen; 2],
    /// `None` if it was never good.
    key: Option<Arc<CertifiedKey>>,
}

/// A file, and how it looked when it was read.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Seen {
    path: PathBuf,
    stamp: Option<(SystemTime, u64)>,
}

impl Seen {
    fn new(path: PathBuf) -> Self {
        let stamp = stamp(&path);
        Self { path, stamp }
    }
}

/// Why a pair cannot be used, or a folder cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct CertificateError {
    path: PathBuf,
    reason: Reason,
}

#[derive(Debug)]
enum Reason {
    Read(io::Error),
    Pem(rustls::pki_types::pem::Error),
    /// The certificate and the key do not belong together, or are of no use.
    Pair(rustls::Error),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => error.fmt(f),
            Self::Pem(error) => error.fmt(f),
            Self::Pair(error) => error.fmt(f),
        }
    }
}

impl Certificates {
    /// Reads what is not as it was in `previous`, and returns what is wrong beside it. Blocks on files.
    pub fn load(config: &config::Tls, previous: Option<&Self>) -> (Self, Vec<CertificateError>) {
        let mut errors = Vec::new();
        let mut loaded = Self::default();
        if let (Some(cert), Some(key)) = (&config.cert_file, &config.key_file) {
            let before = previous.and_then(|previous| previous.pair.as_ref());
            loaded.pair = Some(Pair::load([cert.clone(), key.clone()], before, &mut errors));
        }
        if let Some(folder) = &config.folder {
            loaded.seen.push(Seen::new(folder.clone()));
            let names = names(folder).unwrap_or_else(|error| {
                errors.push(CertificateError { path: folder.clone(), reason: Reason::Read(error) });
                Vec::new()
            });
            for name in names {
                let files = ["crt", "key"].map(|kind| folder.join(format!("{name}.{kind}")));
                let name = name.to_ascii_lowercase();
                let before = previous.and_then(|previous| previous.named.get(&name));
                let pair = Pair::load(files, before, &mut errors);
                loaded.named.insert(name, pair);
            }
        }
        (loaded, errors)
    }

    /// What a client gets that asks for `name`, or for none, at a port (spec 8.5): the name itself, else `_` and
    /// what is behind its first dot, else `default_` and the port, else what is for all names.
    pub fn find(&self, name: Option<&str>, port: u16) -> Option<Arc<CertifiedKey>> {
        let named = |name: &str| self.named.get(name).and_then(|pair| pair.key.clone());
        let asked = name.filter(|name| is_plain(name)).map(str::to_ascii_lowercase);
        asked
            .and_then(|name| named(&name).or_else(|| named(&format!("_{}", &name[name.find('.')?..]))))
            .or_else(|| named(&format!("default_{port}")))
            .or_else(|| self.pair.as_ref().and_then(|pair| pair.key.clone()))
    }

    /// Whether a file is not as it was when it was read, or one came or went. Blocks on files.
    pub fn have_changed(&self) -> bool {
        let pairs = self.named.values().chain(&self.pair).flat_map(|pair| &pair.seen);
        self.seen.iter().chain(pairs).any(|seen| stamp(&seen.path) != seen.stamp)
    }

    /// Whether any client can be shown one.
    pub fn is_usable(&self) -> bool {
        self.named.values().chain(&self.pair).any(|pair| pair.key.is_some())
    }
}

impl Pair {
    /// What it was `before` if its files have not changed, or are of no use now.
    fn load(files: [PathBuf; 2], before: Option<&Self>, errors: &mut Vec<CertificateError>) -> Self {
        // Looked at before they are read: what changes in between is seen later.
        let seen = files.map(Seen::new);
        if let Some(before) = before.filter(|before| before.seen == seen) {
            return before.clone();
        }
        let [cert, key] = &seen;
        let key = read(&cert.path, &key.path).map_err(|error| errors.push(error)).ok();
        Self { key: key.or_else(|| before.and_then(|before| before.key.clone())), seen }
    }
}

fn read(cert: &Path, key: &Path) -> Result<Arc<CertifiedKey>, CertificateError> {
    let in_file = |path: &Path, reason| CertificateError { path: path.to_owned(), reason };
    let pem = |path: &Path, error| match error {
        rustls::pki_types::pem::Error::Io(error) => in_file(path, Reason::Read(error)),
        error => in_file(path, Reason::Pem(error)),
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| pem(cert, error))?;
    if chain.is_empty() {
        return Err(in_file(cert, Reason::Pem(rustls::pki_types::pem::Error::NoItemsFound)));
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| pem(key, error))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let pair = CertifiedKey::from_der(chain, key, &provider);
    pair.map(Arc::new).map_err(|error| in_file(cert, Reason::Pair(error)))
}

/// The names of which a folder has a certificate or a key.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = PathBuf::from(entry?.file_name());
        if name.extension().is_some_and(|kind| kind == "crt")
            && let Some(name) = name.file_stem().and_then(|name| name.to_str())
        {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A name that a host can have, whoever checked it before.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.modified().ok()?, file.len()))
}

/// Of a host (RFC 1035, 2.3.4, as text).
const NAME_BYTES: usize = 253;

#[cfg(test)]
mod tests;

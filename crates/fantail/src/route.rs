//! The current routes: read from a file or the configuration, with the keys, realms and certificates
//! that they name. A table is loaded whole or not at all; what it replaces is its owner's business.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use fantail_proto::route::{Address, Asked, LineError, Reason, Route as Rule, Table, Workers};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject};

pub use self::watch::Watch;
use crate::{
    config::{Config, DEFAULT_REALM},
    hub::RealmId,
    realm::Realms,
    sign::{KeyError, Signer},
};

#[cfg(test)]
pub(crate) mod tests;
mod watch;

/// All routes of one configuration.
#[derive(Debug)]
pub struct Routes {
    table: Table,
    /// In the order of the table.
    routes: Vec<Arc<Route>>,
    skipped: Vec<RouteError>,
}

/// A line, and what it names.
#[derive(Debug)]
pub struct Route {
    pub rule: Arc<Rule>,
    pub realm: RealmId,
    /// `None`: requests are not signed, for there is no key, or the route has `no_grip`.
    pub signer: Option<Arc<Signer>>,
    /// One a target: the paths of its `client_cert` and `client_key`.
    pub identities: Vec<Option<(PathBuf, PathBuf)>>,
}

/// Why routes are refused, and where.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("proxy.sig_key: {0}")]
    SigKey(KeyError),
    #[error("{place}:{line}: {fault}")]
    Line { place: String, line: usize, fault: Fault },
}

/// What is wrong with one line.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error(transparent)]
    Grammar(Reason),
    #[error("sig_key: {0}")]
    SigKey(KeyError),
    #[error("realm={0:?}: there is no such realm in the configuration")]
    Realm(String),
    #[error("{name}={}: {source}", path.display())]
    Pem { name: &'static str, path: PathBuf, source: pem::Error },
}

impl Routes {
    /// Reads the routes of a configuration: those of the file or, without one, the lines. Returns all
    /// errors at once; with `routes.lenient`, goes on without the lines that have some and, if `missing_file`
    /// allows it, without the file. Blocks on files.
    pub fn load(config: &Config, realms: &Realms, missing_file: bool) -> Result<Self, Vec<RouteError>> {
        let lenient = config.routes.lenient;
        let source = match Source::read(config) {
            Err(error) if lenient && missing_file => {
                return Ok(Self { table: Table::default(), routes: Vec::new(), skipped: vec![error] });
            }
            read => read.map_err(|error| vec![error])?,
        };
        let signer = Signer::load(&config.proxy.sig_iss, &config.proxy.sig_key, &config.base)
            .map_err(|error| vec![RouteError::SigKey(error)])?;
        let (table, errors) = Table::parse_leniently(&source.text);
        let fault = |at: LineError| source.error(at.line, Fault::Grammar(at.reason));
        let mut errors: Vec<RouteError> = errors.into_iter().map(fault).collect();
        if !errors.is_empty() && !lenient {
            return Err(errors);
        }
        let mut routes = Vec::new();
        let mut unusable = Vec::new();
        for rule in table.routes() {
            match Route::load(rule, &source.base, config, realms, signer.as_ref()) {
                Ok(route) => routes.push(Arc::new(route)),
                Err(faults) => {
                    errors.extend(faults.into_iter().map(|fault| source.error(rule.line, fault)));
                    unusable.push(rule.line);
                }
            }
        }
        if errors.is_empty() || lenient {
            Ok(Self { table: table.without(&unusable), routes, skipped: errors })
        } else {
            Err(errors)
        }
    }

    /// What was passed over, with `routes.lenient`.
    pub fn skipped(&self) -> &[RouteError] {
        &self.skipped
    }

    /// The route of a request ([`Table::find`]).
    pub fn find(&self, asked: Asked<'_>) -> Option<&Arc<Route>> {
        self.table.position(asked).and_then(|at| self.routes.get(at))
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Where workers are waited for, with the permissions of the sockets.
    pub fn workers(&self) -> impl Iterator<Item = (&Workers, Option<u32>)> {
        let targets = self.routes.iter().flat_map(|route| &route.rule.targets);
        targets.filter_map(|target| match &target.address {
            Address::Workers(workers) => Some((workers, target.ipc_file_mode)),
            Address::Test | Address::Tcp(..) => None,
        })
    }

    /// All routes, in the order of their lines.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }
}

impl Route {
    fn load(
        rule: &Arc<Rule>,
        base: &Path,
        config: &Config,
        realms: &Realms,
        signer: Option<&Arc<Signer>>,
    ) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let name = rule.realm.as_deref().unwrap_or(DEFAULT_REALM);
        let realm = realms.get(name).unwrap_or_else(|| {
            faults.push(Fault::Realm(name.to_owned()));
            RealmId::default()
        });
        let signer = own_signer(rule, base, config, signer).unwrap_or_else(|error| {
            faults.push(Fault::SigKey(error));
            None
        });
        let mut identities = Vec::new();
        for target in &rule.targets {
            let files = target.client_cert.as_ref().zip(target.client_key.as_ref());
            let files = files.map(|(certificate, key)| (base.join(certificate), base.join(key)));
            if let Some((certificate, key)) = &files {
                faults.extend(unreadable("client_cert", certificate, certificates(certificate)));
                faults.extend(unreadable("client_key", key, PrivateKeyDer::from_pem_file(key).map(drop)));
            }
            identities.push(files);
        }
        if faults.is_empty() {
            Ok(Self { rule: Arc::clone(rule), realm, signer, identities })
        } else {
            Err(faults)
        }
    }
}

/// The signer of a route: the configuration's, unless it has an issuer or a key of its own.
fn own_signer(
    rule: &Rule,
    base: &Path,
    config: &Config,
    signer: Option<&Arc<Signer>>,
) -> Result<Option<Arc<Signer>>, KeyError> {
    let iss = rule.sig_iss.as_ref().unwrap_or(&config.proxy.sig_iss);
    match &rule.sig_key {
        _ if rule.no_grip => Ok(None),
        Some(key) => Signer::load(iss, key, base),
        None if rule.sig_iss.is_some() => Signer::load(iss, &config.proxy.sig_key, &config.base),
        None => Ok(signer.cloned()),
    }
}

fn certificates(path: &Path) -> Result<(), pem::Error> {
    CertificateDer::pem_file_iter(path)?.next().unwrap_or(Err(pem::Error::NoItemsFound)).map(drop)
}

fn unreadable(name: &'static str, path: &Path, read: Result<(), pem::Error>) -> Option<Fault> {
    read.err().map(|source| Fault::Pem { name, path: path.to_owned(), source })
}

/// Where the lines come from.
struct Source {
    /// How errors name it.
    place: String,
    text: String,
    /// The folder that paths in the lines start from.
    base: PathBuf,
}

impl Source {
    fn read(config: &Config) -> Result<Self, RouteError> {
        let Some(file) = &config.routes.file else {
            let text = config.routes.lines.join("\n");
            return Ok(Self { place: "routes.lines".to_owned(), text, base: config.base.clone() });
        };
        let path = config.base.join(file);
        let base = path.parent().unwrap_or(&config.base).to_owned();
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Self { place: path.display().to_string(), text, base }),
            Err(source) => Err(RouteError::Read { path, source }),
        }
    }

    fn error(&self, line: usize, fault: Fault) -> RouteError {
        RouteError::Line { place: self.place.clone(), line, fault }
    }
}

//! One `[[realm]]` as it is written.

use serde::Deserialize;

use super::file::Invalid;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    id: String,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    webhook_verify: bool,
    #[serde(default)]
    webhook_endpoints: u64,
}

impl Section {
    pub(super) fn build(self) -> Result<super::Realm, Invalid> {
        let in_id = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !(1..=64).contains(&self.id.len()) || !self.id.chars().all(in_id) {
            return Err(Invalid::RealmId(self.id));
        }
        if self.keys.iter().any(|k| k.is_empty() || k == "base64:" || k == "file:") {
            return Err(Invalid::RealmKey(self.id));
        }
        Ok(super::Realm {
            id: self.id,
            keys: self.keys,
            webhook_verify: self.webhook_verify,
            webhook_endpoints: self.webhook_endpoints,
        })
    }
}

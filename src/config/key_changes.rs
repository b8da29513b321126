//! Which keys differ between two configurations. Known by hashes: no value is kept, and none is shown.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::hash::{BuildHasher as _, Hash, Hasher, RandomState};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, LazyLock};

use figment::value::{Dict, Value};

use super::layers::LOCATION_KEYS;
use crate::admin::{KeyChange, KeyChangeKind};
use crate::ordered;
use crate::secret::Secret;

/// Keyed anew in each process, so that a hash shows nothing of a secret.
static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The tables whose entries have names of the operator's choice.
const NAMED: [&str; 3] = ["accounts", "targets", "logins"];

/// A hash of each key that is given, of the secrets that keys name, and of the state of the files.
#[derive(Clone, Debug, Default)]
pub struct KeyHashes(Arc<BTreeMap<String, u64>>);

impl KeyHashes {
    /// The hashes of the merged tables, and of what keys refer to.
    pub(super) fn new(tree: &Value, referred: Vec<(String, u64)>) -> Self {
        let mut hashes = BTreeMap::new();
        if let Value::Dict(_, table) = tree {
            collect(table, "", &mut hashes);
        }
        for (key, hash) in referred {
            // An element of a list belongs to the key of the list.
            let key = key.split('[').next().unwrap_or_default().to_owned();
            let combined = HASHES.hash_one((hashes.get(&key), hash));
            hashes.insert(key, combined);
        }
        Self(Arc::new(hashes))
    }

    /// What differs in `new`, by key. An entry of a named table that came or went is one change.
    pub fn changes(&self, new: &Self) -> Vec<KeyChange> {
        let keys = ordered::set(self.0.keys().chain(new.0.keys()));
        let differs = keys.into_iter().filter(|key| self.0.get(*key) != new.0.get(*key));
        let mut changes: BTreeMap<&str, KeyChangeKind> = BTreeMap::new();
        for key in differs {
            let entry = entry(key).filter(|entry| self.has(entry) != new.has(entry));
            let shown = entry.unwrap_or(key);
            let kind = match (entry.map_or_else(|| self.0.contains_key(key), |entry| self.has(entry)), new.has(shown)) {
                (true, true) => KeyChangeKind::Changed,
                (true, false) => KeyChangeKind::Removed,
                (false, _) => KeyChangeKind::Added,
            };
            changes.insert(shown, kind);
        }
        changes.into_iter().map(|(key, change)| KeyChange { key: key.to_owned(), change }).collect()
    }

    /// Whether there is this key, or one below it.
    fn has(&self, key: &str) -> bool {
        let is_of = |found: &str| found.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.0.range(key.to_owned()..).take_while(|(found, _)| found.starts_with(key)).any(|(found, _)| is_of(found))
    }
}

/// The hash of a secret.
pub(super) fn of_secret(secret: &Secret) -> u64 {
    HASHES.hash_one(secret.expose())
}

/// The hash of what tells one state of a file from the next.
pub(super) fn of_file(metadata: &Metadata) -> u64 {
    HASHES.hash_one((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

/// `targets.crm` of `targets.crm.url`.
fn entry(key: &str) -> Option<&str> {
    let (table, rest) = key.split_once('.')?;
    let name = rest.split('.').next()?;
    NAMED.contains(&table).then(|| &key[..table.len() + 1 + name.len()])
}

fn collect(table: &Dict, above: &str, hashes: &mut BTreeMap<String, u64>) {
    for (name, value) in table {
        let key = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        match value {
            Value::Dict(_, inner) if !is_location(inner) => collect(inner, &key, hashes),
            value => {
                let mut hasher = HASHES.build_hasher();
                hash_value(value, &mut hasher);
                hashes.insert(key, hasher.finish());
            }
        }
    }
}

/// Whether a table names where a secret is stored.
fn is_location(table: &Dict) -> bool {
    !table.is_empty() && table.keys().all(|key| LOCATION_KEYS.contains(&key.as_str()))
}

/// By hand: figment's values contain the number of their source, which differs with every load.
fn hash_value(value: &Value, hasher: &mut impl Hasher) {
    match value {
        Value::String(_, text) => text.hash(hasher),
        Value::Char(_, sign) => sign.hash(hasher),
        Value::Bool(_, bit) => bit.hash(hasher),
        Value::Num(_, number) => format!("{number:?}").hash(hasher),
        Value::Empty(..) => 0.hash(hasher),
        Value::Dict(_, table) => {
            table.len().hash(hasher);
            for (name, value) in table {
                name.hash(hasher);
                hash_value(value, hasher);
            }
        }
        Value::Array(_, list) => {
            list.len().hash(hasher);
            list.iter().for_each(|value| hash_value(value, hasher));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn hashes(text: &str, token: &str) -> KeyHashes {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let account =
            "[accounts.shop]\npath = \"/wx\"\napp_id = \"wx0\"\nmode = \"plaintext\"\ntoken = { env = \"T\" }\n";
        std::fs::write(&path, format!("{account}{text}")).unwrap();
        load(Some(&path), [("T".to_owned(), token.to_owned())], &[]).unwrap().keys
    }

    fn changes(old: &KeyHashes, new: &KeyHashes) -> Vec<String> {
        old.changes(new).iter().map(|change| format!("{:?} {}", change.change, change.key)).collect()
    }

    #[test]
    fn keys_and_entries_that_differ_are_named_without_values() {
        let target = |name: &str, lines: &str| format!("[targets.{name}]\nurl = \"http://a/\"\n{lines}\n");
        let old = hashes(&(target("crm", "timeout = \"5s\"") + &target("crm-2", "")), "abc");
        assert_eq!(changes(&old, &hashes(&(target("crm", "timeout = \"5s\"") + &target("crm-2", "")), "abc")), [""; 0]);
        let new = hashes(&(target("crm", "retry = []\ntimeout = \"6s\"") + &target("bot", "")), "xyz");
        let expected = [
            "Changed accounts.shop.token",
            "Added targets.bot",
            "Removed targets.crm-2",
            "Added targets.crm.retry",
            "Changed targets.crm.timeout",
        ];
        assert_eq!(changes(&old, &new), expected);
        assert!(changes(&new, &old).contains(&"Removed targets.crm.retry".to_owned()));
    }
}

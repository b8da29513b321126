//! The fingerprint of what must be the same at all replicas: accounts with their routes, targets and logins.
//!
//! It is stored where other programs may read it. So a secret adds 16 bits only: enough to tell two of them apart, too
//! few to find one by trying.

use std::collections::BTreeMap;

use figment::value::Value;
use sha2::{Digest as _, Sha256};

use crate::secret::Secret;

/// The tables that are compared.
const TABLES: [&str; 3] = ["accounts", "targets", "logins"];

/// What a secret adds.
pub(super) type SecretPrint = [u8; 2];

/// What the secret of this key adds.
pub(super) fn of_secret(key: &str, secret: &Secret) -> SecretPrint {
    let mut hash = Sha256::new();
    for part in ["wxrelay replica.config", key, secret.expose()] {
        hash.update(part);
        hash.update([0]);
    }
    let hash = hash.finalize();
    [hash[0], hash[1]]
}

/// The SHA-256 of the tables, in hex. `secrets` are those of all keys.
pub(super) fn of_tables(tree: &Value, secrets: &BTreeMap<String, SecretPrint>) -> String {
    let mut hash = Sha256::new();
    if let Value::Dict(_, tables) = tree {
        for (name, table) in tables.iter().filter(|(name, _)| TABLES.contains(&name.as_str())) {
            add(name, table, secrets, &mut hash);
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn add(key: &str, value: &Value, secrets: &BTreeMap<String, SecretPrint>, hash: &mut Sha256) {
    match (secrets.get(key), value) {
        (None, Value::Dict(_, table)) => {
            table.iter().for_each(|(name, value)| add(&format!("{key}.{name}"), value, secrets, hash));
            return;
        }
        (None, Value::Array(_, list)) => {
            // So that an empty one is told from none.
            hash.update(format!("{key} {}\n", list.len()));
            list.iter().enumerate().for_each(|(index, value)| add(&format!("{key}[{index}]"), value, secrets, hash));
            return;
        }
        _ => {}
    }
    hash.update(key);
    hash.update([0]);
    match (secrets.get(key), value) {
        (Some(print), _) => hash.update(print),
        (None, Value::String(_, text)) => hash.update(text),
        (None, Value::Char(_, sign)) => hash.update(sign.to_string()),
        (None, Value::Bool(_, bit)) => hash.update(bit.to_string()),
        // The same number has another type when it comes from the environment.
        (None, Value::Num(_, number)) => hash.update(match (number.to_i128(), number.to_u128(), number.to_f64()) {
            (Some(number), _, _) => number.to_string(),
            (_, Some(number), _) => number.to_string(),
            (_, _, number) => format!("{number:?}"),
        }),
        (None, Value::Empty(..) | Value::Dict(..) | Value::Array(..)) => {}
    }
    hash.update([0]);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::config::load;

    fn print_of(text: &str, env: &[(&str, &str)]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let account =
            "[accounts.shop]\npath = \"/wx\"\napp_id = \"wx0\"\nmode = \"plaintext\"\ntoken = { env = \"T\" }\n";
        fs::write(&path, format!("{text}\n{account}[targets.crm]\nurl = \"http://a/\"\n")).unwrap();
        let given = [("T", "abc")].iter().chain(env).map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        load(Some(&path), given, &[]).unwrap().shared_sha256
    }

    #[test]
    fn only_what_must_be_the_same_at_all_replicas_counts() {
        let same = print_of("", &[]);
        assert_eq!(same.len(), 64);
        assert_eq!(print_of("[server]\nlisten = [\"127.0.0.1:1\"]", &[]), same);
        assert_eq!(print_of("[queue]\npath = \"/elsewhere\"", &[]), same);
        let others = [
            print_of("[targets.bot]\nurl = \"http://b/\"", &[]),
            print_of("", &[("WXRELAY__TARGETS__CRM__TIMEOUT", "3s")]),
            print_of("[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]", &[]),
            print_of("", &[("T", "another")]),
        ];
        assert!(!others.contains(&same), "{others:?}");
    }

    #[test]
    fn where_a_value_comes_from_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let print = |text: &str, env: &[(&str, &str)]| {
            let path = folder.path().join("config.toml");
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            let env = env.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
            load(Some(&path), env, &[]).unwrap().shared_sha256
        };
        let rest = "accounts.shop = { path = \"/wx\", app_id = \"wx0\", mode = \"plaintext\"";
        let here = print(
            &format!("{rest}, token = \"abc\" }}\ntargets.crm = {{ url = \"http://a/\", concurrency = 3 }}"),
            &[],
        );
        let there = print(
            &format!("{rest}, token = {{ env = \"T\" }} }}\ntargets.crm.url = \"http://a/\""),
            &[("T", "abc"), ("WXRELAY__TARGETS__CRM__CONCURRENCY", "3")],
        );
        assert_eq!(here, there);
    }
}

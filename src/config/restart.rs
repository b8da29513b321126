//! Which changes of a configuration need a restart.
//!
//! Derived by comparing two configurations field by field. The patterns below name every field, so a new field does not
//! compile until it is compared here; then its change needs a restart, unless it is one of [`RELOADED`].

use super::Config;
use crate::queue::Engine;
#[cfg(feature = "postgres")]
use crate::queue::postgres;
use crate::{admin, otlp, queue, server, telemetry};

/// The keys of the compared sections that a reload applies; `replay_window` follows from `accounts.*.max_skew`. It also
/// replaces all `accounts`, `targets` and `logins`.
const RELOADED: [&str; 3] = ["log.level", "log.openid", "queue.replay_window"];

/// Each field's key, and whether it differs.
macro_rules! compare {
    ($section:literal, $type:path { $($field:ident),+ }, $old:expr, $new:expr) => {{
        let $type { $($field),+ } = $old;
        [$((concat!($section, ".", stringify!($field)), *$field != $new.$field)),+]
    }};
}

/// The keys of the engine, each with whether it differs.
fn compare_engines(old: &Engine, new: &Engine) -> Vec<(&'static str, bool)> {
    match (old, new) {
        (Engine::Embedded { path }, Engine::Embedded { path: new }) => vec![("queue.path", path != new)],
        #[cfg(feature = "postgres")]
        (Engine::Postgres(old), Engine::Postgres(new)) => {
            let compared = compare!(
                "queue",
                postgres::Settings {
                    server,
                    password,
                    tls,
                    schema,
                    pooler,
                    standby,
                    accept_weak_durability,
                    replica,
                    spool,
                    spool_size
                },
                &**old,
                new
            );
            compared.to_vec()
        }
        #[cfg(feature = "postgres")]
        (Engine::Embedded { .. }, Engine::Postgres(_)) | (Engine::Postgres(_), Engine::Embedded { .. }) => {
            vec![("queue.type", true)]
        }
    }
}

/// The keys that differ and need a restart.
pub fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let Config {
        server,
        admin,
        queue,
        log,
        telemetry,
        accounts: _,
        targets: _,
        logins: _,
        warnings: _,
        strict: _,
        sha256: _,
        shared_sha256: _,
        keys: _,
    } = old;
    let mut compared = Vec::new();
    compared.extend(compare!(
        "server",
        server::Settings { listen, tls, trusted_proxies, proxy_protocol, http2, drain, max_body },
        server,
        new.server
    ));
    compared.extend(compare!(
        "admin",
        admin::Settings { listen, token, users, console, console_hosts },
        admin,
        new.admin
    ));
    compared.extend(compare!(
        "queue",
        queue::Settings { engine, retention, dedup_window, replay_window, max_size, max_memory, encryption_keys },
        queue,
        new.queue
    ));
    // The engine's keys are compared one by one.
    compared.retain(|(key, _)| *key != "queue.engine");
    compared.extend(compare_engines(&queue.engine, &new.queue.engine));
    compared.extend(compare!("log", telemetry::Settings { format, level, openid }, log, new.log));
    compared.extend(compare!("telemetry", otlp::Settings { url, headers, service_name }, telemetry, new.telemetry));
    let changed = compared.into_iter().filter(|(key, differs)| *differs && !RELOADED.contains(key));
    changed.map(|(key, _)| documented(key)).collect()
}

/// The key in the configuration of a field, which may have another name.
fn documented(key: &'static str) -> &'static str {
    match key {
        "queue.server" => "queue.url",
        "queue.dedup_window" => "accounts.*.dedup_window",
        "telemetry.url" => "telemetry.otlp",
        key => key,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::config::{Problem, load};

    const ROOT: &str = env!("CARGO_MANIFEST_DIR");
    const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";
    const OTHER_KEY: &str = "bcdefghijklmnopqrstuvwxyz0123456789ABCDEFGH";

    /// A change of each key: the key, an override and its value, and the key that needs a restart, if one does.
    const CHANGES: [(&str, &str, &str, Option<&str>); 31] = [
        ("server.listen", "server.listen", "127.0.0.1:1", Some("server.listen")),
        ("server.tls", "server.tls.cert", "", Some("server.tls")),
        ("server.trusted_proxies", "server.trusted_proxies", "10.0.0.0/8", Some("server.trusted_proxies")),
        ("server.proxy_protocol", "server.proxy_protocol", "true", Some("server.proxy_protocol")),
        ("server.http2", "server.http2", "true", Some("server.http2")),
        ("server.drain", "server.drain", "5s", Some("server.drain")),
        ("server.max_body", "server.max_body", "2MiB", Some("server.max_body")),
        ("admin.listen", "admin.listen", "127.0.0.1:1", Some("admin.listen")),
        ("admin.token", "admin.token", "0123456789abcdef0123456789abcdef", Some("admin.token")),
        ("admin.console", "admin.console", "false", Some("admin.console")),
        ("admin.console_hosts", "admin.console_hosts", "relay.example", Some("admin.console_hosts")),
        ("queue.path", "queue.path", "/var/lib/other", Some("queue.path")),
        ("queue.retention", "queue.retention", "8d", Some("queue.retention")),
        ("queue.max_size", "queue.max_size", "11GiB", Some("queue.max_size")),
        ("queue.max_memory", "queue.max_memory", "32MiB", Some("queue.max_memory")),
        ("log.format", "log.format", "text", Some("log.format")),
        ("log.level", "log.level", "debug", None),
        ("log.openid", "log.openid", "clear", None),
        ("telemetry.otlp", "telemetry.otlp", "http://127.0.0.1:4318", Some("telemetry.otlp")),
        ("telemetry.headers", "telemetry.headers.x-a", "b", Some("telemetry.headers")),
        ("telemetry.service_name", "telemetry.service_name", "other", Some("telemetry.service_name")),
        ("accounts.*.path", "accounts.shop.path", "/other", None),
        ("accounts.*.app_id", "accounts.shop.app_id", "wx1", None),
        ("accounts.*.token", "accounts.shop.token", "0123", None),
        ("accounts.*.encoding_aes_key", "accounts.shop.encoding_aes_key", OTHER_KEY, None),
        ("accounts.*.mode", "accounts.shop.mode", "compatible", None),
        ("accounts.*.max_skew", "accounts.shop.max_skew", "5m", None),
        ("accounts.*.reply_budget", "accounts.shop.reply_budget", "4s", None),
        ("accounts.*.dedup_window", "accounts.shop.dedup_window", "3m", Some("accounts.*.dedup_window")),
        ("targets.*.url", "targets.crm.url", "http://127.0.0.1:9001/", None),
        ("targets.*.timeout", "targets.crm.timeout", "3s", None),
    ];

    /// The same for the keys of PostgreSQL.
    #[cfg(feature = "postgres")]
    const CHANGES_WITH_POSTGRES: [(&str, &str, &str, Option<&str>); 10] = [
        ("queue.url", "queue.url", "postgres://wxrelay@pg2/wxrelay", Some("queue.url")),
        ("queue.password", "queue.password", "another", Some("queue.password")),
        ("queue.tls", "queue.tls.ca", "", Some("queue.tls")),
        ("queue.schema", "queue.schema", "other", Some("queue.schema")),
        ("queue.pooler", "queue.pooler", "true", Some("queue.pooler")),
        ("queue.standby", "queue.standby", "required", Some("queue.standby")),
        ("queue.accept_weak_durability", "queue.accept_weak_durability", "true", Some("queue.accept_weak_durability")),
        ("queue.replica", "queue.replica", "other", Some("queue.replica")),
        ("queue.spool", "queue.spool", "/var/lib/wxrelay-spool", Some("queue.spool")),
        ("queue.spool_size", "queue.spool_size", "2GiB", Some("queue.spool_size")),
    ];
    /// The keys that belong to PostgreSQL.
    const KEYS_OF_POSTGRES: [&str; 10] = [
        "url",
        "password",
        "tls",
        "schema",
        "pooler",
        "standby",
        "accept_weak_durability",
        "replica",
        "spool",
        "spool_size",
    ];

    /// Keys that [`CHANGES`] need not have. `verify_files` names files beside the configuration; `strict` and `type` are only checked while loading; an encryption key is
    /// compared in its own test; the others are parts of an account or a target, which a reload replaces as a whole.
    fn is_checked_elsewhere(key: &str) -> bool {
        let checked = ["server.strict", "server.verify_files", "queue.type", "queue.encryption_keys"];
        checked.contains(&key)
            || key.strip_prefix("queue.").is_some_and(|key| KEYS_OF_POSTGRES.contains(&key))
            || key.starts_with("accounts.*.")
            || key.starts_with("targets.*.")
            || key.starts_with("logins.*.")
            || key.starts_with("admin.users")
    }

    fn example(overrides: &[(&str, &str)]) -> Config {
        let secret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
        let env = [("SHOP_TOKEN", "abcd"), ("SHOP_AES_KEY", KEY), ("CRM_SECRET", secret)];
        let env = env.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let path = Path::new(ROOT).join("config.toml.example");
        load(Some(&path), env, overrides).unwrap_or_else(|errors| panic!("{overrides:?}: {errors:#?}"))
    }

    /// Every key of every table, as the parser knows them.
    fn known_keys() -> BTreeSet<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let tables =
            ["server", "admin", "admin.users.a", "queue", "log", "telemetry", "accounts.a", "targets.a", "logins.a"];
        std::fs::write(&path, tables.map(|table| format!("[{table}]\nx = 1\n")).concat()).unwrap();
        let errors = load(Some(&path), [], &[]).unwrap_err();
        let keys = errors.iter().flat_map(|error| {
            let Problem::UnknownKey { known, .. } = &error.problem else { return Vec::new() };
            let table = error.key.strip_suffix(".x").unwrap().replace(".a", ".*");
            known.iter().map(|key| format!("{table}.{key}")).collect()
        });
        keys.collect()
    }

    #[test]
    fn every_key_is_applied_by_a_reload_or_reported_as_needing_a_restart() {
        let known = known_keys();
        assert!(known.len() > 50, "only {known:?}");
        let changed: BTreeSet<_> = CHANGES.iter().map(|(key, ..)| (*key).to_owned()).collect();
        for key in &known {
            assert!(changed.contains(key) || is_checked_elsewhere(key), "no change of {key} is tried");
        }
        assert!(changed.is_subset(&known), "{:?}", changed.difference(&known));
        // The files of certificates and keys must exist.
        let file = tempfile::NamedTempFile::new().unwrap();
        let file = file.path().to_str().unwrap();
        for (key, name, text, restart) in CHANGES {
            let text = if key == "server.tls" { file } else { text };
            let extra: &[(&str, &str)] = match key {
                "server.tls" => &[("server.tls.key", file)],
                "server.proxy_protocol" => &[("server.trusted_proxies", "10.0.0.0/8")],
                _ => &[],
            };
            let old = example(if key == "server.tls" { &[] } else { extra });
            let new = example(&[extra, &[(name, text)]].concat());
            assert_eq!(needs_restart(&old, &new), Vec::from_iter(restart), "{key}");
            assert_eq!(needs_restart(&new, &new), Vec::<&str>::new(), "{key}");
        }
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn every_key_of_postgresql_is_reported_as_needing_a_restart() {
        let base = [
            "queue.type=postgres",
            "queue.url=postgres://wxrelay@pg1/wxrelay",
            "queue.password=one",
            "queue.replica=relay-1",
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let account = "[accounts.shop]\npath = \"/wx\"\napp_id = \"wx0\"\ntoken = \"abc\"\nmode = \"plaintext\"\n";
        std::fs::write(&path, account).unwrap();
        let load = |overrides: &[(&str, &str)]| {
            let all: Vec<_> =
                base.iter().filter_map(|line| line.split_once('=')).chain(overrides.iter().copied()).collect();
            load(Some(&path), [], &all).unwrap_or_else(|errors| panic!("{overrides:?}: {errors:#?}"))
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        let old = load(&[]);
        for (key, name, text, restart) in CHANGES_WITH_POSTGRES {
            let text = if key == "queue.tls" { file.path().to_str().unwrap() } else { text };
            assert_eq!(needs_restart(&old, &load(&[(name, text)])), Vec::from_iter(restart), "{key}");
        }
        assert_eq!(needs_restart(&old, &old), Vec::<&str>::new());
        let tried: BTreeSet<_> = CHANGES_WITH_POSTGRES.iter().filter_map(|(key, ..)| key.split('.').nth(1)).collect();
        assert_eq!(tried, BTreeSet::from(KEYS_OF_POSTGRES));
        assert!(needs_restart(&example(&[]), &old).contains(&"queue.type"));
    }

    #[test]
    fn a_changed_encryption_key_needs_a_restart() {
        let keys = ["AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "HwECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="];
        let [old, new] = keys.map(|key| example(&[("queue.encryption_keys", key)]));
        assert_eq!(needs_restart(&old, &new), ["queue.encryption_keys"]);
    }
}

//! `[queue]`: the engine with what it alone needs, and what every engine keeps how long.

use std::time::Duration;

use super::error::Problem;
use super::file;
use super::key_reader::KeyReader;
use super::value;
use crate::queue::{self, EncryptionKey, EncryptionKeys, Engine};

/// The values of `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EngineType {
    Embedded,
    Postgres,
}

/// `[queue]`
pub(super) fn queue(reader: &KeyReader<'_>, file: &file::QueueSection) -> queue::Settings {
    let kind = match &file.engine {
        None => Some(EngineType::Embedded),
        given => reader.read("type", given, engine_type),
    };
    let engine = match kind {
        Some(EngineType::Postgres) => postgres(reader, file),
        Some(EngineType::Embedded) => {
            refuse_keys_of_postgres(reader, file);
            embedded(reader, file)
        }
        // Which keys belong to it is unknown.
        None => embedded(reader, file),
    };
    // A disk that is full stops other programs of this machine; PostgreSQL has a machine of its own.
    let unlimited = if kind == Some(EngineType::Postgres) { queue::UNLIMITED } else { 10 << 30 };
    queue::Settings {
        engine,
        retention: reader
            .read("retention", &file.retention, value::some_duration)
            .unwrap_or(Duration::from_hours(7 * 24)),
        dedup_window: Duration::ZERO,
        replay_window: Duration::ZERO,
        max_size: reader.read("max_size", &file.max_size, value::max_size).unwrap_or(unlimited),
        max_memory: reader.read("max_memory", &file.max_memory, value::max_memory).unwrap_or(64 << 20),
        encryption_keys: EncryptionKeys::new(reader.parse_secrets(
            "encryption_keys",
            &file.encryption_keys,
            encryption_key,
        )),
    }
}

fn engine_type(text: &str) -> Result<EngineType, &'static str> {
    match text {
        "embedded" => Ok(EngineType::Embedded),
        "postgres" => Ok(EngineType::Postgres),
        _ => Err("\"embedded\" or \"postgres\""),
    }
}

fn embedded(reader: &KeyReader<'_>, file: &file::QueueSection) -> Engine {
    let path = reader.path("path", &file.path).unwrap_or_else(|| "/var/lib/wxrelay".into());
    reader.at("path").check_store(&path);
    Engine::Embedded { path }
}

fn refuse_keys_of_postgres(reader: &KeyReader<'_>, file: &file::QueueSection) {
    let given = [
        ("url", file.url.is_some()),
        ("password", file.password.is_some()),
        ("tls", file.tls.is_some()),
        ("schema", file.schema.is_some()),
        ("pooler", file.pooler.is_some()),
        ("standby", file.standby.is_some()),
        ("accept_weak_durability", file.accept_weak_durability.is_some()),
        ("replica", file.replica.is_some()),
        ("spool", file.spool.is_some()),
        ("spool_size", file.spool_size.is_some()),
    ];
    for (name, _) in given.iter().filter(|(_, is_given)| *is_given) {
        let remedy = "set queue.type = \"postgres\", or remove it";
        reader.at(name).report(Problem::action("only with queue.type = \"postgres\"", remedy));
    }
}

fn encryption_key(text: &str) -> Result<EncryptionKey, Problem> {
    let expected = "the base64 of 32 bytes, as `wxrelay keygen` or `openssl rand -base64 32` makes it";
    EncryptionKey::parse(text).ok_or(Problem::Secret(expected))
}

#[cfg(not(feature = "postgres"))]
fn postgres(reader: &KeyReader<'_>, file: &file::QueueSection) -> Engine {
    let remedy = "install a build with it, as the releases are, or set queue.type = \"embedded\"";
    reader.at("type").report(Problem::action("this build of wxrelay has no PostgreSQL engine", remedy));
    embedded(reader, file)
}

#[cfg(feature = "postgres")]
use self::of_postgres::postgres;

#[cfg(feature = "postgres")]
mod of_postgres {
    use super::*;
    use std::path::PathBuf;

    use crate::config::file::{OrTable, QueueSection, QueueTlsSection, Scalar, SecretLocation, SecretSource};
    use crate::queue::postgres::{
        DEFAULT_SPOOL_SIZE, PasswordSource, Server, Settings, SettingsError, Standby, TlsMode, host_name,
    };

    /// The engine. After an error, which has been reported, a part of it is a placeholder.
    pub(super) fn postgres(reader: &KeyReader<'_>, file: &file::QueueSection) -> Engine {
        if file.path.is_some() {
            let broken = "not with queue.type = \"postgres\", whose store has no folder";
            reader.at("path").report(Problem::action(broken, "remove it"));
        }
        let server = server(reader, file.url.as_ref());
        let settings = Settings {
            server: server.clone().unwrap_or_else(|| Server {
                addresses: Vec::new(),
                user: String::new(),
                database: String::new(),
                password: None,
            }),
            password: password(reader, file.password.as_ref()),
            tls: file.tls.as_ref().and_then(|tls| self::tls(reader, tls)).unwrap_or_default(),
            schema: reader.read("schema", &file.schema, schema).unwrap_or_else(|| "wxrelay".to_owned()),
            pooler: reader.read("pooler", &file.pooler, value::boolean).unwrap_or(false),
            standby: reader.read("standby", &file.standby, standby).unwrap_or(Standby::Warn),
            accept_weak_durability: reader
                .read("accept_weak_durability", &file.accept_weak_durability, value::boolean)
                .unwrap_or(false),
            replica: reader.read("replica", &file.replica, replica).unwrap_or_else(host_name),
            spool: spool(reader, file),
            spool_size: reader.read("spool_size", &file.spool_size, value::max_size).unwrap_or(DEFAULT_SPOOL_SIZE),
        };
        if server.is_some()
            && let Err(error) = settings.check()
        {
            let key = if matches!(error, SettingsError::Schema) { "schema" } else { "tls" };
            report(&reader.at(key), &error);
        }
        Engine::Postgres(Box::new(settings))
    }

    /// The folder, which must be usable as that of an embedded store.
    fn spool(reader: &KeyReader<'_>, file: &QueueSection) -> Option<PathBuf> {
        let path = reader.path("spool", &file.spool)?;
        reader.at("spool").check_store(&path);
        Some(path)
    }

    fn server(reader: &KeyReader<'_>, given: Option<&SecretSource>) -> Option<Server> {
        let reader = reader.at("url");
        let Some(source) = given else {
            let expected = "the URL of the database, such as \"postgres://wxrelay@db.example.com:5432/wxrelay\"";
            reader.report(Problem::Missing(expected));
            return None;
        };
        let url = reader.resolve_text(source)?;
        let server = Server::parse(url.expose()).map_err(|error| report(&reader, &error)).ok()?;
        if server.password.is_some() {
            // Checks who may read the file that holds it.
            reader.resolve_secret(source);
        }
        Some(server)
    }

    /// The engine's errors show no part of the URL but its hosts.
    fn report(reader: &KeyReader<'_>, error: &SettingsError) {
        reader.report(Problem::Database { text: error.to_string(), remedy: error.remedy() });
    }

    fn password(reader: &KeyReader<'_>, given: Option<&SecretSource>) -> Option<PasswordSource> {
        let (source, reader) = (given?, reader.at("password"));
        let password = reader.resolve_secret(source)?;
        if password.expose().is_empty() {
            reader.report(Problem::Secret("a password, or the key left out"));
        }
        Some(match source {
            SecretSource::Location(SecretLocation { file: Some(path), .. }) => {
                PasswordSource::File(reader.resolve(path))
            }
            SecretSource::Location(_) | SecretSource::Text(_) => PasswordSource::Text(password),
        })
    }

    fn tls(reader: &KeyReader<'_>, given: &OrTable<QueueTlsSection>) -> Option<TlsMode> {
        let table = match given {
            OrTable::Scalar(Scalar(text)) => {
                let off = |text: &str| {
                    if text == "off" { Ok(TlsMode::Off) } else { Err("\"off\" or a table such as { ca = \"ca.pem\" }") }
                };
                return reader.at("tls").parse(text, off);
            }
            OrTable::Table(table) => table,
        };
        let reader = reader.at("tls");
        let ca = reader.existing_file("ca", &table.ca);
        let cert = reader.existing_file("client_cert", &table.client_cert);
        let key = reader.private_file("client_key", &table.client_key);
        if let (Some(_), None) = (&table.client_cert, &table.client_key) {
            reader.at("client_key").report(Problem::Missing("the path of a PEM file, since `client_cert` is set"));
        }
        if let (None, Some(_)) = (&table.client_cert, &table.client_key) {
            reader.at("client_cert").report(Problem::Missing("the path of a PEM file, since `client_key` is set"));
        }
        Some(TlsMode::Verified { ca, client: cert.zip(key) })
    }

    /// Checked by [`Settings::check`].
    fn schema(text: &str) -> Result<String, &'static str> {
        Ok(text.to_owned())
    }

    fn standby(text: &str) -> Result<Standby, &'static str> {
        match text {
            "warn" => Ok(Standby::Warn),
            "required" => Ok(Standby::Required),
            "none" => Ok(Standby::None),
            _ => Err("\"warn\", \"required\" or \"none\""),
        }
    }

    fn replica(text: &str) -> Result<String, &'static str> {
        let sound = !text.is_empty() && text.len() <= 63 && text.bytes().all(|byte| byte.is_ascii_graphic());
        if sound { Ok(text.to_owned()) } else { Err("a name of at most 63 visible ASCII characters, without blanks") }
    }
}

#[cfg(test)]
#[cfg(feature = "postgres")]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use crate::config::{Config, load};

    const ACCOUNT: &str =
        "[accounts.shop]\npath = \"/wx\"\napp_id = \"wx0\"\ntoken = { env = \"TOKEN\" }\nmode = \"plaintext\"\n";

    /// Loads a configuration with these keys of the engine, in a file that everybody may read; the errors as text.
    fn loaded(keys: &str) -> Result<Config, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, format!("{ACCOUNT}[queue]\ntype = \"postgres\"\n{keys}")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let loaded = load(Some(&path), [("TOKEN".to_owned(), "abc".to_owned())], &[]);
        loaded.map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn no_message_and_no_debug_output_shows_the_password_of_the_database() {
        let config = loaded("url = \"postgres://wx:hunter2@pg1/x\"\npassword = \"hunter3\"\n").unwrap();
        let shown = format!("{config:#?}");
        assert!(shown.contains("pg1") && !shown.contains("hunter"), "{shown}");
        for url in [
            "hunter2",
            "postgres://wx:hunter2",
            "postgres://wx:hunter2@",
            "postgres://wx:hun@hunter2@pg1/x",
            "postgres://wx:hunter2@pg1:port/x",
            "postgres://wx:hunter2?x@pg1/x",
        ] {
            let reported = loaded(&format!("url = \"{url}\"\n")).unwrap_err();
            assert_eq!(reported.len(), 1, "{url}: {reported:?}");
            assert!(reported[0].starts_with("queue.url: ") && !reported[0].contains("hunter"), "{reported:?}");
        }
    }

    #[test]
    fn a_url_is_a_secret_only_if_it_has_a_password() {
        let is_warned_of =
            |config: Config| config.warnings.iter().any(|line| line.contains("group or others may read"));
        assert!(is_warned_of(loaded("url = \"postgres://wx:hunter2@pg1/x\"\n").unwrap()));
        assert!(!is_warned_of(loaded("url = \"postgres://wx@pg1/x\"\n").unwrap()));
    }
}

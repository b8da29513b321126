//! The configuration: found, merged, read and checked here, then passed to each part as that part's own settings.
//!
//! `layers` merges file, environment and command line; `file` is the schema of the result; the other files interpret
//! one table each, through a `KeyReader` that knows the key path and collects errors. Invariants: a [`Config`] that
//! exists has been checked in full, so nothing later checks it again; all errors are reported at once; no message holds
//! a secret. Not here: the command line. The process's environment is not read implicitly: the caller passes
//! [`environment`].

mod accounts;
mod admin_access;
mod certificates;
mod conditions;
mod cross_checks;
mod error;
mod file;
mod fingerprint;
mod fixed_reply;
mod held_replies;
mod key_changes;
mod key_reader;
mod layers;
mod logins;
mod own_url;
mod provider;
mod queue_section;
mod restart;
mod routes;
pub mod routing_table;
mod sections;
mod store_access;
mod targets;
mod value;
mod value_shapes;

use std::path::{Path, PathBuf};

pub use accounts::PLACEHOLDER;
pub use admin_access::{AdminAccess, admin_access};
pub use error::{ConfigError, Problem, Remedy};
pub use key_changes::KeyHashes;
pub use restart::needs_restart;
pub use store_access::{StoreAccess, store_access};
pub use targets::format_word;

use self::accounts::KnownTargets;
use self::key_reader::{KeyReader, LoadContext};
use self::layers::{Environment, Layers, ParsedLayers};
use crate::dispatcher::TargetSettings;
use crate::ordered;
use crate::push::Account;
use crate::{admin, login, otlp, queue, server, telemetry};

/// Where a configuration is searched for if none is named.
const SEARCH_PATHS: [&str; 2] = ["config.toml", "/etc/wxrelay/config.toml"];

/// A checked configuration: the settings of every part.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`
    pub server: server::Settings,
    /// `[admin]`
    pub admin: admin::Settings,
    /// `[queue]`
    pub queue: queue::Settings,
    /// `[log]`
    pub log: telemetry::Settings,
    /// `[telemetry]`
    pub telemetry: otlp::Settings,
    /// `[accounts.NAME]`, at least one, by name.
    pub accounts: Vec<Account>,
    /// `[targets.NAME]`, by name.
    pub targets: Vec<TargetSettings>,
    /// `[logins.NAME]`, by name, and `server.verify_files`.
    pub logins: login::Settings,
    /// What is allowed but is probably a mistake.
    pub warnings: Vec<String>,
    /// Whether the relay refuses to start where other users can access secrets or the store.
    pub strict: bool,
    /// SHA-256 of the file and of its overrides by environment and command line, in hex.
    pub sha256: String,
    /// The same of what must be equal at all replicas: accounts with their routes, targets and logins.
    pub shared_sha256: String,
    /// What a later configuration is compared with.
    pub keys: KeyHashes,
}

/// The file to read: the one given (`-c`), else `$WXRELAY_CONFIG`, else `./config.toml`, else
/// `/etc/wxrelay/config.toml`, if one of the last two exists.
///
/// Without a file (`None`) the environment alone can hold a whole configuration.
pub fn locate(given: Option<&Path>, wxrelay_config: Option<&str>) -> Option<PathBuf> {
    let named = given.or(wxrelay_config.filter(|path| !path.is_empty()).map(Path::new));
    named.or_else(|| SEARCH_PATHS.iter().map(Path::new).find(|path| path.exists())).map(Path::to_owned)
}

/// The process's environment, without variables that are not UTF-8.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
}

/// Loads a configuration. The `WXRELAY__` variables of `env` override `file`, and `overrides`, which are dotted keys
/// with their values, override both. `env` also serves `{ env = ".." }` and `{ credential = ".." }`.
///
/// # Errors
///
/// All errors, not only the first.
pub fn load(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
    overrides: &[(&str, &str)],
) -> Result<Config, Vec<ConfigError>> {
    let env: Environment = ordered::map(env.into_iter().map(|(name, text)| (name, text.into())));
    let layers = Layers::read(file, &env, overrides).map_err(|error| vec![error])?;
    let ParsedLayers { file: sections, errors, damaged } = layers.parse();
    let context = LoadContext::new(&layers, &env, file, errors, damaged);
    let config = config(&context.root(), &sections, layers.sha256.clone());
    let keys = KeyHashes::new(layers.tree(), context.referred());
    let shared_sha256 = context.fingerprint();
    let strict = sections::strict(&context.root().at("server"), &sections.server);
    let (mut errors, warnings) = context.finish(strict);
    ordered::sort(&mut errors, |one, other| one.key.cmp(&other.key));
    match config {
        Some(config) if errors.is_empty() => Ok(Config { warnings, strict, keys, shared_sha256, ..config }),
        _ => Err(errors),
    }
}

fn config(reader: &KeyReader<'_>, file: &file::ConfigFile, sha256: String) -> Option<Config> {
    let mut queue = queue_section::queue(&reader.at("queue"), &file.queue);
    let server = sections::server(&reader.at("server"), &file.server, &queue);
    let admin = sections::admin(&reader.at("admin"), &file.admin, &server);
    queue.dedup_window = accounts::dedup_window(&reader.at("accounts"), &file.accounts, queue.retention);
    let log = sections::log(&reader.at("log"), &file.log);
    let telemetry = sections::telemetry(&reader.at("telemetry"), &file.telemetry);
    let mut targets = targets::targets(&reader.at("targets"), &file.targets);
    let names = file.targets.keys().map(String::as_str).collect();
    let known = KnownTargets { names, targets: &targets, sections: &file.targets };
    let accounts = accounts::accounts(&reader.at("accounts"), &file.accounts, &known);
    held_replies::apply(reader, file, &accounts, &mut targets);
    cross_checks::shared_urls(&reader.at("targets"), &targets);
    cross_checks::references(&reader.at("targets"), &accounts, &targets);
    own_url::check(&reader.at("targets"), &server, &accounts, &targets);
    queue.replay_window = accounts::replay_window(&accounts, queue.dedup_window);
    cross_checks::windows(reader, &accounts, &queue);
    let logins = logins::settings(reader, file, &server, &accounts);
    Some(Config {
        server,
        admin: admin?,
        queue,
        log,
        telemetry,
        accounts,
        targets,
        logins,
        warnings: Vec::new(),
        strict: false,
        sha256,
        shared_sha256: String::new(),
        keys: KeyHashes::default(),
    })
}

#[cfg(test)]
mod tests;

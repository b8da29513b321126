//! The store, for commands that read it or act on it: `[queue]` of a configuration whose other parts may be wrong.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::admin_access::{self, AdminAccess};
use super::error::{ConfigError, Problem};
use super::key_reader::{KeyReader, LoadContext};
use super::layers::{Environment, Layers, ParsedLayers, PartialLayers};
use super::{Config, file, queue_section, targets};
use crate::ordered;
use crate::queue::{self, DeliveryOrder};

/// How long a process that does not know `[accounts]` keeps what retention would delete: until it ends.
const FOR_GOOD: Duration = Duration::from_secs(10 * 366 * 86_400);

/// `[queue]`, and what commands use of the rest.
#[derive(Clone, Debug)]
pub struct StoreAccess {
    pub queue: queue::Settings,
    /// The relay that may have the store open, or why its address is not known.
    pub admin: Result<AdminAccess, String>,
    /// The configured targets with their order, as far as they can be read.
    pub targets: Vec<(Arc<str>, DeliveryOrder)>,
    /// Why not every target, or not every order, can be read. Who changes deliveries must know the order.
    pub targets_problem: Option<String>,
    /// Whether the configuration has a table `[queue]`, and not only its defaults.
    pub is_named: bool,
}

impl From<Config> for StoreAccess {
    fn from(config: Config) -> Self {
        let Config { queue, admin, targets, .. } = config;
        let targets = targets.into_iter().map(|settings| (settings.target.name, settings.order)).collect();
        Self { queue, admin: Ok((&admin).into()), targets, targets_problem: None, is_named: true }
    }
}

/// Reads `[queue]` of a configuration whose other parts may be wrong.
///
/// # Errors
/// If the file or `[queue]` cannot be read, or a key beside it seems to be a misspelt `queue`.
pub fn store_access(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<StoreAccess, Vec<ConfigError>> {
    let env: Environment = ordered::map(env.into_iter().map(|(name, text)| (name, text.into())));
    let partial = Layers::read_tables(file, &["queue", "admin", "targets"], &env).map_err(|error| vec![error])?;
    let PartialLayers { layers, lost, syntax } = partial;
    let is_lost = |table: &str| lost.contains(&table);
    let ParsedLayers { file: sections, errors, damaged } = layers.parse();
    let context = LoadContext::new(&layers, &env, file, errors, damaged);
    let root = context.root();
    let mut queue = queue_section::queue(&root.at("queue"), &sections.queue);
    (queue.dedup_window, queue.replay_window) = (FOR_GOOD, FOR_GOOD);
    let admin = if is_lost("admin") { Err(Vec::new()) } else { Ok(admin_access::read(&root, &sections)) };
    let targets = orders(&root.at("targets"), &sections);
    let (mut errors, _) = context.finish(false);
    let is_named = layers.has("queue");
    let is_of = |error: &ConfigError, table: &str| is_within(&error.key, table) || !is_named && is_meant(error, table);
    if is_lost("queue") || errors.iter().any(|error| is_of(error, "queue")) {
        errors.retain(|error| is_of(error, "queue"));
        return Err(errors.into_iter().chain(syntax.filter(|_| is_lost("queue"))).collect());
    }
    let text = |errors: Vec<ConfigError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let of_targets = |error: &&ConfigError| {
        is_meant(error, "targets")
            || is_within(&error.key, "targets") && error.key.ends_with(".order")
            || error.key == "targets"
    };
    let targets_problem = match syntax {
        Some(syntax) if is_lost("targets") => Some(syntax.to_string()),
        _ => errors.iter().find(of_targets).map(ToString::to_string),
    };
    let admin = admin.and_then(|read| read.finish(errors)).map_err(text);
    Ok(StoreAccess { queue, admin, targets, targets_problem, is_named })
}

/// The name and order of each target that has a table.
fn orders(reader: &KeyReader<'_>, sections: &file::ConfigFile) -> Vec<(Arc<str>, DeliveryOrder)> {
    let order = |name: &String, section: &file::TargetSection| {
        reader.at(name).read("order", &section.order, targets::order).unwrap_or(DeliveryOrder::None)
    };
    sections.targets.iter().map(|(name, section)| (name.as_str().into(), order(name, section))).collect()
}

/// Whether a key is a table, or in it.
fn is_within(key: &str, table: &str) -> bool {
    key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Whether an unknown key is probably a misspelt table: its defaults are not what the operator wrote.
fn is_meant(error: &ConfigError, table: &str) -> bool {
    matches!(&error.problem, Problem::UnknownKey { nearest, .. } if nearest.as_deref() == Some(table))
        && !error.key.contains('.')
}

//! Where the running relay is: `[admin]`, read by commands that only talk to it.
//!
//! A mistake elsewhere in the file, or a secret that only the service may read, must not keep an operator from asking
//! the relay how it is.

use std::path::Path;

use super::error::{ConfigError, Problem};
use super::file::ConfigFile;
use super::key_reader::{KeyReader, LoadContext};
use super::layers::{Environment, Layers, ParsedLayers, PartialLayers};
use super::sections;
use crate::admin;
use crate::ordered;
use crate::secret::Secret;
use crate::server::Listen;

/// `[admin]`, as far as a client needs it.
#[derive(Clone, Debug)]
pub struct AdminAccess {
    pub listen: Listen,
    /// The token, or why it cannot be read here.
    pub token: Result<Option<Secret>, String>,
}

impl From<&admin::Settings> for AdminAccess {
    fn from(settings: &admin::Settings) -> Self {
        Self { listen: settings.listen.clone(), token: Ok(settings.token.clone()) }
    }
}

/// Reads `[admin]` of a configuration whose other parts may be wrong.
///
/// # Errors
/// If the file or `admin.listen` cannot be read.
pub fn admin_access(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<AdminAccess, Vec<ConfigError>> {
    let env: Environment = ordered::map(env.into_iter().map(|(name, text)| (name, text.into())));
    let PartialLayers { layers, lost, syntax } =
        Layers::read_tables(file, &["admin"], &env).map_err(|error| vec![error])?;
    if let Some(syntax) = syntax.filter(|_| !lost.is_empty()) {
        return Err(vec![syntax]);
    }
    let ParsedLayers { file: sections, errors, damaged } = layers.parse();
    let context = LoadContext::new(&layers, &env, file, errors, damaged);
    let read = read(&context.root(), &sections);
    read.finish(context.finish(false).0)
}

/// `[admin]` before the errors of its keys are known.
pub(super) struct AdminKeys {
    listen: Option<Listen>,
    token: Option<Secret>,
}

/// Reads the keys.
pub(super) fn read(root: &KeyReader<'_>, sections: &ConfigFile) -> AdminKeys {
    let reader = root.at("admin");
    let listen = sections::admin_listen(&reader, &sections.admin);
    AdminKeys { listen, token: reader.secret("token", &sections.admin.token) }
}

impl AdminKeys {
    /// The result, by the errors of the whole configuration.
    pub(super) fn finish(self, errors: Vec<ConfigError>) -> Result<AdminAccess, Vec<ConfigError>> {
        let Self { listen, token } = self;
        let of_token = |error: &ConfigError| error.key.starts_with("admin.token");
        let token = errors.iter().find(|error| of_token(error)).map_or(Ok(token), |error| Err(error.to_string()));
        // A misspelt `listen` is not the default address.
        let is_listen = |problem: &Problem| matches!(problem, Problem::UnknownKey { nearest, .. } if nearest.as_deref() == Some("listen"));
        let is_fatal = |error: &ConfigError| {
            let is_within = error.key == "admin" || error.key.starts_with("admin.");
            error.key == "admin" || error.key.starts_with("admin.listen") || is_within && is_listen(&error.problem)
        };
        match listen {
            Some(listen) if !errors.iter().any(is_fatal) => Ok(AdminAccess { listen, token }),
            _ => Err(errors.into_iter().filter(is_fatal).collect()),
        }
    }
}

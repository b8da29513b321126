//! What a start makes of a configuration before it opens or binds anything, and why it fails.

use std::sync::Arc;

use crate::config::Config;
use crate::deliver::{ClientError, SystemRoots, Upstream};
use crate::dispatcher::{AccountReplies, Policy, ReplyRules};
use crate::otlp::Exporter;
use crate::queue::Queue;
use crate::server::tls;
use crate::{queue, server};

/// Why the relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{}", .0.key())]
    Queue(#[from] queue::Error),
    #[error("targets.{name}")]
    Target { name: Arc<str>, source: ClientError },
    #[error("telemetry.otlp")]
    Collector(#[source] ClientError),
    #[error(transparent)]
    Bind(#[from] server::BindError),
    #[error("server.tls")]
    Tls(#[from] tls::Error),
}

impl StartError {
    /// Whether a unit that grants more could start: with a port under 1024.
    pub fn depends_on_user(&self) -> bool {
        matches!(self, Self::Bind(server::BindError::Denied { .. }))
    }

    /// Whether only a change of the configuration, or of what it names, fixes it: a restart does not.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Queue(error) => error.is_configuration(),
            Self::Target { .. } | Self::Collector(_) => true,
            Self::Bind(error) => error.is_configuration(),
            Self::Tls(error) => error.is_configuration(),
        }
    }
}

/// What a start makes of a configuration before it opens or binds anything.
pub(super) struct Prepared {
    pub(super) policies: Vec<Policy>,
    pub(super) tls: Option<tls::Acceptor>,
}

/// Loads the files that a configuration names: certificates, keys and authorities.
pub(super) fn prepare(config: &Config) -> Result<Prepared, StartError> {
    let certificates = &config.server.tls;
    let load = || tls::Acceptor::load(certificates, config.server.http2);
    let tls = (!certificates.is_empty()).then(load).transpose()?;
    Ok(Prepared { policies: policies(config)?, tls })
}

/// Every error that would keep the relay from starting with this configuration, found without starting it: nothing is
/// opened, bound or changed.
pub fn check(config: &Config) -> Vec<StartError> {
    let mut errors = Vec::new();
    errors.extend(Exporter::check(&config.telemetry).map_err(StartError::Collector).err());
    errors.extend(prepare(config).err());
    errors.extend(Queue::check(&config.queue).map_err(StartError::Queue).err());
    let listeners = config.server.listen.iter().chain([&config.admin.listen]);
    errors.extend(listeners.filter_map(|listen| server::check(listen).err()).map(StartError::Bind));
    errors
}

/// The targets with their connections.
pub(super) fn policies(config: &Config) -> Result<Vec<Policy>, StartError> {
    let trust = SystemRoots::default();
    let replies = reply_rules(config);
    let build = |settings: &crate::dispatcher::TargetSettings| {
        let accounts = config.accounts.iter().map(|account| (&account.name, &account.credentials));
        let upstream = Upstream::new(settings.target.clone(), accounts, &trust)
            .map_err(|source| StartError::Target { name: settings.target.name.clone(), source })?;
        let asking = config.accounts.iter().filter(|account| account.routes.asks(&settings.target.name));
        let upstream = upstream.asked_by(asking.map(|account| account.name.clone()).collect());
        Ok(Policy::new(settings, upstream, config.log.openid).with_replies(replies.clone()))
    };
    config.targets.iter().map(build).collect()
}

/// What the accounts do with replies that are long or late.
fn reply_rules(config: &Config) -> Arc<ReplyRules> {
    let unusual = config.accounts.iter().filter(|account| account.held.is_some());
    ReplyRules::new(unusual.map(|account| {
        let held = account.held.as_ref().map(|held| (held.keep, account.routes.clone()));
        (account.name.clone(), AccountReplies { long_text: account.long_text.clone(), held })
    }))
}
